"""Optimizers by the names that transformers' arguments have for them, as ours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

#: Name in transformers' arguments → torch.optim class (transformers' for Adafactor).
NAMES = {
    "adamw": "AdamW",
    "adamw_torch": "AdamW",
    "adamw_torch_fused": "AdamW",
    "adamw_hf": "AdamW",
    "sgd": "SGD",
    "adafactor": "Adafactor",
    "adagrad": "Adagrad",
    "rmsprop": "RMSprop",
}


def optimizer_words(
    optim: str,
    weight_decay: float,
    betas: Sequence[float],
    eps: float,
    more: Mapping[str, Any] | None = None,
) -> tuple[str, dict[str, Any]]:
    """Name and options of the optimizer that transformers' Trainer makes of these arguments.

    more: options of its own, which win. Raises KeyError for a name that is not in ``NAMES``.
    """
    name = NAMES[optim]
    options: dict[str, Any] = {"weight_decay": weight_decay}
    if name == "AdamW":
        options = {"betas": list(betas), "eps": eps, "weight_decay": weight_decay}
    if name == "Adafactor":
        options = {"scale_parameter": False, "relative_step": False, "weight_decay": weight_decay}
    return name, options | dict(more or {})
