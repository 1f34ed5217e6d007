"""The model through ``torch.compile``: what it costs to compile, and what a step then takes.

Both are measured on the run's own rows before the first step, told, and kept with the metrics.
The compiled graph is for batches of any shape, and draws dropout as the plain model does, so
that losses are the plain model's but for rounding.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from luthier.engine.control import Listener
from luthier.engine.means import Means
from luthier.engine.state import random_states, restore_random_states

if TYPE_CHECKING:
    from luthier.engine.setup import Setup

#: Steps on either side; the fastest counts, as other work on a machine only slows down.
_TIMED = 5


#: Dropout is drawn by torch's own generators, as without a compiler.
_OPTIONS: dict[str, Any] = {"fallback_random": True}


def compile_steps(setup: Setup, tell: Listener) -> None:
    """Compile the model of a task for its training; it is evaluated as it is.

    Texts then run padded: a packed batch has a shape of its own each time.
    """
    tell("stage", {"name": "compiling the model"})
    plain = min(_steps(setup))
    model = setup.model
    if model.unpadded is not None:
        model.unpadded.remove()
        model.unpadded = None
    model.train_through(torch.compile(model.model, dynamic=True, options=_OPTIONS))
    first, *others = _steps(setup)
    seconds = min(others)
    setup.measured["compile"] = {
        "compile_s": round(max(0.0, first - seconds), 3),
        "plain_step_s": round(plain, 6),
        "compiled_step_s": round(seconds, 6),
    }
    message = (
        f"compiled in {first - seconds:.1f} s: a step takes {1e3 * seconds:.1f} ms in place of "
        f"{1e3 * plain:.1f} ms ({plain / seconds:.2f} times as fast)"
    )
    if seconds < plain:
        saved = (first - seconds) / (plain - seconds)
        message += f"; that is made up for after {saved:,.0f} steps"
    tell("log", {"level": "info", "message": message})


def _steps(setup: Setup) -> list[float]:
    """Seconds of forward and backward passes over a batch of middling rows, one by one. Neither
    gradients nor random states are other afterwards."""
    learner, states = setup.learner, random_states()
    means, learner.means = learner.means, Means()
    order = np.argsort(learner.features.lengths, kind="stable")
    middle = max(0, (len(order) - learner.at_once) // 2)
    batch = learner.fetch(order[middle : middle + learner.at_once])
    learner.mode(training=True)
    found = []
    try:
        for _ in range(_TIMED + 1):
            started = time.perf_counter()
            learner.backward(batch, None)
            found.append(time.perf_counter() - started)
            setup.model.zero_grad(set_to_none=True)
    finally:
        learner.means = means
        restore_random_states(states)
    return found
