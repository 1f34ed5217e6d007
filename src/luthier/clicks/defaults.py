"""What ``tune`` trains with where nothing is said."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from luthier.clicks.calculators import DistanceShift
from luthier.clicks.parameters import FineTuningParams
from luthier.clicks.settings import EarlyStopping, FineTuningSettings, RankingLoss

Rows = Literal["sessions", "queries"]
#: Listwise: what was clicked stands out of its list, and of the other searches of the step.
LOSS = "ListwiseSoftmaxLoss"

#: What ``tune`` trains with where nothing is said: the upper half of a small encoder trains at
#: one rate for both sides, as is usual for encoders that were pretrained for search.
DEFAULTS: Mapping[str, Any] = {
    "num_fixed_layers": 0,
    "query_lr": 2e-5,
    "items_lr": 2e-5,
    "query_weight_decay": 0.0,
    "items_weight_decay": 0.0,
    "margin": None,
    "not_irrelevant_only": True,
    "negative_downsampling": 1.0,
}


def default_settings(
    loss: str | None = None, epochs: int | None = None, batch_size: int | None = None,
    rows: Rows | None = None,
) -> FineTuningSettings:  # fmt: skip
    """The settings of ``tune``: 16 searches a step, at most 5 epochs, and early stopping where
    there are searches to validate on."""
    return FineTuningSettings(
        loss_func=RankingLoss(loss or LOSS),
        metric_calculators=[DistanceShift()],
        step_size=None,
        gamma=None,
        num_epochs=epochs or 5,
        batch_size=batch_size or 16,
        early_stopping=EarlyStopping(patience=2, strict=False),
        rows=rows or "sessions",
    )


def given_params(
    params: Mapping[str, Any] | FineTuningParams | None, settings: FineTuningSettings
) -> Mapping[str, Any] | FineTuningParams:
    """Parameters over the defaults. Raises SpecError."""
    if isinstance(params, FineTuningParams):
        return params
    defaults = dict(DEFAULTS)
    if "margin" in settings.loss_func.options:
        defaults["margin"] = settings.loss_func.options["margin"]
    found = {**defaults, **dict(params or {})}
    searched = any(
        (isinstance(value, list) and name != "examples_order")
        or not isinstance(value, bool | int | float | list | None)
        for name, value in found.items()
    )
    order = found.get("examples_order")
    if isinstance(order, list) and any(isinstance(each, list) for each in order):
        searched = True
    elif searched and isinstance(order, list):
        found["examples_order"] = [order]
    return found if searched else FineTuningParams(**found)
