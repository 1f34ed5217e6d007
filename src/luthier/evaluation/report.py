"""The report of a run: what was done, to what, and the proof of what it gained."""

from __future__ import annotations

import json
import math
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from luthier.errors import DataError
from luthier.evaluation.bm25 import bm25_evaluation
from luthier.evaluation.examples import Example, choose_examples
from luthier.evaluation.measure import Evaluation
from luthier.evaluation.sets import EvaluationSet, RetrievalSet
from luthier.evaluation.significance import Comparison, Interval, compare, intervals

_FORMAT = 1
_PACKAGES = ("luthier", "torch", "transformers", "sentence-transformers", "numpy", "pyarrow")
_NAMES = {
    "ndcg_at_k": "nDCG@{k}",
    "reciprocal_rank": "MRR",
    "average_precision": "MAP",
    "hit_at_k": "Hit@{k}",
    "recall_at_k": "Recall@{k}",
    "precision_at_k": "Precision@{k}",
    "f1_score_at_k": "F1@{k}",
    "r_precision": "R-precision",
    "dcg_at_k": "DCG@{k}",
    "spearman": "Spearman",
    "pearson": "Pearson",
    "mse": "MSE (less is better)",
}


@dataclass(frozen=True)
class Report:
    """Everything that the report page shows. Plain data, but for the comparison.

    run: what is said of the run at the top (model, loss, optimizer, epochs, …). data: facts
    of the data. losses, learning_rates: one a step. evaluations: one mapping a time with
    ``epoch``, ``step`` and metrics. evaluation: what was measured on, with ``k``,
    ``distance`` and ``notes``. comparison, bm25, examples: None or empty where there was
    nothing to measure on. environment: versions, device, seconds. lineage: the spec's id and
    where model and data come from. update: what an update kept of what was learnt before it,
    as ``metrics()["update"]`` has it; None where nothing was updated.
    """

    name: str
    run: Mapping[str, Any] = field(default_factory=dict)
    data: Mapping[str, Any] = field(default_factory=dict)
    losses: Sequence[float] = ()
    learning_rates: Sequence[float] = ()
    evaluations: Sequence[Mapping[str, Any]] = ()
    evaluation: Mapping[str, Any] = field(default_factory=dict)
    comparison: Comparison | None = None
    bm25: Mapping[str, Interval] | None = None
    examples: tuple[Example, ...] = ()
    environment: Mapping[str, Any] = field(default_factory=dict)
    lineage: Mapping[str, Any] = field(default_factory=dict)
    update: Mapping[str, Any] | None = None

    def metric_name(self, metric: str) -> str:
        """A metric's name for people: ``nDCG@10``."""
        return _NAMES.get(metric, metric).format(k=self.evaluation.get("k", "k"))

    @property
    def bm25_wins(self) -> bool:
        """Whether plain word matching does better than the tuned model."""
        if self.comparison is None or self.bm25 is None:
            return False
        main = self.comparison.main
        return self.bm25[main].value > self.comparison.after[main].value

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON; numbers that are not finite become None."""
        found = {name: getattr(self, name) for name in self.__dataclass_fields__}
        found["comparison"] = self.comparison.to_dict() if self.comparison else None
        found["bm25"] = {n: asdict(i) for n, i in self.bm25.items()} if self.bm25 else None
        found["examples"] = [example.to_dict() for example in self.examples]
        return {"format": _FORMAT, **_plain(found)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Report:
        """The inverse of ``to_dict``. Raises DataError for another format."""
        if data.get("format") != _FORMAT:
            raise DataError(f"a report of format {data.get('format')!r}, not {_FORMAT}")
        known = {k: v for k, v in data.items() if k != "format"}
        if known["comparison"]:
            known["comparison"] = Comparison.from_dict(known["comparison"])
        if known["bm25"]:
            known["bm25"] = {name: Interval(**i) for name, i in known["bm25"].items()}
        known["examples"] = tuple(Example.from_dict(e) for e in known["examples"])
        return cls(**known)


def build_report(
    name: str,
    *,
    before: Evaluation | None = None,
    after: Evaluation | None = None,
    evaluation_set: EvaluationSet | None = None,
    seed: int = 0,
    resamples: int = 10_000,
    **facts: Any,
) -> Report:
    """Compare, run BM25 beside, choose the examples. ``facts`` are other fields of Report."""
    environment = versions() | dict(facts.pop("environment", {}))
    if before is None or after is None or evaluation_set is None:
        return Report(name, environment=environment, **facts)
    measured: dict[str, Any] = {
        "kind": after.kind,
        "k": after.k,
        "distance": after.distance,
        **evaluation_set.facts(),
        "notes": list(evaluation_set.notes),
        "set_id": after.set_id,
        "seconds": round(before.seconds + after.seconds, 1),
    }
    comparison = compare(before, after, seed=seed, resamples=resamples)
    bm25: dict[str, Interval] | None = None
    examples: tuple[Example, ...] = ()
    if isinstance(evaluation_set, RetrievalSet):
        words = bm25_evaluation(evaluation_set, k=after.k)
        bm25 = intervals(words, seed=seed, resamples=resamples)
        examples = choose_examples(before, after, evaluation_set, seed=seed)
    return Report(
        name,
        evaluation=measured,
        comparison=comparison,
        bm25=bm25,
        examples=examples,
        environment=environment,
        **facts,
    )


def versions() -> dict[str, str]:
    """Versions of Python, the system and the packages that matter, without importing them."""
    found = {"python": platform.python_version(), "system": platform.platform(terse=True)}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def write_report(folder: Path, report: Report) -> None:
    """Write report.json and report.html into an existing folder."""
    from luthier.evaluation.page import page

    text = json.dumps(report.to_dict(), ensure_ascii=False, indent=1, allow_nan=False)
    (folder / "report.json").write_text(text, encoding="utf-8")
    (folder / "report.html").write_text(page(report), encoding="utf-8")


def read_report(file: Path) -> Report:
    """The report in a report.json."""
    return Report.from_dict(json.loads(file.read_text(encoding="utf-8")))


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
