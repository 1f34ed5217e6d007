"""A fork server: torch is imported once, and every process of a test is a fork of that.

A cold worker takes seconds to start, a forked one milliseconds: that is what makes a thousand
kills fit into minutes. The server is single-threaded and opens no database.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import traceback
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from types import TracebackType
from typing import Any

from luthier.environment import WORKER


class Forked:
    """A process that was forked by the server."""

    def __init__(self, server: ForkServer, pid: int) -> None:
        self.server, self.pid = server, pid
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """Its exit code (minus the number of the signal that killed it); None while it lives."""
        if self.returncode is None:
            self.returncode = self.server._ask({"poll": self.pid})
        return self.returncode

    def wait(self, deadline_s: float = 60) -> int:
        """Its exit code. Raises AssertionError when it does not end in time."""
        from luthier.testing.waiting import until

        until(lambda: self.poll() is not None, deadline_s)
        assert self.returncode is not None
        return self.returncode

    def signal(self, number: signal.Signals) -> None:
        """Send a signal, unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)


class ForkServer:
    """Runs ``module:function`` in forks. A context manager; what still lives is killed at its end.

    preload: modules that every fork shall find imported. source: a folder to import luthier
    from, instead of the installed one.
    """

    def __init__(
        self,
        preload: Sequence[str] = ("luthier.testing.toy_engine", "torch._dynamo"),
        source: Path | None = None,
    ) -> None:
        environment = dict(os.environ) | {"OMP_NUM_THREADS": "1", WORKER: "none"}
        if source is not None:
            environment["PYTHONPATH"] = str(source)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "luthier.testing.forkserver", *preload],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        self._forked: list[Forked] = []
        assert self._ask({}) == "ready"

    def call(
        self,
        function: str,
        *arguments: Any,
        env: Mapping[str, str] | None = None,
        output: Path | None = None,
    ) -> Forked:
        """Fork, and call ``module:function`` with JSON arguments. What it returns, if it is a
        number, is the exit code. output: a file for its standard output and error."""
        words = {"call": function, "arguments": arguments, "env": dict(env or {})}
        pid = self._ask(words | {"output": str(output or os.devnull)})
        self._forked.append(Forked(self, pid))
        return self._forked[-1]

    def _ask(self, words: dict[str, Any]) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(words) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def __enter__(self) -> ForkServer:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for forked in self._forked:
            if forked.returncode is None:
                forked.signal(signal.SIGKILL)
        self._process.communicate(timeout=30)


def _serve(preload: Sequence[str]) -> None:
    for module in preload:
        import_module(module)
    for line in sys.stdin:
        words = json.loads(line)
        answer: Any = "ready"
        if "call" in words:
            answer = _fork(words)
        elif "poll" in words:
            pid, status = os.waitpid(words["poll"], os.WNOHANG)
            answer = os.waitstatus_to_exitcode(status) if pid else None
        print(json.dumps(answer), flush=True)


def _fork(words: Mapping[str, Any]) -> int:
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        output = os.open(words["output"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        for descriptor, target in ((os.open(os.devnull, os.O_RDONLY), 0), (output, 1), (output, 2)):
            os.dup2(descriptor, target)
        os.environ.update(words["env"])
        module, _, name = words["call"].partition(":")
        found = getattr(import_module(module), name)(*words["arguments"])
        code = found if isinstance(found, int) else 0
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    _serve(sys.argv[1:])
