"""Memory: how many rows fit, and what to do when they do not."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import psutil
import torch
from torch import Tensor

from luthier.engine.device import Device
from luthier.engine.learner import EmbeddingLearner, Learner
from luthier.engine.state import random_states, restore_random_states

if TYPE_CHECKING:
    from luthier.engine.task_learner import TaskLearner

#: Share of the free memory that one step's activations may take. The rest is for the
#: allocator's slack, the optimizer's state and a batch of longer texts than the probed one.
BUDGET = 0.5

#: Beyond this many rows a step gains nothing in speed on any device we measured, and
#: steps become so few that a small data set is hardly trained on.
MOST_ROWS = 1024


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error is the allocator's: CUDA's, the CPU's, or Python's."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    text = str(error)
    return isinstance(error, RuntimeError) and (
        "not enough memory" in text or "can't allocate memory" in text or "out of memory" in text
    )


def free_bytes(device: Device) -> int:
    """Memory that may still be allocated where the run computes."""
    if device.name.startswith("cuda"):
        free, _ = torch.cuda.mem_get_info(device.torch)
        return int(free)
    return int(min(psutil.virtual_memory().available, _group_limit()))


def _group_limit() -> float:
    """What the control group of this process leaves, where it sets a limit (containers)."""
    try:
        with (
            open("/sys/fs/cgroup/memory.max") as limit,
            open("/sys/fs/cgroup/memory.current") as used,
        ):
            return float(limit.read()) - float(used.read())  # "max" is not a number
    except (OSError, ValueError):
        return float("inf")


def activation_bytes(learner: Learner, batch: Any) -> int:
    """Bytes that the backward pass of a batch keeps alive, counted, not guessed."""
    seen: dict[int, int] = {}

    def count(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        seen[storage.data_ptr()] = storage.nbytes()
        return tensor

    states = random_states()
    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        learner.backward(batch, None)
    for module in learner.modules():
        module.zero_grad(set_to_none=True)
    restore_random_states(states)
    return sum(seen.values())


def rows_that_fit(learner: EmbeddingLearner | TaskLearner, longest: np.ndarray) -> int:
    """Rows of the data's longest texts that fit into the memory budget at once, 0 or more."""
    per_row = activation_bytes(learner, learner.fetch(longest)) // len(longest)
    return int(free_bytes(learner.device) * BUDGET) // max(1, per_row)
