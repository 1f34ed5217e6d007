"""The demo from its first line to its last, with a tiny model in the place of the real one."""

from __future__ import annotations

import io
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rich.console import Console

import luthier
from luthier.demo import story


def tell(home):
    sink = io.StringIO()
    story.run(home, Console(file=sink, width=120, force_terminal=False))
    return sink.getvalue()


def commands(told):
    lines = told.split("Try next\n")[1].splitlines()
    return [line.strip() for line in lines if not line.strip().startswith("#")]


def execute(command):
    """As a user would paste it. Nobody starts a worker: there is one already."""
    return subprocess.run(
        shlex.split(command),
        env={**os.environ, "LUTHIER_WORKER": "none"},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )


@pytest.fixture(scope="module")
def home(tmp_path_factory, tiny_model):
    """A home with a worker, and a recipe that a tiny random model can follow."""
    from luthier import api
    from luthier.runs import connection

    before = connection._current
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setenv("LUTHIER_WORKER", "none")
        patch.delenv("LUTHIER_HOME", raising=False)
        changes = {"model": str(tiny_model), "learning_rate": 5e-3, "max_steps": 40}
        patch.setattr(story, "RECIPE", story.RECIPE | changes)
        found = api.connect(tmp_path_factory.mktemp("demo") / "home")
        command = [sys.executable, "-m", "luthier", "worker", "--home", str(found.path)]
        worker = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        yield found
        worker.send_signal(signal.SIGTERM)
        worker.wait(timeout=60)
        found.close()
    connection._current = before


@pytest.fixture(scope="module")
def told(home):
    return tell(home)


def test_it_tells_the_proof_and_where_things_are(told):
    for words in ("nDCG@10", "BM25", "The tuned model is", "wins", "drawn at random"):
        assert words in told, told
    folder = Path(told.split("The tuned model: ")[1].splitlines()[0])
    assert (folder / "modules.json").is_file()
    assert Path(told.split("Its report:")[1].split()[0]).is_file()


def test_a_second_call_shows_the_same_at_once(home, told):
    started = time.monotonic()
    again = tell(home)
    assert time.monotonic() - started < 10
    assert "has done it already" in again
    assert again.split("queries, ", 1)[1] == told.split("queries, ", 1)[1]


def test_its_commands_encode_and_show(told):
    encode, _, show = commands(told)
    for command in (encode, show):
        done = execute(command)
        assert done.returncode == 0, (command, done.stderr)
        assert done.stdout.strip()


@pytest.mark.slow
def test_its_command_continues_the_training(home, told):
    done = execute(commands(told)[1])
    assert done.returncode == 0, done.stderr
    first, second = sorted(luthier.list_runs(), key=lambda run: run.created_at)
    assert second.status()["status"] == "FINISHED"
    assert second.spec.model.artifact == first.artifact_id
