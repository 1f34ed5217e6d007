"""Do the labels come in other shares than before? And where new labels are not known yet, in
which shares must they come, going by what a model predicts?

``label_test``: Pearson's chi-square test of homogeneity on counts, with its p from the
chi-square distribution, or, where a class is rare, from random tables with the same margins.
``estimate_shares``: black-box shift estimation (Lipton, Wang and Smola, Detecting and Correcting
for Label Shift with Black Box Predictors, ICML 2018).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from luthier.errors import DataError

Array = NDArray[np.float64]
Counts = NDArray[np.int64]

#: Below this expected count the chi-square distribution is no good approximation (Cochran 1954).
_FEWEST_EXPECTED = 5.0
#: Beyond this condition number the confusion matrix says nothing about some class.
_WORST_CONDITION = 1e6
#: Samples of the bootstrap; its standard error of a 95% interval's ends is small beside them.
_RESAMPLES = 500


@dataclass(frozen=True)
class LabelTest:
    """classes: the labels, in order. reference, new: how often each occurs. exact: whether p
    comes from random tables. unseen: share of the new rows whose label the reference lacks."""

    classes: tuple[str, ...]
    reference: Counts
    new: Counts
    statistic: float
    p: float
    exact: bool
    unseen: float


@dataclass(frozen=True)
class Shares:
    """The share of each class among the new rows, with the ends of a 95% bootstrap interval."""

    classes: tuple[str, ...]
    share: Array
    low: Array
    high: Array


def label_test(
    reference: Sequence[str], new: Sequence[str], *, permutations: int = 1_000, seed: int = 0
) -> LabelTest:
    """Whether two lists of labels come from one distribution.

    statistic: Σ (observed - expected)² / expected over the 2 x C table. Where every expected
    count is at least 5, p is that of chi-square with C - 1 degrees of freedom; elsewhere it is
    (1 + tables as extreme) / (1 + permutations), the tables being those of random permutations
    of the labels.
    """
    classes, codes = np.unique(np.r_[_texts(reference), _texts(new)], return_inverse=True)
    n, m, width = len(reference), len(new), len(classes)
    old = np.bincount(codes[:n], minlength=width)
    fresh = np.bincount(codes[n:], minlength=width)
    statistic = float(_chi_square(fresh[None], old + fresh, m)[0])
    expected = (old + fresh) * min(n, m) / (n + m)
    exact = bool((expected < _FEWEST_EXPECTED).any())
    if width == 1:
        p = 1.0
    elif exact:
        rng = np.random.default_rng(seed)
        drawn = rng.multivariate_hypergeometric(old + fresh, m, size=permutations)
        extreme = _chi_square(drawn, old + fresh, m) >= statistic * (1 - 1e-9)
        p = (1 + int(extreme.sum())) / (1 + permutations)
    else:
        from scipy.stats import chi2

        p = float(chi2.sf(statistic, width - 1))
    unseen = float(fresh[old == 0].sum() / m)
    return LabelTest(tuple(map(str, classes)), old, fresh, statistic, p, exact, unseen)


def _chi_square(new: Counts, total: Counts, m: int) -> Array:
    """Pearson's statistic of each row of counts [b, C], given both sides' sum."""
    size = int(total.sum())
    expected = total * (m / size)
    # the reference misses by as much, the other way
    found: Array = ((new - expected) ** 2 / expected).sum(axis=1) * (size / (size - m))
    return found


def estimate_shares(
    labels: Sequence[str], predictions: Sequence[str], new_predictions: Sequence[str], *,
    seed: int = 0,
) -> Shares:  # fmt: skip
    """The shares of the classes among new rows of which only predictions are known.

    With C[i, j] the share of reference rows predicted i with label j, and mu the shares of the
    predictions on the new rows, C w = mu; a class has w times its former share. Holds where only
    the labels' shares changed, not what a text of a label looks like. Negative shares are cut
    off. Raises DataError where the confusion matrix cannot be inverted: the model's predictions
    do not tell some classes apart.
    """
    known = np.unique(np.r_[_texts(labels), _texts(predictions), _texts(new_predictions)])
    actual, said, fresh = (
        np.searchsorted(known, _texts(side)) for side in (labels, predictions, new_predictions)
    )
    width = len(known)
    absent = sorted(set(range(width)) - set(actual.tolist()))
    if absent:
        raise DataError(
            f"'{known[absent[0]]}' is predicted, but it is no label of the reference",
            hint="predictions and labels need the same names",
        )
    cells = np.bincount(said * width + actual, minlength=width * width)
    joint = cells.reshape(width, width) / len(actual)
    if np.linalg.cond(joint) > _WORST_CONDITION:
        raise DataError(
            "the predictions on the reference do not tell the classes apart, so the new shares "
            "cannot be estimated from predictions",
            hint="a better model, or more rows of the rare classes",
        )
    mu = np.bincount(fresh, minlength=width)
    share = _solved(joint[None], (mu / len(fresh))[None])[0]
    rng = np.random.default_rng(seed)
    tables = rng.multinomial(len(actual), cells / len(actual), size=_RESAMPLES)
    joints = tables.reshape(-1, width, width) / len(actual)
    usable = np.linalg.cond(joints) <= _WORST_CONDITION
    mus = rng.multinomial(len(fresh), mu / len(fresh), size=_RESAMPLES) / len(fresh)
    drawn = _solved(joints[usable], mus[usable]) if usable.any() else share[None]
    low, high = np.quantile(drawn, [0.025, 0.975], axis=0)
    return Shares(tuple(map(str, known)), share, low, high)


def _solved(joint: Array, mu: Array) -> Array:
    """Shares [b, C] from confusion matrices [b, C, C] and shares of predictions [b, C]."""
    weight = np.linalg.solve(joint, mu[..., None])[..., 0]
    share = np.clip(weight * joint.sum(axis=1), 0.0, None)
    found: Array = share / share.sum(axis=1, keepdims=True)
    return found


def _texts(labels: Sequence[str]) -> NDArray[np.str_]:
    return np.asarray([str(label) for label in labels], dtype=np.str_)
