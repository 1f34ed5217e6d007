"""From search logs to training data: sessions, what biases them, and what can be learned of them.

A log holds what was shown, in which order, and what people did with it. ``importing`` reads one
into ``sessions.Sessions``; ``cleaning`` drops bots; ``propensity`` and ``click_models`` say how
much of a click is the position's and how much the item's; ``conversion`` makes training inputs
of it; ``off_policy`` says what another ranking would have earned; ``simulate`` makes logs whose
bias is known. Nothing here loads torch.
"""
