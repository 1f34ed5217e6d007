"""Run a pipeline here: each step a process of its own, its outputs in a work folder.

``WORK/STEP/OUTPUT`` is an output. A step whose command and inputs are as they were, and whose
outputs nobody has touched since, is not done again; it is always said which are and why. No
shell takes part: a process gets its words as they are.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from time import monotonic
from typing import Any, cast

import luthier
from luthier.component.pipeline import Pipeline, Step, inputs_of
from luthier.doors.component import flags, parse
from luthier.doors.component_command import Use, fill, words
from luthier.doors.component_lint import PATH_TYPES
from luthier.doors.component_table import TABLE
from luthier.doors.component_table import Step as StepName
from luthier.errors import Conflict, Problem, SpecError, StepFailed
from luthier.store import atomic
from luthier.store.bundle import sha256_of

#: Says that a folder is a work folder of ours; locked while a run is going on in it.
OWNER = ".luthier-pipeline"
RECORD = "step.json"

#: How many signals a step gets as they are; the next one kills it.
_PATIENCE = 2


@dataclass(frozen=True)
class Call:
    """A step as a process. inputs: name → value; outputs: name → path.

    ours: a step of luthier, which replaces its own output, and may go on from it.
    """

    step: Step
    argv: tuple[str, ...]
    inputs: Mapping[str, str]
    outputs: Mapping[str, Path]
    ours: bool


class Stopped(Exception):
    """The user stopped the run."""

    def __init__(self, step: str, number: int) -> None:
        super().__init__(step)
        self.step, self.number = step, number


def plan(pipeline: Pipeline, values: Mapping[str, str], work: Path) -> list[Call]:
    """The processes of a run, in order.

    Raises SpecError for a command that needs a shell, and for flags that luthier's own steps
    will not take, those of all steps together.
    """
    made: dict[str, dict[str, Path]] = {}
    calls: list[Call] = []
    problems: list[Problem] = []
    for step in pipeline.steps:
        inputs = inputs_of(step, values, made)
        made[step.name] = {name: work / step.name / name for name in step.outputs}
        found = {Use("inputs", name): value for name, value in inputs.items()}
        found |= {Use("outputs", name): str(path) for name, path in made[step.name].items()}
        try:
            argv = fill(words(step.command, inputs), found)
            _check_flags(argv)
        except SpecError as error:
            where = f"jobs.{step.name}: "
            problems += [Problem(where + p.field, p.message, p.hint) for p in error.problems]
            continue
        ours = argv[:2] == ["luthier", "component"]
        command = tuple(_launched(argv, step.processes))
        calls.append(Call(step, command, inputs, made[step.name], ours))
    if problems:
        raise SpecError(problems)
    return calls


def _check_flags(argv: list[str]) -> None:
    """As the step itself will, but before the first one has run for an hour."""
    if argv[:2] == ["luthier", "component"] and len(argv) > 2 and argv[2] in TABLE:
        parse(cast(StepName, argv[2]), flags(argv[3:]))


def _launched(argv: list[str], processes: int) -> list[str]:
    """With this Python's luthier, whatever is on the PATH, and as often as was asked for."""
    if argv and argv[0] == "luthier":
        argv = [sys.executable, "-m", "luthier", *argv[1:]]
    if processes == 1:
        return argv
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    return [*launcher, "--nproc-per-node", str(processes), "--no-python", *argv]


def run(
    calls: list[Call], work: Path, say: Callable[[str], None], *, again: bool, quiet: bool
) -> list[dict[str, Any]]:
    """Carry out calls; what became of each. quiet: what they print on stdout goes to stderr.

    Raises StepFailed at the first that fails, Stopped; Conflict: the folder is somebody
    else's, or a run is going on in it.
    """
    done: list[dict[str, Any]] = []
    with _claimed(work) as lock, _listening() as relay:
        for number, call in enumerate(calls, 1):
            name, folder = call.step.name, work / call.step.name
            if relay.seen:
                raise Stopped(name, relay.seen[0])
            key = _key(call)
            record = _read(folder / RECORD)
            why = "as was asked for" if again else _reason(call, key, record)
            head = f"[{number}/{len(calls)}] {name}"
            if why is None and record is not None:
                say(f"{head}: nothing has changed; its output of {record['ended']} is used again")
                done.append(_told(call, record, ran=False, why="nothing has changed"))
                continue
            say(f"{head}: runs, {why}")
            started = monotonic()
            _prepared(folder, call)
            _process(call, folder, lock, relay, quiet)
            seconds = round(monotonic() - started, 1)
            record = {
                "key": key, "argv": list(call.argv), "seconds": seconds,
                "ended": datetime.now().isoformat(" ", "seconds"), "outputs": _outputs(call),
            }  # fmt: skip
            atomic.write_bytes(folder / RECORD, json.dumps(record, indent=2).encode())
            say(f"{head}: done in {seconds:.1f} s")
            done.append(_told(call, record, ran=True, why=str(why)))
    return done


def _told(call: Call, record: Mapping[str, Any], *, ran: bool, why: str) -> dict[str, Any]:
    outputs = {name: str(path) for name, path in call.outputs.items()}
    facts = {"step": call.step.name, "ran": ran, "why": why, "seconds": record["seconds"]}
    return {**facts, "outputs": outputs}


@contextmanager
def _claimed(work: Path) -> Iterator[int]:
    """The work folder, locked; the lock is handed to the steps, so that one that outlives a
    killed run keeps the next one out."""
    owner = work / OWNER
    with atomic.translated(work):
        if work.exists() and not work.is_dir():
            raise Conflict("is a file, where the work folder is to be", where=str(work))
        if work.is_dir() and not owner.exists() and any(work.iterdir()):
            hint = "name an empty folder with --work, or one that is not there yet"
            raise Conflict("is not empty, and no pipeline ran in it", where=str(work), hint=hint)
        work.mkdir(parents=True, exist_ok=True)
        file = os.open(owner, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            hint = "wait for it, stop it, or name another folder with --work"
            raise Conflict("another run is going on in it", where=str(work), hint=hint) from None
        yield file
    finally:
        os.close(file)


def _prepared(folder: Path, call: Call) -> None:
    """Room for the outputs. What other people's steps wrote before is removed: it would mix."""
    with atomic.translated(folder):
        folder.mkdir(exist_ok=True)
        (folder / RECORD).unlink(missing_ok=True)
        for name, path in call.outputs.items():
            if path.exists() and not call.ours:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
            if call.step.outputs[name] != "uri_file":
                path.mkdir(exist_ok=True)


def _process(call: Call, folder: Path, lock: int, relay: _Relay, quiet: bool) -> None:
    """Start it, and wait for it. Raises StepFailed, Stopped."""
    name = call.step.name
    environment = os.environ | dict(call.step.environment)
    # whatever else of this environment a command calls; an entry before all others
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    try:
        process = subprocess.Popen(
            call.argv,
            cwd=call.step.code or folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=sys.stderr.fileno() if quiet else None,
            pass_fds=(lock,),
            # Ctrl-C in a terminal goes to its whole group: the step is to get it once, from here
            process_group=0,
        )
    except (OSError, ValueError) as error:  # ValueError: a zero byte in a word
        message = f"the step '{name}' cannot be started ({getattr(error, 'strerror', error)})"
        raise StepFailed(message, 127, where=call.argv[0]) from None
    code = relay.wait(process)
    if code and relay.seen:
        raise Stopped(name, relay.seen[0])
    if code:
        said = f"exit code {code}" if code > 0 else f"signal {signal.Signals(-code).name}"
        raise StepFailed(
            f"the step '{name}' ended with {said}",
            code if code > 0 else 128 - code,
            hint="mend what it says above; the same command goes on with this step",
        )


class _Relay:
    """Ctrl-C and its kin reach the step: twice as they are, then as one that cannot be refused."""

    def __init__(self) -> None:
        self.seen: list[int] = []
        self._handed_on = 0
        self._process: subprocess.Popen[bytes] | None = None

    def note(self, number: int, frame: object) -> None:
        self.seen.append(number)
        if self._process is not None:
            self._hand_on(self._process)
        elif len(self.seen) > 1:  # between two steps: there is nothing that could end in order
            raise KeyboardInterrupt

    def wait(self, process: subprocess.Popen[bytes]) -> int:
        self._process = process
        if self._handed_on < len(self.seen):  # it came while the process was being started
            self._hand_on(process)
        try:
            return process.wait()
        finally:
            self._process = None

    def _hand_on(self, process: subprocess.Popen[bytes]) -> None:
        self._handed_on = len(self.seen)
        number = self.seen[-1] if len(self.seen) <= _PATIENCE else signal.SIGKILL
        with suppress(ProcessLookupError):  # it has ended a moment ago
            os.killpg(process.pid, number)


@contextmanager
def _listening() -> Iterator[_Relay]:
    relay = _Relay()
    watched = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # under nohup it stays ignored
        watched.append(signal.SIGHUP)
    before = {number: signal.getsignal(number) for number in watched}
    for number in before:
        signal.signal(number, relay.note)
    try:
        yield relay
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _key(call: Call) -> str:
    """What the outputs are a function of: the command and the content of what it reads."""
    about = {
        "luthier": luthier.__version__,
        "argv": call.argv,
        "environment": dict(call.step.environment),
        "inputs": {
            name: _content(Path(value))
            for name, value in call.inputs.items()
            if call.step.declared[name].get("type") in PATH_TYPES and "://" not in value
        },
    }
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()


def _content(path: Path) -> str:
    """A file by its content; a folder, which may hold gigabytes, by sizes and times."""
    if path.is_file():
        return sha256_of(path)
    listed = []
    for file in sorted(path.rglob("*")):
        about = file.lstat()
        if not file.is_dir():
            listed.append([str(file.relative_to(path)), about.st_size, about.st_mtime_ns])
    return hashlib.sha256(json.dumps(listed).encode()).hexdigest()


def _outputs(call: Call) -> dict[str, str]:
    return {name: _content(path) for name, path in call.outputs.items()}


def _read(file: Path) -> dict[str, Any] | None:
    """A step's record; None where there is none that can be read."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    keys = {"key", "argv", "seconds", "ended", "outputs"}
    return found if isinstance(found, dict) and keys <= set(found) else None


def _reason(call: Call, key: str, record: dict[str, Any] | None) -> str | None:
    """Why a step is to run; None: it need not."""
    if record is None:
        return "for it has not run to its end here"
    if not call.step.repeatable:
        return "for its component is not deterministic"
    if any(
        "://" in value and call.step.declared[name].get("type") in PATH_TYPES
        for name, value in call.inputs.items()
    ):
        return "for what it reads lies at a URL, and may have changed"
    if record["argv"] != list(call.argv):
        return "for its command is another"
    if record["key"] != key:
        return "for what it reads has changed"
    if any(not path.exists() for path in call.outputs.values()):
        return "for its output is gone"
    return None if record["outputs"] == _outputs(call) else "for its output has changed since"
