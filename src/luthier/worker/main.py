"""The command line of a worker process: ``luthier worker`` and ``python -m luthier.worker``."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence

from luthier.errors import LuthierError
from luthier.runs.leases import LEASE_S, MAX_CRASHES


def main(argv: Sequence[str] | None = None) -> int:
    """Execute the runs of a home until stopped; the exit code.

    SIGTERM and SIGINT stop it within five seconds: runs at work are saved and given back.
    """
    given = _parser().parse_args(argv)
    # Read when torch loads OpenMP. Its threads spin while they wait, by default for so long that
    # where others want the cores too they mostly spin; without spinning, short operations wait
    # for threads to wake. About half a millisecond is nearly the best of both: docs/speed.md.
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    from luthier.runs.connection import Home

    try:
        home = Home(given.home, given.store)
        if given.attempt:
            return _attempt(home, given)
        return _supervise(home, given)
    except LuthierError as error:
        if given.json:
            print(json.dumps(error.problem()))
        else:
            print(error, file=sys.stderr)
        return error.exit_code


def _supervise(home: object, given: argparse.Namespace) -> int:
    from luthier.runs.connection import Home
    from luthier.worker.supervisor import Orders, Supervisor

    assert isinstance(home, Home)
    orders = Orders(
        once=given.once,
        idle_exit_s=given.idle_exit_s,
        concurrency=given.concurrency,
        lease_s=given.lease_s,
        max_crashes=given.max_crashes,
        engine=given.engine,
        spawn=given.spawn,
        lean=given.lean,
        as_json=given.json,
        lock_descriptor=given.lock_descriptor,
    )
    if given.devices:
        orders.devices = tuple(given.devices.split(","))
    return Supervisor(home, orders).run()


def _attempt(home: object, given: argparse.Namespace) -> int:
    from luthier.runs.connection import Home
    from luthier.worker.attempt import Terms, attempt

    assert isinstance(home, Home)
    terms = Terms(
        devices=tuple((given.devices or "cpu").split(",")),
        worker_id=given.worker_id,
        lease_s=given.lease_s,
        engine=given.engine,
        threads=given.threads,
        max_crashes=given.max_crashes,
        kind=given.kind,
    )
    return attempt(home, terms)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="luthier worker", description=main.__doc__)
    add = parser.add_argument
    add("--home", help="folder or database URL; default $LUTHIER_HOME, else ~/.luthier")
    add("--store", help="folder of artifacts and runs, when --home is a database URL")
    add("--once", action="store_true", help="leave when the queue is empty")
    add("--idle-exit-s", type=_positive, help="leave after so many seconds without work")
    add("--concurrency", type=_count, default=1, help="how many runs at a time")
    add("--lease-s", type=_positive, default=LEASE_S, help="a silent worker loses its run")
    add("--max-crashes", type=_count, default=MAX_CRASHES, help="then a run is quarantined")
    add("--spawn", action="store_true", help="start each run in a cold process, without fork")
    add("--json", action="store_true", help="say what it does in JSON, a line each, on stdout")
    # Not for users: how the embedded worker and tests start one.
    for name, kind in (
        *(("lock-descriptor", int), ("worker-id", str)),
        *(("threads", int), ("kind", str)),
    ):
        add(f"--{name}", type=kind, help=argparse.SUPPRESS)
    add("--engine", default="luthier.engine.run", help=argparse.SUPPRESS)
    add("--devices", help=argparse.SUPPRESS)
    add("--lean", action="store_true", help=argparse.SUPPRESS)
    add("--attempt", action="store_true", help=argparse.SUPPRESS)
    return parser


def _positive(text: str) -> float:
    value = float(text)
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError("must be zero or more")
    return value


def _count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("must be one or more")
    return value
