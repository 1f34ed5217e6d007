"""Kills at random instants: of submitters, of workers, and of the runs' own processes."""

from __future__ import annotations

import os
import random
import signal
import time
from collections import Counter
from pathlib import Path

from luthier.models.figures import FILE
from luthier.runs.client import Run
from luthier.runs.connection import Home
from luthier.runs.process import Process
from luthier.spec import JobSpec
from luthier.store.atomic import write_bytes
from luthier.testing.durability.jobs import Jobs, faults, result
from luthier.testing.durability.scoreboard import Score
from luthier.testing.forkserver import Forked, ForkServer
from luthier.testing.waiting import until

_WORKERS = 2
_QUEUED = 4  # there is always something to be lost


class Storm:
    """A home in which processes die all the time."""

    def __init__(self, folder: Path, jobs: Jobs, forks: ForkServer, seed: int) -> None:
        self.home = home_beside(folder / "calm", folder / "storm")
        self.jobs, self.forks, self.folder = jobs, forks, folder
        self.random = random.Random(seed)
        self.workers: list[Forked] = []
        self.submitters: dict[str, Forked] = {}
        self.keys = 0
        self.killed: Counter[str] = Counter()
        self.acknowledged = folder / "acknowledged"
        self.acknowledged.touch()

    def rage(self, kills: int, pause_s: float) -> None:
        """Kill so many processes, at random. A run dies up to ``pause_s`` after it was seen."""
        while self.killed.total() < kills:
            self._replenish()
            time.sleep(self.random.random() * 0.05)
            self._kill_one(pause_s)

    def calm(self, deadline_s: float) -> None:
        """Let everything that was promised come to its end."""
        while self.submitters:
            self._replenish(more=False)
        until(self._all_ended, deadline_s)
        for worker in self.workers:
            worker.signal(signal.SIGTERM)
        for worker in self.workers:
            worker.wait()

    def _all_ended(self) -> bool:
        self._replenish(more=False)
        waiting = self.home.ledger.runs(status="CREATED", size=1)
        return not waiting and not self.home.ledger.runs(status="STARTED", size=1)

    def _replenish(self, more: bool = True) -> None:
        self.workers = [w for w in self.workers if w.poll() is None]
        while len(self.workers) < _WORKERS:
            # Kills are no fault of the runs': they are not quarantined here.
            self.workers.append(
                self.forks.call(
                    "luthier.testing.durability.actors:work",
                    *(self.home.place, self.jobs.engine, "--max-crashes", "1000000"),
                    output=self.folder / "worker.log",
                )
            )
        for key, process in list(self.submitters.items()):
            if process.poll() is not None:
                del self.submitters[key]
                if process.returncode != 0:  # a client whose submit failed tries again
                    self._submit(key)
        if more and not self.submitters and self.home.ledger.waiting(("cpu",)) < _QUEUED:
            self.keys += 1
            self._submit(f"key-{self.keys}")

    def _submit(self, key: str) -> None:
        self.submitters[key] = self.forks.call(
            "luthier.testing.durability.actors:submit",
            *(self.home.place, key, self.spec(key).canonical(), str(self.acknowledged)),
            output=self.folder / "submit.log",
        )

    def spec(self, key: str) -> JobSpec:
        """The job that belongs to a key."""
        return self.jobs.specs[int(key.partition("-")[2]) % len(self.jobs.specs)]

    def _kill_one(self, pause_s: float) -> None:
        """Kill one process of a kind that is drawn first: mostly those that train."""
        kind = self.random.choices(["run", "submitter", "worker"], [6, 2, 2])[0]
        if kind == "submitter" and not self.submitters:
            self.keys += 1
            self._submit(f"key-{self.keys}")
            time.sleep(self.random.random() * 0.1)  # a submit takes about so long
        pids = self._pids(kind)
        if kind == "run":
            pids = self._wait_for_runs()
            time.sleep(self.random.random() * pause_s)
        if not pids:
            return  # the next draw will find one
        try:
            os.kill(self.random.choice(pids), signal.SIGKILL)
        except ProcessLookupError:
            return  # it ended by itself
        self.killed[kind] += 1

    def _wait_for_runs(self) -> list[int]:
        """The processes that train, as soon as there is one; none after two seconds."""
        end = time.monotonic() + 2
        while not (pids := self._pids("run")) and time.monotonic() < end:
            time.sleep(0.005)
        return pids

    def _pids(self, kind: str) -> list[int]:
        if kind == "run":
            return [Process.parse(r.holder).pid for r in self.home.ledger.held() if r.holder]
        processes = self.workers if kind == "worker" else self.submitters.values()
        return [process.pid for process in processes if process.poll() is None]


def kill_at_random(
    folder: Path, jobs: Jobs, forks: ForkServer, kills: int, *, pause_s: float, seed: int = 0
) -> tuple[Score, list[str]]:
    """Kill so many processes; what was promised must be there, once, and equal to the bit."""
    begun = time.monotonic()
    expected = undisturbed(folder / "calm", jobs, forks)
    storm = Storm(folder, jobs, forks, seed)
    storm.rage(kills, pause_s)
    storm.calm(deadline_s=600)
    wrong = []
    promised = dict(line.split() for line in storm.acknowledged.read_text().splitlines())
    records = []
    page = 1
    while found := storm.home.ledger.runs(page=page, size=200):
        records += found
        page += 1
    by_key = Counter(r.key for r in records)
    wrong += [f"key {key} has {count} runs" for key, count in by_key.items() if count != 1]
    known = {r.id for r in records}
    wrong += [f"run {run_id} was lost" for run_id in promised.values() if run_id not in known]
    for record in records:
        assert record.key is not None
        spec_id = storm.spec(record.key).id
        wrong += faults(storm.home, Run(storm.home, record.id), expected[spec_id])
    attempts = [r.attempt for r in records]
    facts = (
        f"{len(records)} runs, {sum(a > 1 for a in attempts)} of them interrupted, up to "
        f"{max(attempts)} attempts; killed: "
        + ", ".join(f"{count} {kind}s" for kind, count in sorted(storm.killed.items()))
    )
    engine = "the real engine" if "toy" not in jobs.engine else "a stand-in engine"
    promise = f"kill -9 at random instants, {engine}: none lost, none twice, equal bit for bit"
    score = Score(promise, storm.killed.total(), len(wrong), time.monotonic() - begun, facts)
    return score, wrong


def home_beside(calm: Path, folder: Path) -> Home:
    """A new home on the machine of the undisturbed one: which arithmetic is the fastest there is
    measured once a home, and where two are nearly as fast another time may say otherwise."""
    home, measured = Home(folder), calm / "home" / "cache" / FILE
    if measured.exists():
        write_bytes(home.cache / FILE, measured.read_bytes())
    return home


def undisturbed(folder: Path, jobs: Jobs, forks: ForkServer) -> dict[str, tuple[str, list[float]]]:
    """What each job gives when nothing happens to it, by the id of its spec."""
    folder.mkdir(parents=True, exist_ok=True)
    home = Home(folder / "home")
    runs = [Run(home, home.ledger.submit(spec).id) for spec in jobs.specs]
    worker = forks.call(
        "luthier.testing.durability.actors:work",
        *(home.place, jobs.engine, "--once"),
        output=folder / "worker.log",
    )
    if worker.wait(600) != 0:
        raise AssertionError((folder / "worker.log").read_text())
    for run in runs:
        if run.status()["status"] != "FINISHED":
            raise AssertionError(f"the undisturbed run failed:\n{run.logs()}")
    return {run.record().spec_id: result(run) for run in runs}
