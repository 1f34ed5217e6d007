"""Features in batches of like length, on a device."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

Feature = dict[str, Any]

#: A fast tokenizer keeps truncation as state, and refuses two threads at once.
TOKENIZING = threading.Lock()


def by_length(features: Sequence[Feature], size: int) -> Iterator[np.ndarray]:
    """Places of features in batches, the longest first: little padding, and memory that does
    not suffice shows at once."""
    if not features:
        return
    key = "input_ids" if "input_ids" in features[0] else next(iter(features[0]))
    lengths = np.array([len(feature[key]) for feature in features])
    order = np.argsort(-lengths, kind="stable")
    for start in range(0, len(order), size):
        yield order[start : start + size]


def without(features: Sequence[Feature], *names: str) -> list[Feature]:
    """The features without some of their fields."""
    return [{k: v for k, v in feature.items() if k not in names} for feature in features]


def on_device(batch: Any, device: torch.device) -> dict[str, torch.Tensor]:
    """A collated batch as a plain dict on the device."""
    return {name: value.to(device) for name, value in dict(batch).items()}


@contextmanager
def inference(model: Any) -> Iterator[torch.device]:
    """The model in evaluation mode without gradients; gives its device.

    Not ``torch.inference_mode``: what a model then makes once and keeps (tables of positions)
    could not be trained with afterwards. Every module goes back to the mode that it had.
    """
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            yield next(model.parameters()).device
    finally:
        for module, training in modes:
            module.training = training


Obey = Callable[[], None]


def go_on() -> None:
    """What is called between batches when nobody may stop them."""
