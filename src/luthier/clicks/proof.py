"""Is the tuned model better than the one it started from, on searches that neither training nor
the choice of a model has seen? What would its ranking have earned?"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from luthier.clicks.accumulators import MetricsAccumulator, accumulated
from luthier.clicks.builder import RankingData
from luthier.clicks.calculators import MetricCalculator, ScoredInputs
from luthier.clicks.conversion import convert
from luthier.clicks.off_policy import OffPolicy, evaluate, reranked
from luthier.clicks.preparing import Debiasing
from luthier.clicks.sessions import Ints, Sessions
from luthier.clicks.settings import FineTuningSettings
from luthier.clicks.sides import Sides
from luthier.errors import DataError
from luthier.evaluation.measure import Evaluation, retrieval_evaluation
from luthier.evaluation.ranking import Relevance, search
from luthier.evaluation.report import Report, build_report, write_report
from luthier.evaluation.sets import MAX_INDEX, MAX_QUERIES, RetrievalSet
from luthier.store.atomic import new_folder

#: Draws of the bootstrap of the off-policy estimate.
_DRAWS = 1000


@dataclass(frozen=True)
class Proof:
    """report: of the held-out searches. off_policy: clicks a search by the rankings of the
    starting and of the tuned model, None where no propensities are known. shifts: what the metric
    calculators say. accumulated: by metric its series. notes: what should be known."""

    report: Report
    off_policy: dict[str, Any] | None
    shifts: dict[str, float]
    accumulated: dict[str, dict[str, list[float]]]
    notes: tuple[str, ...]

    @property
    def verdict(self) -> str:
        """better, no clear difference or worse."""
        assert self.report.comparison is not None
        return self.report.comparison.verdict

    def to_dict(self) -> dict[str, Any]:
        """What metrics.json holds."""
        comparison = self.report.comparison
        assert comparison is not None
        return {
            "verdict": comparison.verdict,
            "reason": comparison.reason,
            "queries": comparison.n,
            "k": self.report.evaluation["k"],
            "before": {name: asdict(value) for name, value in comparison.before.items()},
            "after": {name: asdict(value) for name, value in comparison.after.items()},
            "difference": {name: asdict(v) for name, v in comparison.difference.items()},
            "counts": asdict(comparison.counts),
            "off_policy": self.off_policy,
            **self.shifts,
            "accumulated": self.accumulated,
            "notes": list(self.notes),
        }

    def save(self, folder: Path, more: Mapping[str, Any]) -> dict[str, Any]:
        """Write metrics.json, report.json and report.html; complete or not at all."""
        metrics = {**more, **self.to_dict()}
        with new_folder(folder) as aside:
            text = json.dumps(_finite(metrics), indent=1, ensure_ascii=False, allow_nan=False)
            (aside / "metrics.json").write_text(text, encoding="utf-8")
            write_report(aside, self.report)
        return metrics


def prove(
    data: RankingData,
    settings: FineTuningSettings,
    debiasing: Debiasing,
    before: Sides,
    after: Sides,
    *,
    train: Sessions,
    accumulators: Sequence[MetricsAccumulator],
    history: Mapping[str, Any],
    name: str,
    k: int,
    seed: int,
    facts: Mapping[str, Any],
) -> Proof:
    """Measure both models on the sessions that were held out, and compare. Raises DataError where
    no click is left to measure on."""
    notes: list[str] = []
    found, rows = _retrieval_set(data, seed, notes)
    ranker = settings.ranker_name
    measured = [_measured(side, found, rows, k, ranker) for side in (before, after)]
    series = accumulated(
        accumulators, history.get("losses", ()), history.get("evaluations", ())
    )  # fmt: skip
    shifts = _shifts(settings, before, after, (("train", train), ("test", data.test)))
    report = build_report(
        name,
        before=measured[0],
        after=measured[1],
        evaluation_set=found,
        seed=seed,
        run={**facts, **{key: round(value, 6) for key, value in shifts.items()}},
        losses=list(history.get("losses", ())),
        learning_rates=list(history.get("learning_rates", ())),
        evaluations=_with_series(history.get("evaluations", ()), series),
    )
    return Proof(
        report=report,
        off_policy=_off_policy(data, settings, debiasing, before, after, seed, notes),
        shifts=shifts,
        accumulated=series,
        notes=(*notes, *found.notes),
    )


def _retrieval_set(
    data: RankingData, seed: int, notes: list[str]
) -> tuple[RetrievalSet, tuple[Ints, Ints]]:
    """Held-out queries, the catalogue, and what was clicked; and which rows of ``Sides`` are
    meant: of queries by the order of ``data.test.query_texts``, of items by ``test_items.ids``."""
    sessions = data.test
    row = {name: number for number, name in enumerate(data.test_items.ids)}
    item = np.array([row.get(name, -1) for name in sessions.item_names] or [-1])
    clicked = (convert(sessions).relevance > 0) & (item[sessions.item_codes] >= 0)
    relevant: dict[int, set[int]] = {}
    for query, wanted in zip(
        sessions.query_codes[sessions.owner[clicked]].tolist(),
        item[sessions.item_codes[clicked]].tolist(), strict=True,
    ):  # fmt: skip
        relevant.setdefault(query, set()).add(wanted)
    if not relevant:
        hint = "hold more out, or give a longer log"
        raise DataError("no click is left to measure on", hint=hint)
    rng = np.random.default_rng(seed)
    chosen = sorted(relevant)
    if len(chosen) > MAX_QUERIES:
        notes.append(f"measured on a sample of {MAX_QUERIES:,} of {len(chosen):,} queries")
        chosen = sorted(rng.choice(chosen, MAX_QUERIES, replace=False).tolist())
    needed = {wanted for query in chosen for wanted in relevant[query]}
    rows = np.arange(len(row))
    if len(rows) > MAX_INDEX:
        others = np.setdiff1d(rows, list(needed))
        room = max(0, MAX_INDEX - len(needed))
        rows = np.sort(np.r_[list(needed), rng.choice(others, room, replace=False)])
        notes.append(
            f"searched in a sample of {len(rows):,} of {len(row):,} items: easier than all"
        )
    place = {int(number): at for at, number in enumerate(rows)}
    texts = data.catalogue
    found = RetrievalSet(
        tuple(sessions.query_texts[query] for query in chosen),
        tuple(texts[data.test_items.ids[number]] for number in rows),
        Relevance.of_lists([[place[wanted] for wanted in relevant[query]] for query in chosen]),
        np.full(len(chosen), -1, np.int64),
    )
    return found, (np.array(chosen, np.int64), rows.astype(np.int64))


def _measured(
    side: Sides, found: RetrievalSet, rows: tuple[Ints, Ints], k: int, ranker: Any
) -> Evaluation:
    started = time.perf_counter()
    queries = side.queries[[side.query[text] for text in found.queries]]
    ranking = search(
        queries, side.items[rows[1]], found.relevance, own=found.own, k=k, distance=ranker
    )
    return retrieval_evaluation(found, ranking, k, ranker, time.perf_counter() - started)


def _off_policy(
    data: RankingData,
    settings: FineTuningSettings,
    debiasing: Debiasing,
    before: Sides,
    after: Sides,
    seed: int,
    notes: list[str],
) -> dict[str, Any] | None:
    """Clicks a search, had the shown results been ordered by each model."""
    if debiasing.propensities is None:
        notes.append(f"no off-policy estimate: {debiasing.why}")
        return None
    known = np.array([name in data.catalogue for name in data.test.item_names] or [True])
    unknown = np.bincount(
        data.test.owner, ~known[data.test.item_codes], len(data.test)
    )  # fmt: skip
    sessions = data.test.take(unknown == 0)
    if not len(sessions):
        notes.append("no off-policy estimate: every search shows an item without a text")
        return None
    clicked = sessions.grades() > 0
    sign = 1.0 if settings.is_similarity else -1.0
    found: dict[str, OffPolicy] = {}
    for name, side in (("before", before), ("after", after)):
        scored = sign * side.scores(sessions, settings.ranker_name)
        found[name] = evaluate(
            sessions, clicked, reranked(sessions, scored), debiasing.propensities,
            clip=debiasing.clip, draws=_DRAWS, seed=seed,
        )  # fmt: skip
    return {"sessions": len(sessions), "logged": vars(found["before"].logged),
            **{name: _plain(each) for name, each in found.items()}}  # fmt: skip


def _plain(found: OffPolicy) -> dict[str, Any]:
    told = found.to_dict()
    return {name: told[name] for name in ("ips", "snips", "effective")}


def _shifts(
    settings: FineTuningSettings,
    before: Sides,
    after: Sides,
    parts: Sequence[tuple[str, Sessions]],
) -> dict[str, float]:
    """What the metric calculators say of the sessions that trained and of those held out."""
    calculators: Sequence[MetricCalculator] = settings.metric_calculators or ()
    found: dict[str, float] = {}
    for stage, sessions in parts if calculators else ():
        inputs = convert(sessions, not_irrelevant_only=False)
        old, new = (side.scores(sessions, settings.ranker_name) for side in (before, after))
        known = ~np.isnan(old)
        lengths = np.bincount(sessions.owner[known], minlength=len(sessions))
        scored = ScoredInputs(
            old[known], new[known], inputs.relevance[known] > 0,
            np.concatenate([[0], np.cumsum(lengths)]), inputs.irrelevant,
            bool(settings.is_similarity),
        )  # fmt: skip
        for calculator in calculators:
            for value in calculator(scored, stage):
                found[value.name] = float(value.value)
    return found


def _with_series(
    evaluations: Sequence[Mapping[str, Any]], series: Mapping[str, Mapping[str, Sequence[float]]]
) -> list[dict[str, Any]]:
    """Evaluations with what accumulators made of them; series of every step at the step of the
    evaluation."""
    found = [dict(record) for record in evaluations]
    for values in series.values():
        for name, numbers in values.items():
            for at, record in enumerate(found):
                place = at if len(numbers) == len(found) else int(record.get("step", 0)) - 1
                if name not in record and 0 <= place < len(numbers):
                    record[name] = numbers[place]
    return found


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    if isinstance(value, float) and not np.isfinite(value):
        return None
    return value
