"""Updaters beside one another: five updates through the real engine, cell by cell.

A cell is an updater, a scenario, a data set and a seed. Renate's protocol, as its authors' code
was measured: a perceptron with one hidden layer of 200, SGD at 0.05 with momentum 0.9, batches of
32 of which half are remembered rows; digits with a memory of 100 and 10 epochs an update, mnist
with 200 and 5. Each finished cell is written down, so whoever is interrupted goes on.
"""

from __future__ import annotations

import json
import math
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from luthier.benchmark import continual_program
from luthier.benchmark.continual_program import UPDATES
from luthier.engine.control import Control, keep_going
from luthier.engine.run import Place, run
from luthier.errors import LuthierError, NotFound, Problem, SpecError, nearest
from luthier.evaluation.retention import experiment
from luthier.registry import cards, find
from luthier.spec import JobSpec, parse_spec
from luthier.store import atomic

#: Size of the memory, and epochs of an update.
DATA = {"digits": (100, 10), "mnist": (200, 5)}
SCENARIOS = (
    *("class-incremental", "rotation", "permutation", "iid", "feature-sorting", "hue-shift"),
    "data-incremental",
)
#: Updaters that train on their memory itself: no rows go along with a batch.
_ALONE = ("GDumb", "Joint", "iCaRL")
#: Updaters of prompts: for transformers, and here is a perceptron.
_PROMPTED = ("L2P", "S-Prompt")


@dataclass(frozen=True)
class Cell:
    """What is measured at once. quick: one epoch an update, to see that it runs."""

    data: str
    scenario: str
    updater: str
    seed: int
    quick: bool = False

    @property
    def name(self) -> str:
        quick = "/quick" if self.quick else ""
        return f"{self.data}/{self.scenario}/{self.updater}/{self.seed}{quick}"


def cells(
    data: Sequence[str],
    scenarios: Sequence[str],
    updaters: Sequence[str],
    seeds: int,
    *,
    quick: bool = False,
) -> list[Cell]:
    """Every combination; where no updater is named, all that a perceptron can have. Raises
    SpecError for a name that is none."""
    every = tuple(card.name for card in cards("updater"))
    known: dict[str, tuple[Sequence[str], tuple[str, ...], Sequence[str]]] = {
        "--data": (data, tuple(DATA), ("digits",)),
        "--scenario": (scenarios, SCENARIOS, ("class-incremental",)),
        "updater": (updaters, every, [name for name in every if name not in _PROMPTED]),
    }
    chosen, problems = [], []
    for word, (given, there, default) in known.items():
        found = list(there) if "all" in given else [*(given or default)]
        for name in found:
            if name not in there:
                hint = nearest(name, there) or f"there are: {', '.join(there)}"
                problems.append(Problem(word, f"there is no '{name}'", hint))
        chosen.append(found)
    if problems:
        raise SpecError(problems)
    return [
        Cell(d, s, u, seed, quick)
        for d in chosen[0]
        for s in chosen[1]
        for u in chosen[2]
        for seed in range(seeds)
    ]


class Results:
    """Finished cells in a JSON file, by name; written aside and renamed after each."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.known: dict[str, dict[str, Any]] = {}
        if file.exists():
            try:
                self.known = dict(json.loads(file.read_text(encoding="utf-8"))["cells"])
            except (ValueError, KeyError, TypeError) as error:
                raise NotFound(
                    f"this is no file of results ({error})",
                    where=str(file),
                    hint="remove it, or give another --output",
                ) from error

    def add(self, cell: Cell, found: dict[str, Any]) -> None:
        """Keep a finished cell."""
        self.known[cell.name] = {**asdict(cell), **found}
        atomic.make_folder(self.file.parent)
        text = json.dumps({"format": 1, "cells": self.known}, indent=1, sort_keys=True)
        atomic.write_bytes(self.file, text.encode())

    def of(self, wanted: Iterable[Cell]) -> list[dict[str, Any]]:
        """Those of some cells that are finished."""
        return [self.known[cell.name] for cell in wanted if cell.name in self.known]


def measure(
    wanted: Sequence[Cell],
    results: Results,
    facts: dict[str, Any],
    tell: Callable[[Cell, int], None],
    *,
    again: bool = False,
) -> list[dict[str, str]]:
    """Measure what is missing. facts: kept with each cell (commit, date, machine). tell: the cell
    that begins, and how many updates of it are done. Returns cells that failed, with the reason.
    """
    failed = []
    cache = results.file.parent / "cache"  # one for all, or each would measure the machine anew
    for cell in wanted:
        if cell.name in results.known and not again:
            continue
        try:
            found = five_updates(cell, lambda done, cell=cell: tell(cell, done), cache=cache)  # type: ignore[misc]
        except LuthierError as error:  # the others are measured all the same
            failed.append({"cell": cell.name, "reason": str(error)})
            continue
        results.add(cell, found | facts)
    return failed


def five_updates(
    cell: Cell,
    tell: Callable[[int], None] = lambda done: None,
    control: Control = keep_going,
    cache: Path | None = None,
) -> dict[str, Any]:
    """The matrix of accuracies on the held-out rows of the chunks so far, what follows from it,
    seconds for all updates (reading, training, measuring, committing the state), and bytes of
    the memory at the end."""
    start = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="luthier-continual-") as folder:
        here = Path(folder)
        cache = cache or here / "cache"
        cache.mkdir(parents=True, exist_ok=True)
        for chunk in range(UPDATES):
            tell(chunk)
            place = Place(here / str(chunk), cache, Path, Path)
            place.folder.mkdir()
            spec = _spec(cell, chunk, str(here / "state"))
            outcome = run(spec, place, control=control)
        update = outcome.folder / "luthier" / "update"
        memory = update / "memory.safetensors"
        size = memory.stat().st_size if memory.exists() else 0
    matrix = outcome.metrics["update"]["matrix"]
    seconds = time.perf_counter() - start
    return {**experiment(matrix), "seconds": round(seconds, 3), "memory_bytes": size}


def _spec(cell: Cell, chunk: int, state: str) -> JobSpec:
    memory, epochs = DATA[cell.data]
    remembers = find("updater", cell.updater).facts["memory"] is not None
    alone = cell.updater in _ALONE
    update: dict[str, Any] = {"updater": cell.updater, "output_state_url": state}
    if remembers:
        update |= {"memory_size": memory, "memory_batch_size": 0 if alone else 16}
    if chunk:
        update["input_state_url"] = state
    file = continual_program.__file__
    arguments = {"data": cell.data, "scenario": cell.scenario, "chunk_id": chunk}
    return parse_spec({
        "task": "program",
        "model": {"name": file},
        "data": {"train": {"uri": file}},
        "program": {"config_file": file, "arguments": arguments | {"seed": cell.seed}},
        "update": update,
        "training": {
            "optim": "SGD", "optim_args": {"momentum": 0.9}, "learning_rate": 0.05,
            "num_train_epochs": 1 if cell.quick else epochs, "seed": cell.seed,
            "per_device_train_batch_size": 16 if remembers and not alone else 32,
            "per_device_eval_batch_size": 1000, "eval_steps": 10**9, "device": "cpu",
        },
    })  # fmt: skip


# --- over seeds ------------------------------------------------------------------------------


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean, and half the width of its 95% interval (Student's t); NaN of a single value.

    >>> [round(x, 3) for x in interval([0.9, 0.92, 0.94])]
    [0.92, 0.05]
    """
    from scipy.stats import t

    mean = sum(values) / len(values)
    if len(values) < 2:
        return mean, math.nan
    spread = statistics.stdev(values)
    return mean, float(t.ppf(0.975, len(values) - 1)) * spread / math.sqrt(len(values))


def summaries(found: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """One entry for each data set, scenario and updater: means over seeds with half the width of
    their 95% intervals, the mean matrix, and accuracy and forgetting after each update."""
    names = ("data", "scenario", "updater", "quick")
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for cell in found:
        groups.setdefault(tuple(cell[name] for name in names), []).append(cell)
    return [
        {**dict(zip(names, group, strict=True)), **_summary(runs)} for group, runs in groups.items()
    ]


def _summary(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    said: dict[str, Any] = {"seeds": len(runs)}
    for name in ("average", "forgetting", "backward_transfer", "seconds", "memory_bytes"):
        mean, half = interval([float(r[name]) for r in runs])
        said |= {name: mean, f"{name}_half": half}
    matrices = [r["matrix"] for r in runs]
    said["matrix"] = [
        [sum(m[i][j] for m in matrices) / len(matrices) for j in range(len(row))]
        for i, row in enumerate(matrices[0])
    ]
    curves: dict[str, list[list[float]]] = {"average": [], "forgetting": []}
    for count in range(1, len(matrices[0]) + 1):
        parts = [experiment(m[:count]) for m in matrices]
        for name, curve in curves.items():
            if all(part[name] is not None for part in parts):
                mean, half = interval([part[name] for part in parts])
                curve.append([count, mean, half])
    said["curves"] = curves
    return said
