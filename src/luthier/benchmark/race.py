"""Let the sides run in turn, and collect what they say.

The sides are started one after the other, so that none is slowed by another's start, and in
each round they run the same rows, in an order that is turned round from one to the next.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from luthier.benchmark.cases import Case
from luthier.benchmark.facts import Load
from luthier.benchmark.steering import Period, Side
from luthier.benchmark.work import Job, Settings, Work, prepare

OURS = "luthier"
Say = Callable[[str], None]

_MODULES = {
    OURS: "engine",
    "sentence-transformers": "sentence_transformers_trainer",
    "sentence-transformers, tuned": "sentence_transformers_trainer",
    "transformers": "transformers_trainer",
}

#: What a side's process starts with. Ours: as luthier.worker sets it. Tuned: glibc keeps
#: freed memory instead of giving it back to the system and asking anew (mallopt(3)).
_ENVIRONMENTS = {
    OURS: {"GOMP_SPINCOUNT": "10000"},
    "sentence-transformers, tuned": {
        "MALLOC_TRIM_THRESHOLD_": str(4 << 30),
        "MALLOC_MMAP_THRESHOLD_": str(4 << 30),
    },
}


@dataclass
class Measured:
    """What one side did. start_s: from the start of the process to its first step, a process
    each. rounds: the periods of each round; one a round, but for whole trainings."""

    start_s: list[float] = field(default_factory=list)
    first_step_s: list[float] = field(default_factory=list)
    rounds: list[list[Period]] = field(default_factory=list)

    def begins_with(self, side: Side, first: Period) -> None:
        if side.begun_at is not None:
            self.start_s.append(side.begun_at - side.started_at)
        self.first_step_s.append(first.at - side.started_at)


@dataclass(frozen=True)
class Race:
    """A case that was run. loads: what each round asked of the model. cosine: the least
    between the vectors of luthier and of the peer, of an ``encode``."""

    work: Work
    sides: dict[str, Measured]
    loads: list[Load]
    cosine: float | None = None


def race(case: Case, settings: Settings, say: Say) -> Race:
    """Run a case. Raises Unavailable, SideFailed."""
    runners = {"steps": _steps, "encode": _steps, "whole": _whole, "start": _start}
    if case.head_only:
        settings = replace(settings, model=_with_head(settings))
    work = prepare(case, settings)
    names = (OURS, *work.case.peers)
    sides = {name: Measured() for name in names}
    cosine = runners[work.case.kind](work, sides, say)
    loads = list(work.loads())
    if work.case.kind == "whole" or case.alone:
        loads = [sum(loads, Load())] * len(sides[OURS].rounds)
    return Race(work, sides, loads, cosine)


def peak(threads: int, seconds: float = 0.8) -> dict[str, float | str]:
    """Operations a second of this machine's matmul, measured for so many seconds a shape; see
    ``sides.peak``."""
    done = subprocess.run(
        [sys.executable, "-m", "luthier.benchmark.sides.peak", str(threads), str(seconds)],
        env=os.environ | _threads(threads),
        check=True,
        stdout=subprocess.PIPE,
    )
    found: dict[str, float | str] = json.loads(done.stdout)
    return found


def _steps(work: Work, sides: dict[str, Measured], say: Say) -> float | None:
    if work.case.alone:
        _alone(work, sides, say)
        return None
    with _started(work, sides, "0") as running:
        for side in running.values() if work.at_once else ():
            side()
        for name, side in running.items():
            say(f"{work.case.name}: {name} starts and warms up")
            first = side().run(work.warmup)
            if not work.at_once:
                sides[name].begins_with(side(), first)
        for turn in range(work.turns):
            say(f"{work.case.name}: round {turn + 1} of {work.turns}")
            for name in _in_turn(list(running), turn):
                period = running[name]().run(work.steps_per_turn, reset_peak=turn == 0)
                sides[name].rounds.append([period])
        for side in running.values():
            side().end()
    return _least_cosine(work) if work.case.kind == "encode" else None


def _alone(work: Work, sides: dict[str, Measured], say: Say) -> None:
    """One side at a time is in memory."""
    for number in range(work.case.rounds):
        for name in _in_turn(list(sides), number):
            say(f"{work.case.name}: {name}, round {number + 1} of {work.case.rounds}")
            with _started(work, {name: sides[name]}, str(number)) as running:
                side = running[name]()
                sides[name].begins_with(side, side.run(work.warmup))
                sides[name].rounds.append([side.run(work.steps_per_turn, reset_peak=True)])
                side.end()


def _whole(work: Work, sides: dict[str, Measured], say: Say) -> None:
    for number in range(work.case.rounds):
        with _started(work, sides, str(number)) as running:
            for side in running.values():
                side()
            periods: dict[str, list[Period]] = {name: [] for name in running}
            for turn in range(work.turns):
                say(f"{work.case.name}: training {number + 1} of {work.case.rounds}, "
                    f"epoch {turn + 1} of {work.turns}")  # fmt: skip
                for name in _in_turn(list(running), number + turn):
                    periods[name].append(running[name]().run(work.steps_per_turn))
            for name, side in running.items():
                sides[name].rounds.append(periods[name])
                side().end()


def _start(work: Work, sides: dict[str, Measured], say: Say) -> None:
    for number in range(work.case.rounds):
        say(f"{work.case.name}: round {number + 1} of {work.case.rounds}")
        for name in _in_turn(list(sides), number):
            with _started(work, {name: sides[name]}, str(number)) as running:
                side = running[name]()
                period = side.run(1)
                sides[name].begins_with(side, period)
                sides[name].rounds.append([period])
                side.end()


def _in_turn(names: list[str], number: int) -> list[str]:
    return names if number % 2 == 0 else names[::-1]


@contextlib.contextmanager
def _started(
    work: Work, sides: dict[str, Measured], part: str
) -> Iterator[dict[str, Callable[[], Side]]]:
    """The sides, each started when it is first asked for; none is left running."""
    there: dict[str, Side] = {}

    def starter(name: str) -> Callable[[], Side]:
        def side() -> Side:
            if name not in there:
                there[name] = start_side(work.job, name, part)
            return there[name]

        return side

    try:
        yield {name: starter(name) for name in sides}
    finally:
        for side in there.values():
            side.kill()


def start_side(job: Job, name: str, part: str) -> Side:
    """A side's process, with a folder of its own under ``part`` of the job's scratch space."""
    scratch = Path(job.scratch) / part / _slug(name)
    scratch.mkdir(parents=True)
    job = replace(job, scratch=str(scratch), tuned=name.endswith("tuned"))
    words = [str(job.write(scratch / "job.json"))]
    module = _MODULES[name]
    if job.case.kind == "encode":
        module, words = "encoding", [*words, name]
    return Side(
        name,
        f"luthier.benchmark.sides.{module}",
        words,
        _threads(job.threads) | _ENVIRONMENTS.get(name, {}),
        scratch / "log",
    )


def _threads(count: int) -> dict[str, str]:
    number = str(count)
    return {
        "OMP_NUM_THREADS": number,
        "MKL_NUM_THREADS": number,
        "RAYON_NUM_THREADS": number,  # of the tokenizers
        "HF_HUB_OFFLINE": "1",
    }


def _slug(name: str) -> str:
    return name.replace(", ", "-")


def _with_head(settings: Settings) -> Path:
    folder = settings.work / "with-head"
    folder.parent.mkdir(parents=True, exist_ok=True)
    words = ["luthier.benchmark.sides.head", str(settings.model), str(folder)]
    subprocess.run(
        [sys.executable, "-m", *words], env=os.environ | _threads(settings.threads), check=True
    )
    return folder


def _least_cosine(work: Work) -> float:
    import numpy as np

    ours, theirs = (
        np.load(Path(work.job.scratch) / "0" / _slug(name) / "vectors.npy")
        for name in (OURS, work.case.peers[0])
    )
    lengths = np.linalg.norm(ours, axis=1) * np.linalg.norm(theirs, axis=1)
    return float(((ours * theirs).sum(1) / lengths).min())
