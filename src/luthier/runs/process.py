"""Which process is this, and is that one still alive? A pid alone is no answer: it is reused.

A process is told apart by its host (with its pid namespace: containers may share a name), the
host's boot, its pid and its start time, written as one text: ``host|boot|pid|start``.
"""

from __future__ import annotations

import os
import signal
import socket
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from luthier.environment import MACHINE


@dataclass(frozen=True)
class Process:
    """One process, for as long as the world exists."""

    host: str
    boot: str
    pid: int
    start: str

    def __str__(self) -> str:
        return f"{self.host}|{self.boot}|{self.pid}|{self.start}"

    @classmethod
    def parse(cls, text: str) -> Process:
        """The inverse of str(). Raises ValueError."""
        host, boot, pid, start = text.rsplit("|", 3)
        return cls(host, boot, int(pid), start)


def this_process() -> Process:
    """The calling process; not cached, because a fork changes the answer."""
    pid = os.getpid()
    return Process(_host(), _boot(), pid, _start(pid) or "?")


def is_dead(process: Process) -> bool | None:
    """Whether it is surely dead; None when it is on another host and cannot be known."""
    if process.host != _host():
        return None
    if process.boot != _boot():
        return True
    return _start(process.pid) != process.start


def rebooted(process: Process) -> bool:
    """Whether its machine, which is this one, was started anew since."""
    return process.host == _host() and process.boot != _boot()


def kill(process: Process) -> bool:
    """End another process of this machine for good, if it still is that one; whether it was."""
    if process.pid == os.getpid() or is_dead(process) is not False:
        return False
    try:
        os.kill(process.pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        return False
    return True


@cache
def _host() -> str:
    if MACHINE in os.environ:
        return os.environ[MACHINE].replace("|", "_")
    try:
        space = os.readlink("/proc/self/ns/pid").removeprefix("pid:")
    except OSError:
        space = ""
    return f"{socket.gethostname()}{space}".replace("|", "_")


@cache
def _boot() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        import psutil

        return str(int(psutil.boot_time()))


def _start(pid: int) -> str | None:
    """When a process started, in the system's own unit; None when it is dead or a zombie."""
    try:
        # The name, in parentheses, may hold anything: fields are counted from its end.
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return _start_elsewhere(pid) if not Path("/proc/self/stat").exists() else None
    return None if state in "ZXx" else fields[18]


def _start_elsewhere(pid: int) -> str | None:
    import psutil

    try:
        process = psutil.Process(pid)
        if process.status() == psutil.STATUS_ZOMBIE:
            return None
        return f"{process.create_time():.2f}"
    except psutil.NoSuchProcess:
        return None
