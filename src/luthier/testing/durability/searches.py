"""Kills at random instants while searches go on: of who leads them, of trials, of workers."""

from __future__ import annotations

import os
import random
import signal
import time
from collections import Counter
from pathlib import Path
from typing import Any

from luthier.runs.client import Run
from luthier.runs.connection import Home
from luthier.runs.process import Process
from luthier.search.summary import Trial, read_summary
from luthier.spec import JobSpec, parse_spec
from luthier.testing.durability.jobs import fingerprint, illegal_history
from luthier.testing.durability.scoreboard import Score
from luthier.testing.forkserver import Forked, ForkServer
from luthier.testing.toy_engine import toy_spec
from luthier.testing.waiting import until

_ENGINE = "luthier.testing.toy_engine"
_SPACE: dict[str, Any] = {
    "training.learning_rate": {"type": "float", "lower": 1e-4, "upper": 1.0, "log": True},
    "training.optim": {"type": "categorical", "categories": ["Adam", "SGD", "RMSprop"]},
}
#: So long a process of the drawn kind is waited for.
_SEEN_S = 10.0
#: Kills in one search, so that every kind of search sees some.
_EACH = 8
#: Instead of the weights of a trial that was not to be kept.
GIVEN_UP = "given up"
#: Searches of unlike kinds: one at a time, so that what comes next depends on what came before.
_KINDS: tuple[dict[str, Any], ...] = (
    {"algorithm": "tpe", "max_trials": 8},
    {"algorithm": "random", "pruner": "halving", "max_trials": 6},
    {"algorithm": "tpe", "pruner": "asha", "max_trials": 7},
    {"algorithm": "tpe", "max_trials": 8, "keep_best": 2},
)


def searches(step_ms: float = 5) -> list[JobSpec]:
    """A search of each kind over the stand-in engine."""
    base = toy_spec(8, step_ms=step_ms).model_dump(mode="json")
    base["training"]["eval_steps"] = 1
    common = {"space": _SPACE, "metrics": ["loss"]}
    return [parse_spec(base | {"search": common | kind}) for kind in _KINDS]


def outcome(home: Home, run: Run) -> tuple[list[dict[str, Any]], tuple[str, list[float]]]:
    """What a search found: each trial's values, end, scores and weights, and the best model."""

    def told(trial: Trial) -> dict[str, Any]:
        weights: tuple[str, list[float]] | str | None = None
        if trial.artifact_id is not None and home.store.was_given_up(trial.artifact_id):
            weights = GIVEN_UP
        elif trial.artifact_id is not None:
            weights = fingerprint(home.store.artifact(trial.artifact_id))
        return {
            "values": trial.values,
            "state": trial.state,
            "scores": trial.scores,
            "weights": weights,
        }

    best = fingerprint(home.store.artifact(run.artifact_id))
    return [told(trial) for trial in read_summary(home, run.id).trials], best


def kill_searches(
    folder: Path, forks: ForkServer, kills: int, *, pause_s: float, seed: int = 0
) -> tuple[Score, list[str]]:
    """Kill so many processes while searches go on. Each must end as the undisturbed one: the same
    points, the same trials finished and pruned, the same weights."""
    begun = time.monotonic()
    expected = _undisturbed(folder, forks)
    rng, killed, wrong = random.Random(seed), Counter[str](), list[str]()
    home = Home(folder / "storm")
    number, restarts = 0, 0
    workers: list[Forked] = []
    try:
        while killed.total() < kills:
            spec = searches()[number % len(_KINDS)]
            run = Run(home, home.ledger.submit(spec, name=f"search-{number}").id)
            number += 1
            most = min(kills, killed.total() + _EACH)
            while not run.record().ended:
                workers = _replenished(home, forks, workers, folder)
                if killed.total() < most:
                    _kill_one(home, run, workers, rng, killed, pause_s)
                else:
                    time.sleep(0.05)
            restarts += run.record().attempt - 1
            wrong += _faults(home, run, expected)
    finally:
        for worker in workers:
            worker.signal(signal.SIGTERM)
        for worker in workers:
            worker.wait()
        home.close()
    facts = f"{number} searches, taken up again {restarts} times; killed: " + ", ".join(
        f"{count} {kind}s" for kind, count in sorted(killed.items())
    )
    promise = (
        "kill -9 while searches go on: no finished trial lost, no trial twice, the same points, "
        "the same prunings, equal bit for bit"
    )
    score = Score(promise, killed.total(), len(wrong), time.monotonic() - begun, facts)
    return score, wrong


def _faults(home: Home, run: Run, expected: dict[str, Any]) -> list[str]:
    record = run.record()
    if record.status != "FINISHED":
        return [f"{record.name} is {record.status}: {record.details}"]
    wrong = []
    trials = home.ledger.trials(run.id)
    for trial in [run, *(Run(home, t.id) for t in trials)]:
        events, after = [], 0
        while page := trial.events(after):
            events += page
            after = page[-1].seq
        wrong += [f"{trial.name}: {fault}" for fault in illegal_history(events)]
    keys = Counter(t.key for t in trials)
    wrong += [f"{record.name} has {n} runs for {key}" for key, n in keys.items() if n != 1]
    if (found := outcome(home, run)) != expected[record.spec_id]:
        where = _difference(found, expected[record.spec_id])
        wrong.append(f"{record.name} differs from the undisturbed search: {where}")
    pruned = [t.id for t in trials if t.reason == "pruned"]
    kept = [run_id for run_id in pruned if (home.path / "runs" / run_id).exists()]
    return [*wrong, *(f"the pruned trial {run_id} kept its checkpoints" for run_id in kept)]


def _difference(found: Any, expected: Any) -> str:
    for number, (mine, theirs) in enumerate(zip(found[0], expected[0], strict=False)):
        for name in mine:
            if mine[name] != theirs[name]:
                return f"trial {number}, {name}: {mine[name]!r:.120} for {theirs[name]!r:.120}"
    return f"{len(found[0])} trials for {len(expected[0])}, or another best"


def _undisturbed(folder: Path, forks: ForkServer) -> dict[str, Any]:
    home = Home(folder / "calm")
    runs = [Run(home, home.ledger.submit(spec).id) for spec in searches()]
    worker = _worker(home, forks, folder, "--once")
    if worker.wait(300) != 0:
        raise AssertionError((folder / "worker.log").read_text())
    for run in runs:
        if run.status()["status"] != "FINISHED":
            raise AssertionError(f"the undisturbed search failed:\n{run.logs()}")
    return {run.record().spec_id: outcome(home, run) for run in runs}


def _worker(home: Home, forks: ForkServer, folder: Path, *words: str) -> Forked:
    return forks.call(
        "luthier.testing.durability.actors:work",
        *(home.place, _ENGINE, "--max-crashes", "1000000", *words),
        output=folder / "worker.log",
    )


def _replenished(
    home: Home, forks: ForkServer, workers: list[Forked], folder: Path
) -> list[Forked]:
    alive = [worker for worker in workers if worker.poll() is None]
    return alive if alive else [_worker(home, forks, folder)]


def _kill_one(
    home: Home,
    run: Run,
    workers: list[Forked],
    rng: random.Random,
    killed: Counter[str],
    pause_s: float,
) -> None:
    """Kill one process of a kind that is drawn first: who leads the search, a trial's, or the
    worker; up to ``pause_s`` after it was seen."""
    kind = rng.choices(["leader", "trial", "worker"], [5, 5, 1])[0]

    def pids() -> list[int]:
        if kind == "worker":
            return [worker.pid for worker in workers]
        wanted = "search" if kind == "leader" else "training"
        held = [r for r in home.ledger.held() if r.kind == wanted and r.holder]
        return [Process.parse(r.holder or "").pid for r in held]

    end = time.monotonic() + _SEEN_S
    while not pids() and time.monotonic() < end and not run.record().ended:
        time.sleep(0.01)
    time.sleep(rng.random() * pause_s)
    found = pids()
    if not found:
        return  # it ended; the next draw will find one
    try:
        os.kill(rng.choice(found), signal.SIGKILL)
    except ProcessLookupError:
        return  # it ended by itself
    killed[kind] += 1
    if kind == "worker":
        until(lambda: any(w.poll() is not None for w in workers))
