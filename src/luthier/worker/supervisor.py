"""The worker: warm, single-threaded, and never itself at risk. It forks a child for each run.

The libraries that take seconds to import are loaded once, while there is nothing to do; a
fork of the warm process starts training at once. Nothing that can crash runs in here.
"""

from __future__ import annotations

import gc
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from importlib import import_module
from multiprocessing import cpu_count
from typing import NoReturn

from luthier.errors import LeaseLost, LuthierError
from luthier.runs.connection import Home
from luthier.runs.leases import LEASE_S, MAX_CRASHES
from luthier.runs.process import Process, kill, this_process
from luthier.worker.attempt import NOTHING, Terms, attempt
from luthier.worker.devices import guessed_devices, torch_devices
from luthier.worker.signals import Signals

#: What takes seconds to import, and every run needs.
HEAVY = ("torch", "transformers", "sentence_transformers")
#: What the first optimizer of a process imports otherwise: most of a second, once a run.
LATE = "torch._dynamo"
_TICK_S = 0.1
#: Searches that one worker leads at a time; each is a process that mostly waits.
_MOST_SEARCHES = 8
_REFRESH_S = 5.0
_REAP_S = 1.0
#: Children that save for longer than this after SIGTERM are ended; the heart of a child gives
#: up after 4 s, and the whole worker is gone within 5.
_STOP_GRACE_S = 4.6
#: A run that was cancelled longer ago than this and lives is ended from outside: its heart
#: must have stopped as well, as when C code holds the interpreter's lock.
_CANCEL_OVERDUE_S = 1.5


@dataclass
class Orders:
    """How a worker shall work. idle_exit_s None: until it is stopped. once: until the queue is
    empty. lock_descriptor: the inherited lock of the embedded worker."""

    once: bool = False
    idle_exit_s: float | None = None
    concurrency: int = 1
    lease_s: float = LEASE_S
    max_crashes: int = MAX_CRASHES
    engine: str = "luthier.engine.run"
    spawn: bool = False
    lean: bool = False  # load the engine only
    as_json: bool = False  # say what it does in JSON, a line each, on standard output
    lock_descriptor: int | None = None
    devices: tuple[str, ...] | None = None  # None: those that torch finds


class Supervisor:
    """Looks after the queue of a home until it is told to stop."""

    def __init__(self, home: Home, orders: Orders) -> None:
        self.home, self.orders = home, orders
        self._devices = orders.devices or guessed_devices()
        self._children: dict[int, subprocess.Popen[bytes] | None] = {}
        self._searches: set[int] = set()  # of the children, those that lead a search
        self._saving_warm = False
        self._worker_id = ""
        self._refreshed_at = self._reaped_at = 0.0
        self._busy_at = time.monotonic()

    def run(self) -> int:
        """Work until stopped; the exit code."""
        self._signals = Signals([signal.SIGTERM, signal.SIGINT, signal.SIGCHLD])
        kind = "standing" if self.orders.lock_descriptor is None else "embedded"
        self._worker_id = self.home.ledger.register_worker(
            this_process(), kind=kind, devices=self._devices
        )
        self._warm_up()
        self._say(f"ready (devices: {', '.join(self._devices)})")
        while True:
            if {signal.SIGTERM, signal.SIGINT} & self._signals.wait(_TICK_S):
                self._stop()
                return 0
            try:
                if self._tick():
                    return 0
            except LuthierError as error:
                self._say(f"the ledger failed, trying again: {error}")

    def _warm_up(self) -> None:
        for module in (*(() if self.orders.lean else HEAVY), self.orders.engine, LATE):
            import_module(module)
        self._devices = self.orders.devices or torch_devices()
        self.home.ledger.refresh_worker(self._worker_id, self._devices)
        gc.collect()
        gc.freeze()  # the collector would touch, and so copy, every inherited page

    def _warm_up_saving(self) -> None:
        """Import what the first saving of a model imports, DeepSpeed where it is installed: two
        seconds that each trial of a search would take anew."""
        if not self.orders.lean and not self._saving_warm:
            import torch
            from accelerate.utils.other import extract_model_from_parallel

            extract_model_from_parallel(torch.nn.Identity())
            gc.freeze()
        self._saving_warm = True

    def _tick(self) -> bool:
        """One look around; whether it is time to leave."""
        causes = self._bury()
        now = time.monotonic()
        if causes or now - self._reaped_at >= _REAP_S:
            self._reaped_at = now
            taken = self.home.ledger.reap(self.orders.max_crashes, causes, self._children)
            for run in taken:
                self._say(f"took back {run.name}: {run.status} {run.reason}: {run.details}")
            self._end_overdue()
        if now - self._refreshed_at >= _REFRESH_S:
            self._refreshed_at = now
            self._refresh()
        self._start_children()
        if self._children:
            self._busy_at = now
            return False
        return self._may_leave(now)

    def _is_work_waiting(self) -> bool:
        return self.home.ledger.waiting(self._devices) > 0

    def _may_leave(self, now: float) -> bool:
        idle_exit_s = 0.0 if self.orders.once else self.orders.idle_exit_s
        if idle_exit_s is None or now - self._busy_at < idle_exit_s or self._is_work_waiting():
            return False
        # First give up the place, then look once more: who submits puts the run in the queue
        # first and looks for a worker afterwards, so one of us two sees the other.
        self.home.ledger.forget_worker(self._worker_id)
        self._unlock()
        if not self._is_work_waiting():
            return True
        if self._lock_again():
            self._refresh()
            return False
        return True

    def _refresh(self) -> None:
        ledger = self.home.ledger
        if not ledger.refresh_worker(self._worker_id):
            kind = "standing" if self.orders.lock_descriptor is None else "embedded"
            self._worker_id = ledger.register_worker(
                this_process(), kind=kind, devices=self._devices
            )
        ledger.forget_dead_workers()

    # Children

    def _start_children(self) -> None:
        """A child for a run that waits, where there is room. Leading a search takes none: it
        waits for its trials, which take the room."""
        ledger, trainings = self.home.ledger, len(self._children) - len(self._searches)
        # Ten times a second, also while a training has all the room: then nothing is asked.
        may = self.orders.lock_descriptor is not None or trainings < self.orders.concurrency
        if may and ledger.waiting(self._devices, "training") and trainings < self._room():
            self._start_child("training")
        if len(self._searches) < _MOST_SEARCHES and ledger.waiting(self._devices, "search"):
            self._warm_up_saving()
            self._searches.add(self._start_child("search"))

    def _room(self) -> int:
        """How many runs at a time. A worker that started by itself makes room for as many
        trials as their searches want; of one that somebody started, that somebody says."""
        if self.orders.lock_descriptor is None:
            return self.orders.concurrency
        return max(self.orders.concurrency, self.home.ledger.trials_to_run())

    def _start_child(self, kind: str) -> int:
        terms = Terms(
            devices=self._devices,
            worker_id=self._worker_id,
            lease_s=self.orders.lease_s,
            engine=self.orders.engine,
            threads=max(1, cpu_count() // self.orders.concurrency)
            if self.orders.concurrency > 1
            else None,
            max_crashes=self.orders.max_crashes,
            kind=kind,
        )
        if self.orders.spawn or not _can_fork():
            child = _spawn(self.home, terms)
            self._children[child.pid] = child
            return child.pid
        self.home.close()  # a database connection must not be shared with a child
        sys.stdout.flush()
        sys.stderr.flush()
        pid = os.fork()
        if pid == 0:
            self._be_child(terms)
        self._children[pid] = None
        return pid

    def _be_child(self, terms: Terms) -> NoReturn:
        code = 1
        try:
            if self.orders.lock_descriptor is not None:
                os.close(self.orders.lock_descriptor)  # the lock is the worker's, not the run's
            code = attempt(self.home, terms)
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)  # not the parent's exit handlers

    def _bury(self) -> dict[int, str]:
        """Collect the children that ended; how those died that did not end well."""
        causes: dict[int, str] = {}
        for pid, child in list(self._children.items()):
            if child is not None:
                code = child.poll()
                if code is None:
                    continue
            else:
                found, status = os.waitpid(pid, os.WNOHANG)
                if not found:
                    continue
                code = os.waitstatus_to_exitcode(status)
            del self._children[pid]
            self._searches.discard(pid)
            if code not in (0, NOTHING):
                causes[pid] = _cause(code)
                self._say(f"process {pid} {causes[pid]}")
        return causes

    def _end_overdue(self) -> None:
        for run_id, epoch, holder in self.home.ledger.overdue_cancels(_CANCEL_OVERDUE_S):
            if kill(Process.parse(holder)):
                try:
                    self.home.ledger.confirm_cancel(run_id, epoch)
                except LeaseLost:
                    continue  # it had ended by itself in this moment

    def _stop(self) -> None:
        """Ask the children to save and leave; end those that do not."""
        self._say("stopping")
        deadline = time.monotonic() + _STOP_GRACE_S
        for pid in self._children:
            _kill(pid, signal.SIGTERM)
        while self._children and time.monotonic() < deadline:
            self._bury()
            self._signals.wait(0.05)
        try:
            for run in self.home.ledger.held() if self._children else []:
                if run.holder and Process.parse(run.holder).pid in self._children:
                    _kill(Process.parse(run.holder).pid, signal.SIGKILL)
                    self.home.ledger.release(run.id, run.epoch, "interrupted")
            self.home.ledger.forget_worker(self._worker_id)
        except LuthierError as error:
            self._say(f"the ledger failed: {error}")
        for pid in self._children:
            _kill(pid, signal.SIGKILL)

    # The lock of the embedded worker

    def _unlock(self) -> None:
        if self.orders.lock_descriptor is not None:
            import fcntl

            fcntl.flock(self.orders.lock_descriptor, fcntl.LOCK_UN)

    def _lock_again(self) -> bool:
        if self.orders.lock_descriptor is None:
            return True
        import fcntl

        try:
            fcntl.flock(self.orders.lock_descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def _say(self, text: str) -> None:
        if self.orders.as_json:
            said = {"time": time.time(), "worker": os.getpid(), "message": text}
            print(json.dumps(said), flush=True)
            return
        at = time.strftime("%Y-%m-%d %H:%M:%S")
        print(f"{at} worker {os.getpid()}: {text}", file=sys.stderr, flush=True)


def _can_fork() -> bool:
    if not hasattr(os, "fork") or sys.platform == "darwin":
        return False
    torch = sys.modules.get("torch")
    return torch is None or not torch.cuda.is_initialized()


def _spawn(home: Home, terms: Terms) -> subprocess.Popen[bytes]:
    """A cold child, where the process cannot be forked."""
    words = [
        *(sys.executable, "-m", "luthier.worker", "--attempt"),
        *("--home", home.place, "--store", str(home.path)),
        *("--devices", ",".join(terms.devices), "--lease-s", str(terms.lease_s)),
        *("--engine", terms.engine, "--max-crashes", str(terms.max_crashes)),
        *(("--kind", terms.kind) if terms.kind else ()),
    ]
    words += ["--worker-id", terms.worker_id] if terms.worker_id else []
    words += ["--threads", str(terms.threads)] if terms.threads else []
    return subprocess.Popen(words)


def _cause(code: int) -> str:
    if code >= 0:
        return f"ended with exit code {code}"
    name = signal.Signals(-code).name
    return f"was killed by {name}" + (" (perhaps out of memory)" if name == "SIGKILL" else "")


def _kill(pid: int, number: signal.Signals) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return  # it ended in this moment
