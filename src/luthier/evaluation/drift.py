"""The drift gate: new data has come; is there anything to learn from it, and how?

``detect`` compares a reference (what a model was tuned on, or a sample of it) with new rows and
answers with one of

    skip     no test saw a change: the model may stay as it is
    update   something changed, and the new rows lie where the reference has rows: an update that
             keeps what was learnt will do
    retrain  most of the new rows lie on ground that the reference does not know, or bear labels
             that it lacks, or the model's quality fell by much: start again with all data

and a sentence that says why. Beside each test stands the smallest change that it would have
noticed at these sizes, because twenty rows that show no drift show very little.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike

from luthier.errors import DataError
from luthier.evaluation import power
from luthier.evaluation.drift_inputs import FEATURE_TESTS, Given, Pair, check_numbers, given, wanted
from luthier.evaluation.ground import Ground, known_ground
from luthier.evaluation.label_shift import estimate_shares, label_test
from luthier.evaluation.power import SmallestShift
from luthier.evaluation.two_sample import (
    Array,
    classifier,
    fall_of_mean,
    kolmogorov_smirnov,
    mmd,
    standard,
)

Decision = Literal["skip", "update", "retrain"]

#: Rows of a side that are compared; of more, a sample. The kernel test takes the square of it.
MAX_ROWS = 2_000


@dataclass(frozen=True)
class Finding:
    """What one test found.

    test: mmd, ks, classifier, labels, predictions or quality. changed: p is at or below
    ``threshold``, which is alpha shared among the tests. smallest: what it would have noticed.
    detail: what is particular to the test, as JSON data.
    """

    test: str
    statistic: float
    p: float
    threshold: float
    smallest: SmallestShift
    detail: dict[str, Any] = field(default_factory=dict)

    @property
    def changed(self) -> bool:
        """Whether the test saw a change."""
        return self.p <= self.threshold


@dataclass(frozen=True)
class Drift:
    """The decision and all that it rests on.

    reference_rows, new_rows: how many were given; reference_used, new_used: of how many the
    features were compared. ground: None without features. shares: the estimated share of each
    label among the new rows [share, low, high], where only predictions are known of them;
    ``notes`` say why there are none.
    """

    decision: Decision
    reason: str
    findings: tuple[Finding, ...]
    alpha: float
    seed: int
    reference_rows: int
    new_rows: int
    reference_used: int
    new_used: int
    ground: Ground | None = None
    shares: dict[str, list[float]] | None = None
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON; each finding says ``changed`` as well."""
        plain = asdict(self)
        plain["findings"] = [{**asdict(f), "changed": f.changed} for f in self.findings]
        return plain

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Drift:
        """The inverse of ``to_dict``."""
        known = dict(data)
        known["findings"] = tuple(
            Finding(**{
                **{name: value for name, value in found.items() if name != "changed"},
                "smallest": SmallestShift(**found["smallest"]),
            })
            for found in data["findings"]
        )  # fmt: skip
        known["notes"] = tuple(data["notes"])
        known["ground"] = Ground(**data["ground"]) if data["ground"] else None
        return cls(**known)


def detect(
    reference: ArrayLike | None, new: ArrayLike | None, *,
    tests: Sequence[str] | None = None, labels: Pair | None = None, predictions: Pair | None = None,
    quality: tuple[ArrayLike, ArrayLike] | None = None, alpha: float = 0.05,
    permutations: int = 1_000, seed: int = 0, max_rows: int = MAX_ROWS,
    most_off: float = 0.5, most_fall: float = 0.1,
    progress: Callable[[str, float], None] | None = None,
) -> Drift:  # fmt: skip
    """Compare new rows with a reference.

    Args:
        reference, new: features or embeddings, [n, d] and [m, d]; None to compare only labels.
            They may be those of a sample of the rows that labels and quality are given of.
        tests: of mmd, ks, classifier, labels. By default mmd on features, and labels where
            there are some. alpha is shared among them, so more tests see less each.
        labels: of the reference and of the new rows; None for the latter where they are not
            known yet, which takes ``predictions``: their shares are then compared, and the
            labels' estimated.
        predictions: what a model says of the reference and of the new rows. Beside labels of
            both, their agreement is the model's quality, unless ``quality`` is given.
        quality: a score a row of either side, larger is better: accuracy, minus the loss, …
        alpha: the chance of a false alarm, over all tests together.
        permutations: of the tests that permute.
        max_rows: features of more rows of a side are compared by a sample drawn with ``seed``;
            labels and quality always of all.
        most_off: retrain where at least this share of the new rows is off known ground.
        most_fall: retrain where quality fell, surely, by more than this.
        progress: told which test runs and the share of it that is done.

    Raises DataError for features that are no finite numbers (names the row and the column),
    differ in width, or have fewer than 5 rows; for tests that cannot be made of what was given.
    """
    check_numbers(alpha, permutations, max_rows, most_off, most_fall)
    data = given(reference, new, labels, predictions, quality)
    names = wanted(tests, data)
    threshold = alpha / (len(names) + (data.quality is not None))
    if permutations + 1 < 1 / threshold:
        hint = f"permutations of at least {int(np.ceil(1 / threshold)) - 1}"
        message = f"{permutations} permutations cannot show a p of {threshold:.4g}"
        raise DataError(message, hint=hint)
    tell = progress or (lambda name, share: None)
    sampled = None if data.features is None else _sampled(data.features, max_rows, seed)
    findings, ground = [], None
    for name in names:
        tell(name, 0.0)
        if name == "labels":
            findings.append(_of_labels(data, threshold, permutations, seed))
        elif sampled is not None:
            findings.append(_of_features(name, *sampled, threshold, permutations, seed, tell))
        tell(name, 1.0)
    if data.quality is not None:
        findings.append(_of_quality(*data.quality, threshold, permutations, seed))
    if sampled is not None:
        centre, scale = standard(sampled[0])
        ground = known_ground(*((side - centre) / scale for side in sampled), seed=seed)
    used = data.sizes if sampled is None else (len(sampled[0]), len(sampled[1]))
    decision, reason = decide(findings, ground, used[1], most_off, most_fall)
    shares, notes = _shares(data, seed, "labels" in names)
    return Drift(
        decision, reason, tuple(findings), alpha, seed, *data.sizes, *used, ground, shares, notes
    )


def _sampled(features: tuple[Array, Array], limit: int, seed: int) -> tuple[Array, Array]:
    rng = np.random.default_rng(seed)
    old, new = (
        side[np.sort(rng.choice(len(side), limit, replace=False))] if len(side) > limit else side
        for side in features
    )
    return old, new


def _of_features(
    name: str, reference: Array, new: Array, threshold: float, permutations: int, seed: int,
    tell: Callable[[str, float], None],
) -> Finding:  # fmt: skip
    """One test of features, all of them scaled by their deviation over both sides, which a
    permutation of the rows does not change."""
    centre, scale = standard(np.concatenate([reference, new]))
    old, fresh = (reference - centre) / scale, (new - centre) / scale
    n, m = len(old), len(fresh)
    if name == "mmd":
        kernel = mmd(
            old, fresh, permutations=permutations, seed=seed,
            progress=lambda share: tell("mmd", share),
        )  # fmt: skip
        smallest = power.of_mmd(old, kernel.bandwidth, kernel.null, threshold, m, seed)
        detail: dict[str, Any] = {"bandwidth": kernel.bandwidth, "permutations": permutations}
        return Finding("mmd", kernel.statistic, kernel.p, threshold, smallest, detail)
    if name == "ks":
        each = kolmogorov_smirnov(old, fresh)
        first, width = each.smallest, old.shape[1]
        smallest = power.of_kolmogorov_smirnov(n, m, width, threshold)
        several = np.flatnonzero(each.adjusted <= threshold).tolist()
        detail = {"feature": first, "features": width, "changed_features": several}
        statistic, p = float(each.distance[first]), float(each.adjusted[first])
        return Finding("ks", statistic, p, threshold, smallest, detail)
    judged = classifier(old, fresh, seed=seed)
    smallest = power.of_classifier(old, m, judged.held_out, threshold)
    detail = {"accuracy": judged.accuracy, "held_out": list(judged.held_out)}
    return Finding("classifier", judged.auc, judged.p, threshold, smallest, detail)


def _of_labels(data: Given, threshold: float, permutations: int, seed: int) -> Finding:
    """Of the labels, or where the new ones are not known, of what the model predicts."""
    name, pair = data.comparable_labels
    found = label_test(pair[0], pair[1], permutations=permutations, seed=seed)
    smallest = power.of_labels(found.reference, len(pair[1]), threshold)
    before, after = found.reference / found.reference.sum(), found.new / found.new.sum()
    moved = np.argsort(-np.abs(after - before), kind="stable")[:5]
    detail = {
        "classes": len(found.classes),
        "unseen": found.unseen,
        "unseen_classes": [c for c, n in zip(found.classes, found.reference, strict=True) if not n],
        "moved": {found.classes[i]: [float(before[i]), float(after[i])] for i in moved},
        "exact": found.exact,
    }
    return Finding(name, found.statistic, found.p, threshold, smallest, detail)


def _of_quality(old: Array, new: Array, threshold: float, permutations: int, seed: int) -> Finding:
    fall, p = fall_of_mean(old, new, permutations=permutations, seed=seed)
    detail = {"before": float(old.mean()), "after": float(new.mean())}
    smallest = power.of_mean(old, new, threshold)
    return Finding("quality", -fall, p, threshold, smallest, detail)


def _shares(
    data: Given, seed: int, asked: bool
) -> tuple[dict[str, list[float]] | None, tuple[str, ...]]:
    """The new labels' shares, where only predictions can tell them, or why those cannot."""
    labels, predictions = data.labels, data.predictions
    if not asked or labels is None or predictions is None or predictions[1] is None:
        return None, ()
    if labels[1] is not None:
        return None, ()
    try:
        found = estimate_shares(labels[0], predictions[0], predictions[1], seed=seed)
    except DataError as error:
        return None, (f"the new labels' shares are not estimated: {error.message}",)
    columns = np.stack([found.share, found.low, found.high], axis=1)
    return dict(zip(found.classes, columns.tolist(), strict=True)), ()


# --- the decision ---------------------------------------------------------------------------

_SAYS = {
    "mmd": "the features' distribution changed (mmd, p = {p:.2g})",
    "ks": "single features changed (ks, p = {p:.2g})",
    "classifier": "a classifier tells new rows from old (AUC {statistic:.2f}, p = {p:.2g})",
    "labels": "the labels' shares changed (p = {p:.2g})",
    "predictions": "the shares of the predictions changed (p = {p:.2g})",
    "quality": "the model's quality fell by {fall:.3f} (p = {p:.2g})",
}


def decide(
    findings: Sequence[Finding], ground: Ground | None, m: int, most_off: float, most_fall: float
) -> tuple[Decision, str]:
    """The decision that findings allow, and its reason in a sentence."""
    changed = [found for found in findings if found.changed]
    if not changed:
        return "skip", f"no test saw a change; {_unseen(findings, m)}"
    says = [_SAYS[f.test].format(p=f.p, statistic=f.statistic, fall=-f.statistic) for f in changed]
    grave = []
    for found in changed:
        if found.test == "quality" and -found.statistic > most_fall:
            before, after = found.detail["before"], found.detail["after"]
            grave.append(f"from {before:.3f} to {after:.3f} is more than the {most_fall:g} allowed")
        if found.detail.get("unseen", 0.0) >= most_off:
            share = f"{found.detail['unseen']:.0%} of the new rows"
            grave.append(f"{share} bear {found.test} that the reference lacks")
    of_features = [found.changed for found in findings if found.test in FEATURE_TESTS]
    # few rows may lie apart by chance: where a test of features saw nothing, it is chance
    if ground is not None and ground.off >= most_off and (any(of_features) or not of_features):
        grave.append(f"{ground.off:.0%} of the new rows lie where the reference has none")
    if grave:
        return "retrain", f"{', '.join(says)}: {', and '.join(grave)}"
    where = "whether the new rows lie on known ground was not asked, for want of features"
    if ground is not None:
        where = f"{1 - ground.off:.0%} of the new rows lie where the reference has rows"
    return "update", f"{', '.join(says)}; {where}"


def _unseen(findings: Sequence[Finding], m: int) -> str:
    """What could have been there all the same."""
    sure = [f for f in findings if f.smallest.shift is not None]
    if not sure:
        return f"but of {m:,} new rows such as these none would have been noticed for sure"
    parts = [f"{f.smallest} ({f.test})" for f in sure]
    return (
        f"with {m:,} new rows a change below {' or '.join(parts)} would go unnoticed "
        "more than one time in five"
    )
