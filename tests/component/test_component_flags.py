"""The steps as a newcomer meets them: help, wrong words, wrong files, a full disk, Ctrl-C."""

import json
import os
import pty
import resource
import signal
import subprocess
import sys
from contextlib import contextmanager

import pytest
from component_world import write_rows

from luthier.cli import main
from luthier.doors.component_table import STEPS, TABLE

CLASSIFY = ("--task_name", "SingleLabelClassification")


@pytest.fixture
def say(capfd, monkeypatch, tmp_path):
    """``say(*words)``: the code of ``luthier component …`` in an own folder, stdout, stderr."""
    monkeypatch.chdir(tmp_path)

    def call(*words):
        capfd.readouterr()
        code = main.run(["component", *map(str, words)])
        return code, *capfd.readouterr()

    return call


@pytest.fixture
def prepare(say, ready, tmp_path):
    """``prepare(file, *words)``: preprocess on top of a model that is imported."""
    return lambda file, *words: say(
        "preprocess", *CLASSIFY, "--model_selector_output", ready.selected,
        "--preprocess_output", "prepared", "--train_file_path", file, *words,
    )  # fmt: skip


def test_the_list_of_steps_says_what_each_is_for(say):
    code, out, _ = say("--help")
    assert code == 0
    for summary in STEPS.values():
        assert summary in out
    assert "Run a pipeline's YAML on this machine." in out


@pytest.mark.parametrize("step", TABLE)
@pytest.mark.parametrize("word", ["--help", "-h"])
def test_a_step_tells_its_flags(say, step, word):
    code, out, _ = say(step, word)
    assert code == 0
    assert all(f"  --{row.name}  {row.help}" in out for row in TABLE[step])
    assert say(step) == (2, out, "")


def test_all_that_is_wrong_is_said_at_once(say):
    code, _, err = say("import", "--model_pth", "x", "--task_name", "Translaton")
    assert code == 2
    for part in (
        "model_pth: the step import knows no such flag (did you mean 'model_path'?)",
        "(did you mean 'Translation'?)",
        "model_selector_output: is required",
        "exactly one of huggingface_id, model_path",
    ):
        assert part in err
    code, _, err = say("finetune", "--train_file_path", "x")
    assert "it is a flag of the step preprocess" in err
    code, _, err = say("imprt")
    assert (code, "Did you mean 'import'?" in err) == (2, True)


def test_an_error_is_json_where_that_was_asked_for(say):
    code, out, _ = say("evaluate", "--json", "--seed", "-1")
    assert code == 2
    fields = {problem["field"] for problem in json.loads(out)["problems"]}
    assert {"seed", "pytorch_model_folder", "evaluation_output"} <= fields


@pytest.mark.parametrize(
    ("flag", "value", "code", "says"),
    [
        ("model_path", "nowhere", 4, "model_path: there is no such folder"),
        ("model_path", "file.txt", 4, "model_path: is a file, not a folder"),
        ("model_path", "empty", 4, "holds no model: there is no config.json"),
        ("mlflow_model_path", "empty", 4, "is no MLflow model"),
        ("huggingface_id", "nobody/nothing", 4, "check the name, the network and HF_TOKEN"),
        ("huggingface_id", "../etc", 2, "is no id of a model"),
    ],
)
def test_a_model_that_is_none(say, tmp_path, flag, value, code, says):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file.txt").write_text("x")
    got, _, err = say("import", *CLASSIFY, f"--{flag}", value, "--model_selector_output", "new")
    assert (got, says in err) == (code, True), err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("text", "words", "says"),
    [
        ('{"text": "a", "label": "x"}\n{"text": 3', (), "rows.jsonl, row 2: not JSON"),
        ('{"text": "a", "label": "x"}\n{"text": "b"}\n', (), "rows.jsonl, row 2, column label"),
        ("", (), "rows.jsonl: the file is empty"),
        ('{"text": "a", "label": "x"}\n' * 20, ("--sentence1_key", "txet"),
         "column txet: there is no such column"),
        ('{"text": "a", "label": "x"}\n' * 20, ("--token_key", "text"),
         "token_key: is for NamedEntityRecognition"),
        ('{"words": "a", "label": "x"}\n' * 20, (), "--sentence1_key … names it"),
    ],
)  # fmt: skip
def test_rows_that_will_not_do(prepare, tmp_path, text, words, says):
    (tmp_path / "rows.jsonl").write_text(text)
    code, _, err = prepare("rows.jsonl", *words)
    assert (code in (2, 3), says in err) == (True, True), err
    assert "processing.columns" not in err
    assert not list((tmp_path / "prepared").glob("*"))


def test_a_file_that_is_not_there(prepare, tmp_path):
    (tmp_path / "rows.jsonl").write_text("{}")
    code, _, err = prepare("row.jsonl")
    assert (code, "row.jsonl: there is no such file" in err) == (3, True)
    assert "did you mean 'rows.jsonl'?" in err


def test_folders_that_were_mixed_up(say, ready, tmp_path):
    outputs = ("--pytorch_model_folder", "tuned", "--mlflow_model_folder", "mlflow")
    swapped = ("--preprocess_output", ready.selected, "--model_selector_output", ready.prepared)
    code, _, err = say("finetune", *swapped, *outputs)
    assert code == 6
    assert "holds no complete output of the step preprocess" in err
    inputs = ("--preprocess_output", ready.prepared, "--model_selector_output", ready.selected)
    same = ("--pytorch_model_folder", "one", "--mlflow_model_folder", "one")
    code, _, err = say("finetune", *inputs, *same)
    assert (code, "name a folder of its own" in err) == (2, True)
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").write_text("mine")
    code, _, err = say("finetune", *inputs, *outputs[:1], "thesis", *outputs[2:])
    assert code == 7
    assert "is not empty, and the step finetune did not write it" in err
    assert (tmp_path / "thesis" / "chapter.tex").read_text() == "mine"
    code, _, err = say(
        "evaluate", "--pytorch_model_folder", ready.selected, "--preprocess_output",
        ready.prepared, "--evaluation_output", "found",
    )  # fmt: skip
    assert code == 4
    assert "a model is needed that was trained with this head" in err


def test_a_second_run_of_a_step_replaces_its_output(prepare, tmp_path):
    for count, start in ((40, 0), (60, 40)):
        write_rows(tmp_path / "rows.jsonl", "SingleLabelClassification", count, start)
        code, out, _ = prepare("rows.jsonl", "--json")
        assert code == 0
        assert sum(split["rows"] for split in json.loads(out)["splits"].values()) == count


@contextmanager
def no_room(most_bytes):
    """No file of this process can be larger: writing on fails as on a disk that is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def full(code, err):
    assert code == 9, err
    assert "no space left to write (" in err
    assert "ile too large" in err
    assert "free some space, then give the same command" in err
    assert "Traceback" not in err


@pytest.mark.parametrize("most_bytes", [2000, 30_000])
def test_a_full_disk_while_importing(say, tiny, tmp_path, most_bytes):
    model = tiny("SingleLabelClassification")
    words = ("import", *CLASSIFY, "--model_path", model, "--model_selector_output", "new")
    with no_room(most_bytes):
        code, _, err = say(*words)
    full(code, err)
    assert [p.name for p in (tmp_path / "new").iterdir()] == [".luthier-step"]
    assert say(*words)[0] == 0


@pytest.mark.parametrize("most_bytes", [300, 20_000])
def test_a_full_disk_while_preprocessing(prepare, tmp_path, most_bytes):
    write_rows(tmp_path / "rows.jsonl", "SingleLabelClassification", 200)
    with no_room(most_bytes):
        code, _, err = prepare("rows.jsonl")
    full(code, err)
    assert [p.name for p in (tmp_path / "prepared").iterdir()] == [".luthier-step"]
    assert prepare("rows.jsonl")[0] == 0


@pytest.mark.parametrize("most_bytes", [5000, 200_000])
def test_a_full_disk_while_tuning_and_evaluating(say, ready, tmp_path, most_bytes):
    words = [word for name, value in ready.flags().items() for word in (f"--{name}", value)]
    with no_room(most_bytes):
        code, _, err = say("finetune", *words)
    full(code, err)
    assert "--resume_from_checkpoint true goes on" in err.replace(" it ", " ")
    assert not (ready.tuned / "finetune_args.json").exists()
    assert say("finetune", *words, "--resume_from_checkpoint", "true")[0] == 0
    measure = (
        "evaluate", "--pytorch_model_folder", ready.tuned, "--preprocess_output", ready.prepared,
        "--evaluation_output", "found",
    )  # fmt: skip
    with no_room(700):  # more than what is said of it
        code, _, err = say(*measure)
    full(code, err)
    assert say(*measure)[0] == 0


def test_preprocess_is_stopped_in_order(ready, tmp_path):
    write_rows(tmp_path / "rows.jsonl", "SingleLabelClassification", 6_000)
    process = subprocess.Popen(
        [sys.executable, "-m", "luthier", "component", "preprocess", *CLASSIFY,
         "--model_selector_output", ready.selected, "--preprocess_output", tmp_path / "prepared",
         "--train_file_path", tmp_path / "rows.jsonl"],
        stderr=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert process.stderr is not None
    seen = []
    for line in process.stderr:
        seen.append(line)
        if "preparing the rows" in line:
            process.send_signal(signal.SIGINT)
            break
    rest = process.stderr.read()
    process.stderr.close()
    assert process.wait(60) == 130, "".join(seen) + rest
    assert "stopped; the same command goes on" in rest
    assert [p.name for p in (tmp_path / "prepared").iterdir()] == [".luthier-step"]


def test_on_a_terminal_a_step_waits_for_nobody(tmp_path):
    """Its bar is that of runs, which wait for a worker; a step starts."""
    here, there = pty.openpty()
    command = [sys.executable, "-m", "luthier", "component", "import", *CLASSIFY]
    words = ["--model_path", "nowhere", "--model_selector_output", "new"]
    process = subprocess.Popen([*command, *words], cwd=tmp_path, stderr=there, close_fds=True)
    os.close(there)
    said = b""
    try:
        while part := os.read(here, 4096):
            said += part
    except OSError:  # a terminal whose other end is closed
        pass
    os.close(here)
    assert process.wait(60) == 4
    assert b"starting" in said
    assert b"worker" not in said
