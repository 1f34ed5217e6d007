"""Entity-level precision, recall and F1 of tags, by seqeval; accuracy is of words.

Tags of the form B-X, I-X (E-, S-, L-, U- as well) make entities; one is right when its type,
beginning and end are. Labels of no such form (parts of speech) are taken as entities of one
word each, so that F1 is over the words whose tag, wanted or given, is not O.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from luthier.errors import MissingExtra
from luthier.tasks.scores import Array, Predictions, Scores

_CHUNK = re.compile(r"[BIESLU]-.+")


def score(predictions: Predictions, target: list[list[str]], labels: Sequence[str]) -> Scores:
    """f1, accuracy, precision, recall, and loss (nats a word) where it is known.

    per_row: ``right``, ``called``, ``true`` entities, ``hits`` and ``length`` in words, and
    ``nll``, ``words`` where known, each float64 [n].
    """
    seqeval = _seqeval()
    plain = not all(label == "O" or _CHUNK.fullmatch(label) for label in labels)
    wanted = [_chunks(tags) for tags in target] if plain else target
    given = [_chunks(tags) for tags in predictions.values] if plain else predictions.values
    found = {
        "f1": seqeval.f1_score(wanted, given, zero_division=0),
        "accuracy": seqeval.accuracy_score(target, predictions.values),
        "precision": seqeval.precision_score(wanted, given, zero_division=0),
        "recall": seqeval.recall_score(wanted, given, zero_division=0),
    }
    rows = _counts(wanted, given)
    pairs = zip(target, predictions.values, strict=True)
    hits = [sum(a == b for a, b in zip(ours, theirs, strict=True)) for ours, theirs in pairs]
    rows["hits"] = np.array(hits, dtype=np.float64)
    rows["length"] = np.array([len(tags) for tags in target], dtype=np.float64)
    if "nll" in predictions.arrays:
        rows |= {name: predictions.arrays[name] for name in ("nll", "words")}
        found["loss"] = rows["nll"].sum() / max(rows["words"].sum(), 1)
    return Scores({name: float(value) for name, value in found.items()}, rows)


def resampled(scores: Scores, counts: Array) -> dict[str, Array]:
    """The metrics of resamples ``counts`` [b, n], each [b]."""
    total = {name: counts @ values for name, values in scores.per_row.items()}
    right, called, true = total["right"], total["called"], total["true"]
    found = {
        "f1": _divided(2 * right, called + true),
        "accuracy": _divided(total["hits"], total["length"]),
        "precision": _divided(right, called),
        "recall": _divided(right, true),
    }
    if "nll" in total:
        found["loss"] = _divided(total["nll"], total["words"])
    return found


def _counts(wanted: list[list[str]], given: list[list[str]]) -> dict[str, Array]:
    from seqeval.metrics.sequence_labeling import get_entities  # type: ignore[import-untyped]

    counts = np.zeros((3, len(wanted)))
    for i, (ours, theirs) in enumerate(zip(wanted, given, strict=True)):
        true, called = set(get_entities(ours)), set(get_entities(theirs))
        counts[:, i] = len(true & called), len(called), len(true)
    return {"right": counts[0], "called": counts[1], "true": counts[2]}


def _chunks(tags: list[str]) -> list[str]:
    return [tag if tag == "O" else f"B-{tag}" for tag in tags]


def _divided(a: Array, b: Array) -> Array:
    found: Array = np.divide(a, b, out=np.zeros_like(a), where=b > 0)
    return found


def _seqeval() -> Any:
    try:
        from seqeval import metrics  # type: ignore[import-untyped]
    except ImportError as error:
        raise MissingExtra("scoring tags", "tasks") from error
    return metrics
