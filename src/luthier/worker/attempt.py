"""One attempt at one run, in a process of its own: claim, execute, publish, finish."""

from __future__ import annotations

import faulthandler
import os
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable, Collection
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from luthier.engine.control import Cancelled, Interrupted
from luthier.errors import DiskFull, LeaseLost, LuthierError, OutOfMemory, StoreError
from luthier.models.allocator import bound_primitives, keep_freed_memory
from luthier.runs.connection import Home
from luthier.runs.leases import LEASE_S, MAX_CRASHES
from luthier.runs.process import this_process
from luthier.runs.records import Claim
from luthier.store.atomic import FULL, point, sweep
from luthier.store.bundle import sealed_bundle
from luthier.worker.baselines import keep_baseline, recall_baseline
from luthier.worker.heart import Heart
from luthier.worker.listeners import audience
from luthier.worker.pausing import Pause, threads_of_trial
from luthier.worker.signals import Signals
from luthier.worker.teller import Teller

#: Exit code of an attempt that found nothing to do.
NOTHING = 3
#: How often, with a second between, it is tried to write down how a run ended.
CONCLUDE_ATTEMPTS = 300
#: What stays of a run's folder when it is finished: the artifact has all the rest.
KEPT = {"console.log", "epochs", "search.json", "search.html"}


@dataclass(frozen=True)
class Terms:
    """Under which terms an attempt works. engine: the module with ``run`` and ``Place``.
    max_crashes: after how many a search takes a trial of it for quarantined."""

    devices: Collection[str] = ("cpu",)
    worker_id: str | None = None
    lease_s: float = LEASE_S
    engine: str = "luthier.engine.run"
    threads: int | None = None
    run_id: str | None = None
    max_crashes: int = MAX_CRASHES
    kind: str | None = None  # training or search; None: whatever waits


def attempt(home: Home, terms: Terms) -> int:
    """Claim a run and work on it until it ends or is stopped; the process's exit code."""
    signals = Signals([signal.SIGTERM, signal.SIGINT])
    claim = home.ledger.claim(
        this_process(),
        devices=terms.devices,
        worker_id=terms.worker_id,
        lease_s=terms.lease_s,
        run_id=terms.run_id,
        kind=terms.kind,
    )
    if claim is None:
        return NOTHING
    point("run.claimed")
    keep_freed_memory()
    bound_primitives()
    run = claim.run
    heart = Heart(home.ledger, run.id, claim.epoch, terms.lease_s, signals)
    teller = Teller(home.ledger, run.id, claim.epoch)
    try:
        _work(home, claim, terms, heart, teller)
    except LeaseLost as error:
        print(f"nothing was published: {error}", file=sys.stderr)
    return 0


def _work(home: Home, claim: Claim, terms: Terms, heart: Heart, teller: Teller) -> None:
    """Execute the run and tell the ledger how it ended. Raises LeaseLost."""
    ledger, run_id, epoch = home.ledger, claim.run.id, claim.epoch
    pause = Pause(home, claim.run, heart.control)
    try:
        artifact_id, metrics = _execute(home, claim, terms, pause, teller)
    except Cancelled:
        _conclude(heart, teller, lambda: ledger.confirm_cancel(run_id, epoch))
    except Interrupted:
        put_aside = ledger.pause if pause.reached else ledger.release
        _conclude(heart, teller, lambda: put_aside(run_id, epoch))
    except Exception as error:
        reason, message, hint = meaning(error)
        teller(
            "log",
            {
                "level": "error",
                "message": message,
                "code": reason,
                "hint": hint,
                "traceback": traceback.format_exc(),
            },
        )
        _conclude(heart, teller, lambda: ledger.fail(run_id, epoch, reason, message))
    else:
        point("run.published")
        _conclude(heart, teller, lambda: ledger.finish(run_id, epoch, artifact_id, metrics))
        point("run.finished")
        _drop_all_but(home.run_folder(claim.run), KEPT)


def _conclude(heart: Heart, teller: Teller, verb: Callable[[], object]) -> None:
    """Say how the run ended; again and again while the ledger cannot be written, as on a full
    disk: the work is done, and the lease is kept. Raises LeaseLost."""
    heart.let_end()
    teller.end()
    try:
        for left in reversed(range(CONCLUDE_ATTEMPTS)):
            try:
                verb()
            except StoreError as error:
                if not left or not error.retryable:
                    raise
                print(f"the end could not be written, trying again: {error}", file=sys.stderr)
                time.sleep(1)
            else:
                return
    finally:
        heart.stop()


def _execute(
    home: Home, claim: Claim, terms: Terms, pause: Pause, teller: Teller
) -> tuple[str, dict[str, Any]]:
    """Run the engine, or lead the search; the published artifact's id and the metrics."""
    run = claim.run
    folder = home.run_folder(run)
    folder.mkdir(parents=True, exist_ok=True)
    _drop_older(home.path / "runs" / run.id, run.generation)
    _redirect_output(folder / "console.log")
    for path in [folder, *(p for p in folder.iterdir() if p.is_dir())]:
        sweep(path)
    if run.kind == "search":
        from luthier.worker.leading import lead

        return lead(home, claim, teller, pause.control, terms.max_crashes)
    threads = terms.threads or threads_of_trial(home, run)
    if threads:
        import torch

        torch.set_num_threads(threads)
    engine = import_module(terms.engine)
    place = engine.Place(
        folder=folder, cache=home.cache, blobs=home.store.blob, artifacts=home.store.artifact
    )
    recall_baseline(home, run)
    try:
        with audience(pause.listening(teller), run) as listeners:
            outcome = engine.run(run.spec, place, listeners, pause.control)
    finally:
        keep_baseline(home, run)
    point("run.outcome")
    artifact_id = home.store.publish(sealed_bundle(outcome.folder), run.public)
    return artifact_id, dict(outcome.metrics)


def _drop_older(folder: Path, generation: int) -> None:
    """Remove what attempts from before a retry left behind."""
    if generation:
        _drop_all_but(folder, {f"retry-{generation}"})


def _drop_all_but(folder: Path, kept: Collection[str]) -> None:
    for path in folder.iterdir():
        if path.name in kept:
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _redirect_output(path: Path) -> None:
    """What libraries print, and where a segmentation fault happened, go beside the run."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    sys.stdout.flush()
    sys.stderr.flush()
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.close(descriptor)
    sys.stdout = os.fdopen(1, "w", buffering=1, closefd=False)
    sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)
    faulthandler.enable(file=2)


def meaning(error: BaseException) -> tuple[str, str, str | None]:
    """The reason code, the message and the hint of whatever ended a run."""
    if isinstance(error, LuthierError):
        where = f"{error.where}: " if error.where else ""
        return error.code, f"{where}{error.message}", error.hint
    if isinstance(error, OSError) and error.errno in FULL:
        return DiskFull.code, str(error), "free some space, then resume the run"
    if isinstance(error, OSError):
        return StoreError.code, f"{type(error).__name__}: {error}", "resume the run to try again"
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return OutOfMemory.code, str(error) or "out of memory", "use a smaller batch_size"
    return (
        "fault",
        f"{type(error).__name__}: {error}",
        "this is a fault in luthier or a library; the log has the traceback",
    )
