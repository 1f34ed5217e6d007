"""A head that learns more classes: what it knew stays, new rows are added."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from luthier.errors import ModelError


def grow_head(model: Any, labels: Sequence[str], where: str) -> None:
    """Give a transformers model of fewer classes an output for each of ``labels``, of which its
    own come first. The new rows of the last layer are drawn as the model's own head was.

    Raises ModelError where no linear layer has an output for each class.
    """
    old, new = int(model.config.num_labels), len(labels)
    if new == old:
        return
    found = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and module.out_features == old
    ]
    if not found:
        raise ModelError(
            f"has no linear layer with an output for each of its {old} classes",
            where=where,
            hint="train a new head on all classes at once",
        )
    name, head = found[-1]
    wider = nn.Linear(head.in_features, new, bias=head.bias is not None)
    spread = float(getattr(model.config, "initializer_range", None) or 0.02)
    with torch.no_grad():
        wider.weight.normal_(0.0, spread)
        wider.weight[:old] = head.weight
        if head.bias is not None:
            wider.bias.zero_()
            wider.bias[:old] = head.bias
    parent, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(parent), leaf, wider)
    model.num_labels = new
    model.config.num_labels = new
    model.config.id2label = dict(enumerate(labels))
    model.config.label2id = {label: code for code, label in enumerate(labels)}
