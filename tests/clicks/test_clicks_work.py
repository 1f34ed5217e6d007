"""``luthier clicks task`` and ``work`` as people call them, and what a kill leaves."""

import json
import os
import signal
import subprocess
import sys

import pytest
from clicks_world import environment, write_world

from luthier.cli.main import run
from luthier.clicks.store import ClickStore
from luthier.runs import connection
from luthier.runs.connection import Home
from luthier.testing.models import tiny_text_model

#: A method that waits at its first attempt, to be stopped there, and one that fails.
PLUGIN = """
import os, sys
from pathlib import Path
from luthier import clicks
from luthier.clicks.defaults import DEFAULTS

class Tiny(clicks.FineTuningMethod):
    meta = clicks.PluginMeta(name="Tiny")

    def get_fine_tuning_builder(self, clickstream):
        here = Path(os.environ["HERE"])
        if not (here / "begun").exists():
            (here / "begun").touch()
            print("at work", flush=True)
            sys.stdin.read()
        data = clicks.prepare_data(
            clickstream, clicks.ClickstreamSessionConverter(), clicks.TrainTestSplitter(),
            clicks.TextQueryRetriever(), clicks.FileDataLoader(here / "items.jsonl"),
            clicks.TextItemSetManager(clicks.DatasetFieldsNormalizer("text", "id")),
        )
        settings = clicks.FineTuningSettings(
            loss_func="ListwiseSoftmaxLoss", num_epochs=1, batch_size=16)
        return clicks.FineTuningBuilder(settings, clicks.FineTuningParams(**DEFAULTS), data)

class Bad(clicks.FineTuningMethod):
    meta = clicks.PluginMeta(name="Bad")

    def get_fine_tuning_builder(self, clickstream):
        raise ValueError("spoilt")
"""


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("work")
    write_world(folder, pairs=30, sessions=120)
    tiny_text_model(folder / "tiny")
    (folder / "plugins").mkdir()
    (folder / "plugins" / "tiny.py").write_text(PLUGIN)
    return folder


@pytest.fixture
def variables(world, monkeypatch):
    """Of the commands: their home, the plugins; a worker starts by itself."""
    found = environment(world / "home") | {
        "LUTHIER_PLUGINS": str(world / "plugins"), "HERE": str(world),
    }  # fmt: skip
    del found["LUTHIER_WORKER"]
    for name in ("LUTHIER_HOME", "LUTHIER_PLUGINS", "HERE"):
        monkeypatch.setenv(name, found[name])
    before = connection._current
    yield found
    if connection._current is not None and connection._current is not before:
        connection._current.close()
    connection._current = before


def _said(capsys, *words, code=0):
    assert run(["clicks", *map(str, words)]) == code
    return capsys.readouterr()


def _document(capsys, *words, code=0):
    return json.loads(_said(capsys, *words, "--json", code=code).out)


def test_tasks_by_command(world, variables, capsys):
    assert _document(capsys, "collect", world / "log.jsonl")["sessions"] == 120
    assert _document(capsys, "collect", world / "log.jsonl")["sessions"] == 0  # they are known
    words = ["--model", world / "tiny", "--method", "Bad", "--idempotency-key", "monday"]
    made = _document(capsys, "task", "create", *words, "--metadata", "who=me")
    assert (made["status"], made["metadata"]) == ("pending", {"who": "me", "method": "Bad"})
    again = _document(capsys, "task", "create", *words, "--metadata", "who=me")
    assert again["id"] == made["id"]
    other = _document(capsys, "task", "create", "--model", world / "tiny")
    assert other["status"] == "refused"
    listed = _said(capsys, "task", "list").out.splitlines()
    assert [line.split()[:2] for line in listed[1:]] == [
        [other["id"], "refused"], [made["id"], "pending"],
    ]  # fmt: skip
    assert _document(capsys, "task", "list", "--status", "refused")[0]["id"] == other["id"]
    told = _said(capsys, "work", code=11)
    assert told.out == f"{made['id']}  failed  ValueError: spoilt\n"
    assert "1 of the tasks failed" in told.err
    assert _document(capsys, "task", "restart", made["id"])["status"] == "pending"
    assert _document(capsys, "task", "cancel", made["id"])["status"] == "canceled"
    assert "canceled" in _said(capsys, "task", "show", made["id"]).out
    assert _said(capsys, "work").out == ""  # none is left
    assert "no task is called 'x'" in _said(capsys, "task", "show", "x", code=6).err
    assert "did you mean" in _said(capsys, "task", "list", "--status", "pendin", code=2).err


def _released(world, capsys):
    """The batch of the log; the first task that had it may have given it back."""
    _said(capsys, "collect", world / "log.jsonl")
    home = Home(world / "home")
    store = ClickStore(home.url)
    try:
        batch = store.list_batches()[0]
        if batch["state"] == "collecting":
            store.release_batch("first")
        return batch["batch_id"]
    finally:
        store.close()
        home.close()


def _work(variables, *words):
    command = [sys.executable, "-m", "luthier", "clicks", "work", *words]
    return subprocess.Popen(
        command, env=variables, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_what_is_stopped_at_work_is_taken_up(world, variables, capsys, number):
    """A real process at a real task, stopped in its plugin; the next one goes on with it."""
    (world / "begun").unlink(missing_ok=True)
    words = ["--model", world / "tiny", "--method", "Tiny", "--batch", _released(world, capsys)]
    made = _document(capsys, "task", "create", *words)
    assert made["status"] == "pending", made["detail"]
    first = _work(variables, "--follow")
    assert first.stdout.readline() == "at work\n"
    os.kill(first.pid, number)
    first.communicate()
    left = _document(capsys, "task", "show", made["id"])
    if number == signal.SIGTERM:
        assert first.returncode == 130
        assert left["status"] == "pending"  # given back
        _said(capsys, "task", "cancel", made["id"])
        return
    assert left["status"] == "processing"
    second = _work(variables, "--json")
    out, err = second.communicate(timeout=280)
    assert second.returncode == 0, err
    done = json.loads(out)
    assert (done["id"], done["status"], done["attempts"]) == (made["id"], "done", 2)
    home = Home(world / "home")
    assert home.store.artifact(done["result"]["artifact_id"]).is_dir()
    home.close()
