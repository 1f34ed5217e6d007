"""Writers and readers of states as processes of their own, for test_states and test_states_s3.

    python state_writers.py commit URL BUNDLE PARENT      prints the generation
    python state_writers.py read URL CACHE                prints generation and bundle id
    python state_writers.py race URL FOLDER NAME          a bundle a round, committed at "go"

An error ends the process with the error's exit code, after its code and text on one line.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from luthier import environment
from luthier.errors import LuthierError
from luthier.store.bundle import Bundle, open_bundle, write_bundle
from luthier.store.states import commit_state, head, read_state


def make(folder: Path, word: str, shared: bytes = b"the same in all of them\n" * 4000) -> Bundle:
    """A bundle that differs by a word, and shares the file ``shared`` with the others."""

    def fill(aside: Path) -> None:
        (aside / "luthier").mkdir()
        (aside / "shared.bin").write_bytes(shared)
        (aside / "model.safetensors").write_text(word)
        (aside / "luthier" / "state.json").write_text('{"step": 3}')
        (aside / "empty").touch()

    return write_bundle(folder, fill, {"word": word})


def start(*words: object, **environment: str) -> subprocess.Popen[str]:
    """This file as a process."""
    return subprocess.Popen(
        [sys.executable, __file__, *map(str, words)],
        env={**os.environ, **environment},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(*words: object, **environment: str) -> tuple[int, str]:
    """This file as a process, to its end: exit code (-9: killed) and what it printed."""
    process = start(*words, **environment)
    out, err = process.communicate(timeout=60)
    assert process.returncode <= 0 or out, err
    return process.returncode, out.strip()


def points(*words: object, trace: Path) -> list[str]:
    """``name@passage`` of all failpoints that such a process passes."""
    trace.touch()
    code, said = run(*words, **{environment.FAILPOINT_TRACE: str(trace)})
    assert code == 0, said
    names = trace.read_text().split()
    return [f"{name}@{names[: i + 1].count(name)}" for i, name in enumerate(names)]


def race(url: str, folder: Path, rounds: int) -> list[str]:
    """Two processes, in each round at once, for the same generation; the winners' names.

    Raises AssertionError unless one is told the number, the other that it came too late, and
    the state is the winner's.
    """
    names = ["first", "second"]
    processes = [start("race", url, folder / name, name) for name in names]
    winners = []
    try:
        for number in range(1, rounds + 1):
            _say(processes, f"{number - 1}")
            assert [_hear(process) for process in processes] == ["ready", "ready"]
            _say(processes, "go")
            heard = [_hear(process) for process in processes]
            assert sorted(heard) == sorted([f"{number}", "state_conflict"]), heard
            winners.append(names[heard.index(f"{number}")])
            found = read_state(url, folder / "cache")
            assert (found.generation, found.bundle.meta) == (
                number,
                {"word": f"{winners[-1]} {number - 1}"},
            )
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    return winners


def _say(processes: list[subprocess.Popen[str]], line: str) -> None:
    for process in processes:
        assert process.stdin
        process.stdin.write(f"{line}\n")
        process.stdin.flush()


def _hear(process: subprocess.Popen[str]) -> str:
    assert process.stdout
    line = process.stdout.readline().strip()
    assert line, process.stderr and process.stderr.read()
    return line


def _race(url: str, folder: Path, name: str) -> None:
    head(url)  # connects, so that the first round is as close as the others
    for line in sys.stdin:
        parent = int(line)
        bundle = make(folder / line.strip(), f"{name} {parent}")
        print("ready", flush=True)
        assert sys.stdin.readline().strip() == "go"
        try:
            print(commit_state(bundle, url, parent=parent, meta={"by": name}), flush=True)
        except LuthierError as error:
            print(error.code, flush=True)


def main(verb: str, url: str, folder: str, *more: str) -> int:
    try:
        if verb == "commit":
            bundle = open_bundle(Path(folder))
            print(commit_state(bundle, url, parent=int(more[0]), meta={"n": 1}))
        elif verb == "read":
            state = read_state(url, Path(folder))
            print(state.generation, state.bundle.id)
        else:
            _race(url, Path(folder), *more)
    except LuthierError as error:
        print(error.code, " ".join(str(error).split()))
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
