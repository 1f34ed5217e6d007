"""Does a token of a search cost what a token of a pair costs?

    python benchmarks/clicks_speed.py             three minutes of an idle machine
    python benchmarks/clicks_speed.py --write     writes its part of docs/measurements.md

Three sides take turns, as in ``luthier bench peers``: the engine on searches (a short description
of a Debian package asks, its long one was clicked, nine others were shown), the engine on pairs of
the same descriptions, and sentence-transformers' trainer on those pairs, which is how clicked
pairs are usually trained. Tokens are those that each batch reads and that are no padding; an item
that several searches of a batch have is read once. Long texts cost more a token than short ones,
for attention, so operations of the model a second stand beside.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from luthier.batches import make_plan
from luthier.benchmark.cases import Case
from luthier.benchmark.corpora import corpus
from luthier.benchmark.facts import Counter, Load
from luthier.benchmark.places import MODEL, data_folder, model_folder
from luthier.benchmark.race import start_side
from luthier.benchmark.steering import Period
from luthier.benchmark.work import Job, Settings, Work, prepare
from luthier.data import load_dataset
from luthier.data.rankings import Rankings
from luthier.objectives import needs
from luthier.spec import parse_spec

SHOWN, SEARCHES, PAIRS = 10, 8, 32
NAMES = {
    "searches": "luthier, searches",
    "pairs": "luthier, pairs",
    "peer": "sentence-transformers, pairs",
}
BEGINS, ENDS = "<!-- clicks_speed begins -->", "<!-- clicks_speed ends -->"
PAGE = Path(__file__).parents[1] / "docs" / "measurements.md"


def main() -> None:
    """Measure, print, and write if asked to."""
    words = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    words.add_argument("--steps", type=int, default=4, help="of a side in its turn")
    words.add_argument("--rounds", type=int, default=5)
    words.add_argument("--rows", type=int, default=2048)
    words.add_argument("--threads", type=int, default=2)
    words.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    words.add_argument("--write", action="store_true")
    given = words.parse_args()
    table = measured(given)
    print(table)
    if given.write:
        text = PAGE.read_text(encoding="utf-8")
        before, rest = text.split(BEGINS)
        after = rest.split(ENDS)[1]
        PAGE.write_text(f"{before}{BEGINS}\n{table}\n{ENDS}{after}", encoding="utf-8")


def measured(given: argparse.Namespace) -> str:
    """The table, in Markdown."""
    with tempfile.TemporaryDirectory(prefix="luthier-clicks-") as folder:
        settings = Settings(
            model_folder(MODEL), MODEL, data_folder(), Path(folder) / "pairs", given.precision,
            given.threads, rounds=given.rounds,
        )  # fmt: skip
        case = Case(
            "clicks", "", "", "debian", rows=given.rows, batch_size=PAIRS, steps=given.steps,
            peers=("sentence-transformers",),
        )  # fmt: skip
        pairs = prepare(case, settings)
        job, batches = searches(pairs, Path(folder) / "searches")
        loads = {"searches": batches, "pairs": list(pairs.loads()), "peer": list(pairs.loads())}
        jobs = {"searches": ("luthier", job), "pairs": ("luthier", pairs.job),
                "peer": ("sentence-transformers", pairs.job)}  # fmt: skip
        times = race(jobs, pairs)
    return report(loads, times)


def searches(pairs: Work, folder: Path) -> tuple[Job, list[Load]]:
    """The engine's job on searches, and what each of its turns reads."""
    folder.mkdir()
    lines = corpus("debian", pairs.case.rows, data_folder()).read_text(encoding="utf-8")
    rows = [json.loads(line) for line in lines.splitlines()]
    draw = random.Random(7)
    file = folder / "searches.jsonl"
    with open(file, "w", encoding="utf-8") as out:
        for row in rows:
            others = [other["positive"] for other in draw.sample(rows, SHOWN - 1)]
            items = [row["positive"], *others]
            ranked = {"query": row["anchor"], "items": items,
                      "relevance": [1] + [0] * len(others)}  # fmt: skip
            out.write(json.dumps(ranked) + "\n")
    words = json.loads(Path(pairs.job.spec).read_text())
    words["data"]["train"]["uri"] = str(file)
    words["objective"] = {"loss": "ListwiseSoftmaxLoss"}
    words["training"]["per_device_train_batch_size"] = SEARCHES
    spec = parse_spec(words)
    (folder / "spec.json").write_text(spec.canonical())
    dataset = load_dataset(file, spec.data.csv, folder / "cache", name=str(file))
    assert isinstance(dataset, Rankings)
    plan = make_plan(
        dataset, batch_size=SEARCHES, num_items_per_class=4, sampler=spec.training.sampler,
        seed=spec.training.seed, objective=needs(spec.objective),
    )  # fmt: skip
    counter = Counter(Path(pairs.job.model), pairs.job.max_seq_length)

    def read(step: int) -> Load:
        found = plan.rows(*divmod(step, plan.steps_per_epoch))
        shown = dataset.shown(found)
        texts = [np.unique(shown.queries), np.unique(shown.items)]
        parts = (counter.load(dataset.catalogue.texts("text", part)) for part in texts)
        return sum(parts, Load(samples=len(found)))

    loads = []
    for turn in range(pairs.turns):
        first = pairs.warmup + turn * pairs.steps_per_turn
        loads.append(sum((read(first + i) for i in range(pairs.steps_per_turn)), Load()))
    job = replace(pairs.job, spec=str(folder / "spec.json"), data=str(file), scratch=str(folder))
    return job, loads


def race(jobs: dict[str, tuple[str, Job]], work: Work) -> dict[str, list[Period]]:
    """Warm all up, then let them run in turn."""
    sides = {}
    try:
        for name, (side, job) in jobs.items():
            sides[name] = start_side(job, side, name)
            sides[name].run(work.warmup)
        periods: dict[str, list[Period]] = {name: [] for name in sides}
        for turn in range(work.turns):
            for name in list(sides) if turn % 2 == 0 else list(sides)[::-1]:
                periods[name].append(sides[name].run(work.steps_per_turn, reset_peak=turn == 0))
        for side in sides.values():
            side.end()
    finally:
        for side in sides.values():
            side.kill()
    return periods


def report(loads: dict[str, list[Load]], periods: dict[str, list[Period]]) -> str:
    """Speeds over all rounds, and of each round its ratio to the engine's pairs."""

    def speeds(name: str, of: Callable[[Load], float]) -> list[float]:
        pairs = zip(loads[name], periods[name], strict=True)
        return [of(load) / period.seconds for load, period in pairs]

    def tokens(load: Load) -> float:
        return float(load.tokens)

    def operations(load: Load) -> float:
        return 3 * load.forward_operations / 1e9

    lines = [
        "| | tokens a step | tokens/s | of the engine's on pairs | GFLOP/s of the model "
        "| of the engine's on pairs | peak MB |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for name, title in NAMES.items():
        steps = sum(len(period.losses) for period in periods[name])
        total = sum(loads[name], Load())
        peak = max(period.peak_bytes for period in periods[name]) / 1e6
        cells = [title, f"{total.tokens / steps:,.0f}"]
        for of in (tokens, operations):
            cells.append(f"{statistics.fmean(speeds(name, of)):,.0f}")
            cells.append(_share(speeds(name, of), speeds("pairs", of)))
        lines.append("| " + " | ".join([*cells, f"{peak:,.0f}"]) + " |")
    return "\n".join(lines)


def _share(these: Sequence[float], those: Sequence[float]) -> str:
    ratios: list[Any] = [a / b for a, b in zip(these, those, strict=True)]
    return f"{statistics.median(ratios):.2f} [{min(ratios):.2f}, {max(ratios):.2f}]"


if __name__ == "__main__":
    main()
