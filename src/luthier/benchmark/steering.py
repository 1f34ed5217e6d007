"""The pipe over which a side is let run so many steps, and stands still until it may go on.

One JSON object a line. The parent says ``{"steps": k, "reset_peak": bool}``, or ``{}`` to end;
the side says ``begun`` when its first step begins, and after each ``k`` steps a ``period``.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from luthier.errors import LuthierError

_LAST_LINES = 15
_END_WITHIN_S = 60


@dataclass(frozen=True)
class Period:
    """What a side did while it was let run. at: when it ended (time.time). peak_bytes: the most
    resident memory since the last reset."""

    seconds: float
    cpu_seconds: float
    losses: list[float]
    peak_bytes: int
    at: float


class Gate:
    """The side's end of the pipe."""

    def __init__(self, descriptor: int) -> None:
        self._pipe = socket.socket(fileno=descriptor).makefile("rw", encoding="utf-8")
        self._allowed = 0
        self._losses: list[float] = []
        self._begun = self._ended = False

    def open(self) -> None:
        """Everything is imported and read: wait for the first word. The clock starts then."""
        self._wait()

    def begin(self) -> None:
        """The first step begins. Said once; later calls say nothing."""
        if not self._begun:
            self._begun = True
            self._say({"said": "begun", "at": time.time()})

    def note(self, loss: float) -> None:
        """A step has been made."""
        self._losses.append(loss)

    def go_on(self) -> bool:
        """Between two steps: whether to make another one. Stands still when it is the others'
        turn."""
        if not self._ended and len(self._losses) >= self._allowed:
            self._report()
            self._wait()
        return not self._ended

    def _report(self) -> None:
        period = Period(
            time.perf_counter() - self._started,
            time.process_time() - self._cpu,
            self._losses,
            peak_bytes(),
            time.time(),
        )
        self._say({"said": "period", **vars(period)})

    def _wait(self) -> None:
        line = _line(self._pipe)
        word = json.loads(line) if line else {}  # who steered us is gone
        self._ended = "steps" not in word
        self._allowed, self._losses = word.get("steps", 0), []
        if word.get("reset_peak"):
            reset_peak()
        self._started, self._cpu = time.perf_counter(), time.process_time()

    def _say(self, word: Mapping[str, Any]) -> None:
        with contextlib.suppress(ConnectionError):  # nobody listens: the next wait will tell
            self._pipe.write(json.dumps(word) + "\n")
            self._pipe.flush()


def _line(pipe: TextIO) -> str:
    """The next line, or nothing when the other end is gone."""
    try:
        return pipe.readline()
    except ConnectionResetError:  # it went with words of ours unread
        return ""


def reset_peak() -> None:
    """Forget the most memory that this process had. Linux only; elsewhere it stays."""
    if sys.platform == "linux":
        Path("/proc/self/clear_refs").write_text("5")  # proc(5): resets the peak resident set


def peak_bytes() -> int:
    """The most resident memory of this process since the last reset."""
    if sys.platform == "linux":
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    import resource

    unit = 1 if sys.platform == "darwin" else 1024  # getrusage(2): kilobytes, but bytes on macOS
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


class SideFailed(LuthierError):
    """A side of the race ended before it should."""

    code = "benchmark_failed"


class Side:
    """The parent's end: a side as a process of its own, in a session of its own."""

    def __init__(
        self, name: str, module: str, words: list[str], environment: Mapping[str, str], log: Path
    ) -> None:
        self.name, self._log = name, log
        self.begun_at: float | None = None
        ours, theirs = socket.socketpair()
        self.started_at = time.time()
        with ours, theirs, open(log, "wb") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-m", module, *words, str(theirs.fileno())],
                env={**os.environ, **environment},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                pass_fds=(theirs.fileno(),),
                start_new_session=True,
            )
            self._pipe = ours.makefile("rw", encoding="utf-8")

    def run(self, steps: int, *, reset_peak: bool = False) -> Period:
        """Let it run so many steps, and wait until it stands still. Raises SideFailed."""
        self._say({"steps": steps, "reset_peak": reset_peak})
        while True:
            line = _line(self._pipe)
            if not line:
                raise self._failed()
            word = json.loads(line)
            if word.pop("said") == "begun":
                self.begun_at = word["at"]
            else:
                return Period(**word)

    def end(self) -> None:
        """Tell it that this was all. Raises SideFailed when it does not end well."""
        self._say({})
        try:
            code = self._process.wait(_END_WITHIN_S)
        except subprocess.TimeoutExpired:
            raise self._failed() from None
        if code != 0:
            raise self._failed()

    def kill(self) -> None:
        """End it whatever it does; nothing when it has ended."""
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        self._pipe.close()

    def _say(self, word: Mapping[str, Any]) -> None:
        try:
            self._pipe.write(json.dumps(word) + "\n")
            self._pipe.flush()
        except ConnectionError:
            raise self._failed() from None

    def _failed(self) -> SideFailed:
        lines = self._log.read_text(encoding="utf-8", errors="replace").splitlines()
        said = "\n".join(lines[-_LAST_LINES:])
        return SideFailed(f"the side ended before it should; the last it said:\n{said}",
                          where=self.name)  # fmt: skip
