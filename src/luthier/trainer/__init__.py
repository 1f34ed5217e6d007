"""``Trainer`` and ``TrainingArguments``: training a live ``nn.Module``, in this process.

The words and the behaviour are those of Hugging Face transformers; the loop, the checkpoints and
the speed are ours.
"""
