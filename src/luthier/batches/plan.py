"""The indices of a step as a pure function of (dataset, seed, epoch, step)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from luthier.batches.class_plan import ClassPlan, choose_shape
from luthier.batches.distinct_plan import DistinctPlan
from luthier.batches.random_plan import RandomPlan
from luthier.batches.text_codes import repeated_codes
from luthier.errors import DataError, Problem, SpecError

if TYPE_CHECKING:
    from luthier.data import Dataset
    from luthier.objectives import Needs

#: Fewest rows in which two classes of two items fit.
_LEAST_CONTRAST = 4


class Plan(Protocol):
    """Which rows make the batches of an epoch.

    ``rows`` depends on nothing but its arguments and what the plan was made of: resuming at
    any step is a call, whatever the number of workers that read ahead.
    """

    batch_size: int
    steps_per_epoch: int
    notes: tuple[str, ...]

    def rows(self, epoch: int, step: int) -> np.ndarray[Any, np.dtype[np.int64]]:
        """The rows of a step, int64. Raises IndexError for a step beyond the epoch."""

    def describe(self) -> dict[str, Any]:
        """What the pre-flight report shows."""


def make_plan(
    dataset: Dataset,
    *,
    batch_size: int,
    num_items_per_class: int,
    sampler: str,
    seed: int,
    objective: Needs,
) -> Plan:
    """The plan for data in the form that the objective trains on (``Needs.form_used``).

    Labelled data: class-balanced or random batches, as ``sampler`` or the objective says.
    Losses with in-batch negatives: no text twice in a batch. Everything else: random.

    Raises:
        DataError: no rows.
        SpecError: a sampler that does not fit the data or the loss, or a batch too small.
    """
    n = len(dataset)
    if n == 0:
        raise DataError("there are no rows to train on")
    key = (dataset.id, seed)
    least = objective.min_rows(dataset.form)
    if batch_size < least <= n:
        message = f"{objective.loss} compares rows, and a batch of {batch_size} has none to compare"
        raise SpecError(
            [Problem("training.per_device_train_batch_size", message, f"use {least} or more")]
        )
    notes: tuple[str, ...] = ()
    if batch_size > n:
        rows = "row" if n == 1 else "rows"
        notes = (f"a batch of {batch_size} is more than the data, which has {n} {rows}",)
    if dataset.form == "labelled":
        labelled = _class_plan(
            dataset, batch_size, num_items_per_class, sampler, objective, key, notes
        )
        if isinstance(labelled, ClassPlan):
            return labelled
        notes = labelled
    elif sampler == "class":
        raise SpecError(
            [
                Problem(
                    "training.sampler",
                    f"'class' needs labelled data, and {objective.loss} trains on {dataset.form}",
                    "use sampler='auto'",
                )
            ]
        )
    if objective.in_batch_negatives:
        codes = repeated_codes([dataset.chunks(role) for role in dataset.roles], n)
        return DistinctPlan(codes, batch_size=batch_size, min_rows=least, key=key, notes=notes)
    return RandomPlan(n, batch_size=batch_size, min_rows=least, key=key, notes=notes)


def _class_plan(
    dataset: Dataset,
    batch_size: int,
    k: int,
    sampler: str,
    objective: Needs,
    key: tuple[object, ...],
    notes: tuple[str, ...],
) -> ClassPlan | tuple[str, ...]:
    """A class-balanced plan, or the notes of the random one that is used instead."""
    if sampler == "random" and objective.sampler_forced:
        message = f"{objective.loss} compares items of a class, which random batches seldom hold"
        raise SpecError([Problem("training.sampler", message, "use sampler='class'")])
    if (objective.sampler if sampler == "auto" else sampler) == "random":
        return notes
    labels = dataset.array("label")
    num_classes = int(np.count_nonzero(np.bincount(labels)))
    contrast = objective.sampler == "class"
    shape = choose_shape(batch_size, k, num_classes, contrast) if num_classes > 1 else None
    if shape is not None:
        return ClassPlan(labels, shape=shape, key=key, notes=())
    if num_classes > 1 and len(dataset) >= _LEAST_CONTRAST:
        message = f"a batch of {batch_size} cannot hold two items of two classes"
        hint = f"use {_LEAST_CONTRAST} or more"
        raise SpecError([Problem("training.per_device_train_batch_size", message, hint)])
    what = "one class only" if num_classes == 1 else f"{len(dataset)} items only"
    return (*notes, f"the data has {what}, so batches cannot be balanced and are drawn at random")
