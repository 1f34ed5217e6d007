"""The command line with a real worker, real runs, and real Ctrl-C."""

import json
import os
import signal
import subprocess
import sys

import numpy as np
import pyarrow.parquet as pq
import pytest

LUTHIER = [sys.executable, "-m", "luthier"]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def environment(home):
    return {
        **os.environ,
        "LUTHIER_HOME": str(home),
        "LUTHIER_WORKER": "none",
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
    }


@pytest.fixture(scope="module")
def finished(home, environment, tiny, pairs):
    """Two finished runs, made by a worker process that left when the queue was empty."""
    words = ["--model", tiny, "--train-data", pairs, "--loss", "MultipleNegativesRankingLoss",
             "--max-steps", "3", "--batch-size", "8", "--eval-data", pairs]  # fmt: skip
    for name, rate in (("slow-one", "1e-5"), ("quick-one", "1e-3")):
        submit = [*LUTHIER, "fit", *words, "--run-name", name, "--learning-rate", rate]
        subprocess.run(list(map(str, submit)), env=environment, check=True, capture_output=True)
    worker = subprocess.run(
        [*LUTHIER, "worker", "--once"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert worker.returncode == 0, worker.stderr
    return "quick-one", "slow-one"


@pytest.fixture
def real(luthier, finished, home, monkeypatch):
    """The command line in this process, on the home of the finished runs."""
    monkeypatch.setenv("LUTHIER_HOME", str(home))
    return luthier


def test_list_show_and_logs_tell_what_happened(real):
    listed = real("runs", "list", "--json").document
    assert [(r["name"], r["status"]) for r in listed] == [
        ("quick-one", "FINISHED"),
        ("slow-one", "FINISHED"),
    ]
    assert "quick-one  FINISHED" in real("runs", "list").out
    shown = real("runs", "show", "quick-one", "--json").document
    assert shown["spec"]["training"]["learning_rate"] == 1e-3
    assert os.path.isdir(shown["path"])
    assert shown["metrics"]
    human = real("runs", "show", "quick-one").out
    assert shown["artifact_id"] in human
    assert "training.learning_rate" in human
    events = [
        json.loads(line) for line in real("runs", "logs", "quick-one", "--json").out.splitlines()
    ]
    assert [e["seq"] for e in events] == list(range(1, len(events) + 1))
    assert events[-1]["data"]["status"] == "FINISHED"
    assert real("runs", "logs", "quick-one", "-f").out == real("runs", "logs", "quick-one").out


def test_compare_shows_in_what_two_runs_differ(real):
    told = real("runs", "compare", "quick-one", "slow-one", "--json").document
    assert told["job"] == {"training.learning_rate": [1e-3, 1e-5]}
    assert all(len(values) == 2 for values in told["metrics"].values())
    assert "training.learning_rate" in real("runs", "compare", "quick-one", "slow-one").out
    assert real("runs", "compare", "quick-one").code == 2


def test_encode_gives_the_vectors_of_the_tuned_model(real, tmp_path, pairs):
    from luthier import inference

    path = real("runs", "show", "quick-one", "--json").document["path"]
    texts = ["word 1", "word 2", "word 3"]
    wanted = inference.encode(inference.get_model(path, device="cpu"), texts)
    file = tmp_path / "texts.jsonl"
    file.write_text("".join(json.dumps({"word": text}) + "\n" for text in texts))
    encode = ["encode", "quick-one", file, "--device", "cpu"]
    for name in ("vectors.npy", "vectors.parquet", "vectors.jsonl"):
        said = real(*encode, "-o", tmp_path / name, "--json")
        assert (said.code, said.document["rows"]) == (0, 3), said
    np.testing.assert_allclose(np.load(tmp_path / "vectors.npy"), wanted, atol=1e-6)
    table = pq.read_table(tmp_path / "vectors.parquet").to_pydict()
    assert table["text"] == texts
    np.testing.assert_allclose(table["embedding"], wanted, atol=1e-6)
    lines = [json.loads(line) for line in (tmp_path / "vectors.jsonl").read_text().splitlines()]
    np.testing.assert_allclose([line["embedding"] for line in lines], wanted, atol=1e-6)
    [line] = real("encode", path, "--text", "word 2", "--device", "cpu").out.splitlines()
    np.testing.assert_allclose(json.loads(line)["embedding"], wanted[1], atol=1e-6)


@pytest.mark.parametrize(
    ("name", "content", "words", "message"),
    [
        ("a.csv", "x,y\n1,2\n", [], "--column with one of: x, y"),
        ("a.csv", "x,y\n1,2\n", ["--column", "xs"], "did you mean 'x'?"),
        ("a.csv", "x,y\n1\n", ["--column", "x"], "row 2: has 1 cells"),
        ("a.jsonl", '{"x": 1}\n', [], "row 1, column x: is no text: 1"),
        ("a.jsonl", '{"x": "a"}\n{"x": \n', [], "row 2: is no JSON"),
        ("a.jsonl", '{"x": "a"}\n{"y": "b"}\n', ["--column", "x"], "row 2: there is no column"),
        ("a.parquet", "PAR", [], "is no Parquet"),
        ("a.docx", "", [], "is no file of texts"),
        ("a.txt", "", [], "there is no text to encode"),
        ("a.txt", "a\n", ["-o", "vectors.pkl"], "can hold no vectors"),
        ("a.txt", "a\n", ["-o", "no/such/folder/v.npy"], "its folder does not exist"),
    ],
)
def test_texts_that_cannot_be_read_are_refused_with_their_place(
    luthier, tmp_path, name, content, words, message
):
    (tmp_path / name).write_text(content)
    said = luthier("encode", "all-minilm-l6-v2", tmp_path / name, *words)
    assert said.code == 3
    assert message in said.err


def test_cancel_resume_and_delete_from_the_queue(luthier, job):
    luthier("fit", *job, "--run-name", "short-lived")
    assert luthier("runs", "cancel", "short-lived", "--json").document["status"] == "CANCELLED"
    assert luthier("runs", "resume", "short-lived", "--json").document["status"] == "CREATED"
    luthier("runs", "cancel", "short-lived")
    assert luthier("runs", "retry", "short-lived", "--json").document["status"] == "CREATED"
    luthier("runs", "cancel", "short-lived")
    assert luthier("runs", "delete", "short-lived", "--yes").code == 0
    assert luthier("runs", "resume", "short-lived").code == 6


def test_what_a_finished_run_cannot_do_is_a_conflict(real):
    assert real("runs", "cancel", "quick-one").code == 7
    assert real("runs", "resume", "quick-one", "--json").document["code"] == "illegal_transition"


def test_experiments(luthier, job):
    assert luthier("experiments", "create", "words", "--description", "about words").code == 0
    luthier("fit", *job, "--experiment-name", "words", "--run-name", "one")
    shown = luthier("experiments", "show", "words", "--json").document
    assert shown["description"] == "about words"
    assert [r["name"] for r in shown["runs"]] == ["one"]
    assert luthier("runs", "list", "-e", "words", "--json").document[0]["experiment"] == "words"
    assert luthier("runs", "list", "-e", "wrods").code == 6
    assert luthier("experiments", "delete", "words", "--yes").code == 0
    assert luthier("experiments", "show", "words").code == 6


def test_deleting_asks_first(luthier, job, monkeypatch):
    luthier("fit", *job, "--run-name", "precious")
    with open(os.devnull) as nobody:  # is there to say yes
        monkeypatch.setattr("sys.stdin", nobody)
        assert luthier("runs", "delete", "precious").code == 130
    assert luthier("runs", "show", "precious").code == 0


@pytest.mark.parametrize("follow", ["fit --wait", "logs -f"])
def test_ctrl_c_ends_the_waiting_and_not_the_run(luthier, environment, job, tmp_path, follow):
    """A real SIGINT, sent once the first line of the run was shown."""
    environment = {**environment, "LUTHIER_HOME": str(tmp_path / "home"), "PYTHONUNBUFFERED": "1"}
    if follow == "logs -f":
        assert luthier("fit", *job, "--run-name", "steady").code == 0
        words = ["runs", "logs", "-f", "steady"]
    else:
        words = ["fit", *job, "--run-name", "steady", "--wait"]
    watcher = subprocess.Popen(
        [*LUTHIER, *words],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        # A shell's background job, such as these tests may be, hands down an ignored SIGINT.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509
    )
    try:
        first = watcher.stdout.readline()
        assert "CREATED" in first
        watcher.send_signal(signal.SIGINT)
        rest, _ = watcher.communicate(timeout=60)
    finally:
        watcher.kill()
    assert watcher.returncode == 130, rest
    assert "goes on" in rest
    assert "luthier runs cancel steady" in rest
    assert "Traceback" not in rest
    assert luthier("runs", "show", "steady", "--json").document["status"] == "CREATED"
