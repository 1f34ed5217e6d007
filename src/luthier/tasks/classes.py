"""Classes: learnt from rows, predicted for rows, and how many of them are right.

Metrics are those of scikit-learn with its defaults: "macro" is the mean over the classes that
are among the targets or the predictions; what would divide by nothing is 0.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy import sparse

from luthier.data.rows import Rows
from luthier.errors import DataError, MissingExtra
from luthier.tasks.examples import Examples, Parser, UnfitRow, in_order, unknown_label
from luthier.tasks.scores import Array, Predictions, Scores
from luthier.tasks.task import Seeing

#: A class of a multi-label text is predicted where its probability is above this.
THRESHOLD = 0.5


class SeeingClasses(Seeing):
    """Learns the labels of rows, or holds them against those that are known."""

    def __init__(self, role: str, labels: Sequence[str] | None, *, several: bool) -> None:
        self._role, self._several = role, several
        self._known = None if labels is None else tuple(labels)
        self._codes = None if labels is None else {name: i for i, name in enumerate(labels)}
        self._seen: list[Any] = []

    def see(self, place: int, values: dict[str, Any]) -> None:
        if self._role not in values:
            return
        value = values[self._role]
        for name in value if self._several else (value,):
            if self._codes is not None and name not in self._codes:
                unfit = unknown_label(name, self._known or ())
                raise UnfitRow(self._role, unfit.message, unfit.hint)
        self._seen.append(value)

    def examples(
        self, rows: Rows, columns: Mapping[str, str], parsers: Mapping[str, Parser],
        supervised: bool,
    ) -> Examples:  # fmt: skip
        if self._role not in columns:
            return Examples(rows, columns, parsers, self._known or (), supervised=False)
        labels = self._known
        if labels is None:
            labels = in_order(
                name for value in self._seen for name in (value if self._several else (value,))
            )
            self._check_enough(labels, rows, columns[self._role])
        codes = {name: i for i, name in enumerate(labels)}
        if not self._several:
            known = np.array([codes[value] for value in self._seen], dtype=np.int64)
            return Examples(rows, columns, parsers, labels, known)
        hot = np.zeros((len(self._seen), len(labels)), dtype=np.float32)
        for place, value in enumerate(self._seen):
            hot[place, [codes[name] for name in value]] = 1
        return Examples(rows, columns, parsers, labels, hot)

    def _check_enough(self, labels: tuple[str, ...], rows: Rows, column: str) -> None:
        if len(labels) < (1 if self._several else 2):
            shown = f"only '{labels[0]}'" if labels else "no label"
            raise DataError(
                f"there is nothing to tell apart: {shown} in {len(rows)} rows",
                file=rows.file, column=column,
            )  # fmt: skip


def predictions_of(logits: Array, examples: Examples, *, several: bool) -> Predictions:
    """Labels for logits [n, classes]; arrays: ``probabilities`` [n, classes], and with known
    targets ``loss`` [n] (cross entropy; binary, the mean over the classes, for several)."""
    scores = logits.astype(np.float64)
    arrays: dict[str, Array] = {}
    if several:
        probability = 1 / (1 + np.exp(-np.clip(scores, -700, 700)))
        values: list[Any] = [
            [examples.labels[code] for code in np.flatnonzero(row > THRESHOLD)]
            for row in probability
        ]
        if examples.codes is not None:
            # log(1 + e^-|x|) + max(x, 0) - x·y: torch's numerically stable form
            each = np.logaddexp(0, -np.abs(scores)) + np.maximum(scores, 0)
            arrays["loss"] = (each - scores * examples.codes).mean(axis=1)
    else:
        log = scores - np.logaddexp.reduce(scores, axis=1, keepdims=True)
        probability = np.exp(log)
        values = [examples.labels[code] for code in scores.argmax(axis=1)]
        if examples.codes is not None:
            arrays["loss"] = -log[np.arange(len(log)), examples.codes]
    return Predictions(values, arrays | {"probabilities": probability})


def score_single(predictions: Predictions, examples: Examples) -> Scores:
    """accuracy, f1_macro, mcc, precision_macro, recall_macro, and loss where it is known."""
    metrics = sklearn_metrics()
    target = _targets(examples)
    codes = {name: code for code, name in enumerate(examples.labels)}
    guess = np.array([codes[value] for value in predictions.values], dtype=np.int64)
    macro: dict[str, Any] = {"average": "macro", "zero_division": 0}
    found = {
        "accuracy": metrics.accuracy_score(target, guess),
        "f1_macro": metrics.f1_score(target, guess, **macro),
        # of one class alone scikit-learn gives 0 as well, but warns
        "mcc": metrics.matthews_corrcoef(target, guess) if len({*target, *guess}) > 1 else 0.0,
        "precision_macro": metrics.precision_score(target, guess, **macro),
        "recall_macro": metrics.recall_score(target, guess, **macro),
    }
    rows = {"target": target, "predicted": guess, "correct": (target == guess).astype(np.float64)}
    return _with_loss(found, rows, predictions)


def score_several(predictions: Predictions, examples: Examples) -> Scores:
    """f1_micro, f1_macro, accuracy (of whole rows), precision_micro, recall_micro, loss."""
    metrics = sklearn_metrics()
    target = _targets(examples).astype(np.int8)
    guess = np.zeros_like(target)
    codes = {name: code for code, name in enumerate(examples.labels)}
    for row, names in enumerate(predictions.values):
        guess[row, [codes[name] for name in names]] = 1
    micro: dict[str, Any] = {"average": "micro", "zero_division": 0}
    found = {
        "f1_micro": metrics.f1_score(target, guess, **micro),
        "f1_macro": metrics.f1_score(target, guess, average="macro", zero_division=0),
        "accuracy": metrics.accuracy_score(target, guess),
        "precision_micro": metrics.precision_score(target, guess, **micro),
        "recall_micro": metrics.recall_score(target, guess, **micro),
    }
    correct = (target == guess).all(axis=1).astype(np.float64)
    rows = {"target": target, "predicted": guess, "correct": correct}
    return _with_loss(found, rows, predictions)


def resampled_single(scores: Scores, counts: Array) -> dict[str, Array]:
    """The metrics of ``score_single`` for resamples ``counts`` [b, n], each [b]."""
    target, guess = scores.per_row["target"], scores.per_row["predicted"]
    classes = int(max(target.max(), guess.max())) + 1
    hits = target == guess
    true, called, right = (
        _counted(codes, weight, counts, classes)
        for codes, weight in ((target, None), (guess, None), (target, hits))
    )
    total = counts.sum(axis=1)
    seen = (true + called) > 0
    precision, recall = _divided(right, called), _divided(right, true)
    f1 = _divided(2 * right, true + called)
    hit = right.sum(axis=1)
    spread = (total**2 - (called**2).sum(axis=1)) * (total**2 - (true**2).sum(axis=1))
    agree = hit * total - (called * true).sum(axis=1)
    found = {
        "accuracy": hit / total,
        "f1_macro": _mean_over(f1, seen),
        "mcc": _divided(agree, np.sqrt(np.maximum(spread, 0))),
        "precision_macro": _mean_over(precision, seen),
        "recall_macro": _mean_over(recall, seen),
    }
    return found | mean_of(scores, counts, "loss")


def resampled_several(scores: Scores, counts: Array) -> dict[str, Array]:
    """The metrics of ``score_several`` for resamples ``counts`` [b, n], each [b]."""
    target = scores.per_row["target"].astype(np.float64)
    guess = scores.per_row["predicted"].astype(np.float64)
    true, called, right = counts @ target, counts @ guess, counts @ (target * guess)
    hits, calls, trues = right.sum(axis=1), called.sum(axis=1), true.sum(axis=1)
    found = {
        "f1_micro": _divided(2 * hits, calls + trues),
        "f1_macro": _divided(2 * right, true + called).mean(axis=1),
        "accuracy": counts @ scores.per_row["correct"] / counts.sum(axis=1),
        "precision_micro": _divided(hits, calls),
        "recall_micro": _divided(hits, trues),
    }
    return found | mean_of(scores, counts, "loss")


def mean_of(scores: Scores, counts: Array, *names: str) -> dict[str, Array]:
    """Metrics that are the mean of what each row has, of those that are there."""
    total = counts.sum(axis=1)
    return {n: counts @ scores.per_row[n] / total for n in names if n in scores.per_row}


def sklearn_metrics() -> Any:
    """``sklearn.metrics``, or MissingExtra."""
    try:
        from sklearn import metrics  # type: ignore[import-untyped]
    except ImportError as error:
        raise MissingExtra("scoring classes", "tasks") from error
    return metrics


def _targets(examples: Examples) -> Array:
    if examples.codes is None:
        raise DataError("these rows have no labels to score against", file=examples.rows.file)
    return examples.codes


def _with_loss(found: dict[str, Any], rows: dict[str, Array], predictions: Predictions) -> Scores:
    if "loss" in predictions.arrays:
        rows = rows | {"loss": predictions.arrays["loss"]}
        found = found | {"loss": rows["loss"].mean()}
    return Scores({name: float(value) for name, value in found.items()}, rows)


def _counted(codes: Array, kept: Array | None, counts: Array, classes: int) -> Array:
    """How often each class occurs in each resample, [b, classes]."""
    weight = np.ones(len(codes)) if kept is None else kept.astype(np.float64)
    hot = sparse.csr_array((weight, (np.arange(len(codes)), codes)), shape=(len(codes), classes))
    found: Array = (hot.T @ counts.T).T
    return found


def _divided(a: Array, b: Array) -> Array:
    found: Array = np.divide(a, b, out=np.zeros_like(a, dtype=np.float64), where=b > 0)
    return found


def _mean_over(values: Array, kept: Array) -> Array:
    found: Array = (values * kept).sum(axis=1) / np.maximum(kept.sum(axis=1), 1)
    return found
