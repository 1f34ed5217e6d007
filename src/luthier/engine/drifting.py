"""Are the rows of an update new at all? Compared with those before it by what the model that is
to be updated makes of them: what goes into its last layer, and whether it is right."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from luthier.engine.items import Items
from luthier.errors import ModelError
from luthier.evaluation.drift import detect
from luthier.evaluation.drift_inputs import FEWEST_ROWS
from luthier.updaters.classes import features_into, last_linear

#: Rows of a side that are sent through the model: the kernel test takes the square of it.
_MOST_ROWS = 1_000
_AT_ONCE = 256


@dataclass(frozen=True)
class Looked:
    """What a model makes of rows: features (n, d), how good it is on each (n,), their classes."""

    features: np.ndarray
    quality: np.ndarray | None = None
    classes: Sequence[Any] | None = None


@dataclass(frozen=True)
class Side:
    """Rows of one side of the comparison, and what they are, for people. look: what a model makes
    of some of them."""

    look: Callable[[Any, np.ndarray], Looked]
    rows: np.ndarray
    name: str


def compare(model: Any, old: Side | None, new: Side, seed: int) -> dict[str, Any]:
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
    sides = [side.look(model, _sample(side.rows, seed)) for side in (old, new)]
    names, quality = [side.classes for side in sides], [side.quality for side in sides]
    labels = None if None in names else tuple([str(c) for c in one or ()] for one in names)
    found = detect(
        sides[0].features, sides[1].features, labels=labels,  # type: ignore[arg-type]
        quality=None if quality[0] is None else (quality[0], quality[1]),  # type: ignore[arg-type]
        seed=seed, max_rows=_MOST_ROWS,
    )  # fmt: skip
    return {**found.to_dict(), "reference": old.name}


def _sample(rows: np.ndarray, seed: int) -> np.ndarray:
    if len(rows) <= _MOST_ROWS:
        return rows
    return np.sort(np.random.default_rng(seed).choice(rows, _MOST_ROWS, replace=False))


def at_items(learner: Any, items: Items) -> Callable[[Any, np.ndarray], Looked]:
    """How a classifier, or any other model of a configuration file, is looked at."""

    def look(model: Any, rows: np.ndarray) -> Looked:
        layer = last_layer(model)
        features, quality, classes = [], [], []
        model.train(False)
        with torch.no_grad():
            for start in range(0, len(rows), _AT_ONCE):
                batch = items.batch(rows[start : start + _AT_ONCE])
                with features_into(layer) as caught:
                    seen = learner.see(batch, model)
                features.append(caught[-1].flatten(1).double().cpu())
                labels = learner.labels(seen)
                if labels is None:
                    loss = learner.losses(seen).double().cpu()
                    quality.append(-loss.expand(len(features[-1])))
                    continue
                classes.append(labels.cpu())
                quality.append((seen.scores.argmax(1) == labels).double().cpu())
        found = torch.cat(classes).tolist() if classes else None
        return Looked(torch.cat(features).numpy(), torch.cat(quality).numpy(), found)

    return look


def last_layer(model: Any) -> nn.Linear:
    """What goes into it is compared. Raises ModelError where there is none."""
    try:
        return last_linear(model)
    except ValueError as error:
        raise ModelError(
            f"drift is seen by what goes into the last linear layer, and {error}",
            hint="leave drift out, and compare the data itself by 'luthier drift'",
        ) from error
