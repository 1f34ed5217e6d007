"""Are the rows of an update new at all? Compared with those before it by what the model that is
to be updated makes of them: what goes into its last layer, and whether it is right."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from luthier.engine.items import Items
from luthier.errors import ModelError
from luthier.evaluation.drift import detect
from luthier.evaluation.drift_inputs import FEWEST_ROWS
from luthier.updaters.classes import features_into, last_linear

#: Rows of a side that are sent through the model: the kernel test takes the square of it.
_MOST_ROWS = 1_000
_AT_ONCE = 256


@dataclass(frozen=True)
class Side:
    """Rows of one side of the comparison, and what they are, for people."""

    items: Items
    rows: np.ndarray
    name: str


def compare(learner: Any, model: Any, old: Side | None, new: Side, seed: int) -> dict[str, Any]:
    """The decision (skip, update, retrain), its reason, and what it rests on; as JSON data.

    Rows of both sides must be strangers to the model, or both known to it: what a model was
    trained on looks different from what it was not, without any drift. Raises ModelError where
    the model has no linear layer at its end.
    """
    if old is None or min(len(old.rows), len(new.rows)) < FEWEST_ROWS:
        reason = "there are no rows of earlier updates to compare with"
        if old is not None:
            reason = f"fewer than {FEWEST_ROWS} rows on one side tell nothing"
        return {"decision": "update", "reason": reason, "reference": old and old.name}
    sides = [_looked_at(learner, model, side, seed) for side in (old, new)]
    names = [None if side[2] is None else [str(label) for label in side[2]] for side in sides]
    labels = None if None in names else (names[0], names[1])
    found = detect(
        sides[0][0], sides[1][0], labels=labels,  # type: ignore[arg-type]
        quality=(sides[0][1], sides[1][1]), seed=seed, max_rows=_MOST_ROWS,
    )  # fmt: skip
    return {**found.to_dict(), "reference": old.name}


def _looked_at(
    learner: Any, model: Any, side: Side, seed: int
) -> tuple[np.ndarray, np.ndarray, list[int] | None]:
    """Features (n, d), quality (n,), and classes of a sample of the rows of a side."""
    rows = side.rows
    if len(rows) > _MOST_ROWS:
        rows = np.sort(np.random.default_rng(seed).choice(rows, _MOST_ROWS, replace=False))
    try:
        layer = last_linear(model)
    except ValueError as error:
        raise ModelError(
            f"drift is seen by what goes into the last linear layer, and {error}",
            hint="leave drift out, and compare the data itself by 'luthier drift'",
        ) from error
    features, quality, classes = [], [], []
    model.train(False)
    with torch.no_grad():
        for start in range(0, len(rows), _AT_ONCE):
            batch = side.items.batch(rows[start : start + _AT_ONCE])
            with features_into(layer) as caught:
                seen = learner.see(batch, model)
            features.append(caught[-1].flatten(1).double().cpu())
            labels = learner.labels(seen)
            if labels is None:
                quality.append(-learner.losses(seen).double().cpu().expand(len(features[-1])))
                continue
            classes.append(labels.cpu())
            quality.append((seen.scores.argmax(1) == labels).double().cpu())
    found = torch.cat(classes).tolist() if classes else None
    return torch.cat(features).numpy(), torch.cat(quality).numpy(), found
