"""What the forked processes of the harness do. Each is called by name in a fork."""

from __future__ import annotations

import os
import signal

from luthier.runs.connection import Home
from luthier.runs.process import this_process
from luthier.spec import parse_spec
from luthier.testing.waiting import until


def claim_and_stop_locked(place: str) -> None:
    """Claim a run for no time at all, begin a write, and stop in the middle of it."""
    home = Home(place)
    claim = home.ledger.claim(this_process(), lease_s=0.5)
    assert claim is not None
    with home.ledger.database.write():
        os.kill(os.getpid(), signal.SIGSTOP)


def submit(place: str, key: str, spec: str, acknowledged: str) -> None:
    """Submit a job under a key; its id goes to a file when, and only when, it was promised."""
    run = Home(place).ledger.submit(parse_spec(spec), idempotency_key=key)
    with open(acknowledged, "a", encoding="utf-8") as file:
        file.write(f"{key} {run.id}\n")


def submit_many(place: str, keys: list[str], spec: str, answers: str, go: str) -> None:
    """Wait for a file, then submit all keys; the ids go to a file of one's own."""
    home = Home(place)
    until(lambda: os.path.exists(go))
    ids = [home.ledger.submit(parse_spec(spec), idempotency_key=key).id for key in keys]
    with open(answers, "w", encoding="utf-8") as file:
        file.write(" ".join(ids))


def work(place: str, engine: str, *words: str) -> int:
    """A worker process."""
    from luthier.worker.main import main

    return main(["--home", place, "--engine", engine, "--lean", "--devices", "cpu", *words])
