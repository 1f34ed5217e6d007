"""The command itself: exit codes, errors as lines and as problem documents, what it imports."""

import json
import os
import subprocess
import sys

import pytest

from luthier import errors
from luthier.cli import main as command
from luthier.cli.following import CANCELLED
from luthier.cli.main import VERBS, run


def _all_errors(kind=errors.LuthierError):
    yield kind
    for inner in kind.__subclasses__():
        yield from _all_errors(inner)


def test_every_exit_code_is_told_in_the_help(luthier):
    said = luthier("--help")
    assert said.code == 0
    told = " ".join(said.out.split())
    codes = {error.exit_code for error in _all_errors()}
    codes |= {0, CANCELLED, command.USAGE_ERROR, command.FAULT, command.INTERRUPTED}
    for code in codes:
        assert f" {code} " in told, code


@pytest.mark.parametrize("verb", [v for v in VERBS if v != "worker"])
def test_every_verb_has_help_and_the_list_tells_the_same(luthier, verb):
    said = luthier(verb, "--help")
    assert said.code == 0, said
    assert said.out.startswith(f"Usage: luthier {verb}")


def test_the_worker_reads_its_own_words(luthier, capsys):
    with pytest.raises(SystemExit) as caught:
        run(["worker", "--help"])
    assert caught.value.code == 0
    assert "--idle-exit-s" in capsys.readouterr().out


def test_usage_errors_in_both_forms(luthier):
    said = luthier("rums")
    assert said.code == 2
    assert said.out == ""
    assert "Did you mean 'runs'?" in said.err
    said = luthier("runs", "list", "--size", "many", "--json")
    assert said.code == 2
    assert said.document["code"] == "usage"
    assert "--size" in said.document["title"]


def test_an_error_of_ours_is_a_message_or_a_problem_document_never_a_traceback(luthier):
    said = luthier("runs", "show", "nobody")
    assert (said.code, said.out) == (6, "")
    assert said.err.startswith("error: ")
    assert "Traceback" not in said.err
    said = luthier("runs", "show", "nobody", "--json")
    assert (said.code, said.document["code"]) == (6, "not_found")
    assert said.err == ""


def test_the_debug_variable_shows_the_traceback(luthier, monkeypatch):
    monkeypatch.setenv("LUTHIER_DEBUG", "1")
    assert "Traceback" in luthier("runs", "show", "nobody").err


def test_a_fault_of_luthier_is_said_to_be_one(luthier, monkeypatch):
    def broken(words):
        raise ZeroDivisionError("no")

    monkeypatch.setattr(command, "_app", broken)
    said = luthier("env", "--json")
    assert said.code == 70
    assert said.document["code"] == "fault"
    assert said.document["title"] == "ZeroDivisionError: no"


def test_a_home_that_cannot_be_made_is_a_store_error(luthier, tmp_path):
    (tmp_path / "file").write_text("")
    assert luthier("runs", "list", "--home", tmp_path / "file" / "home").code == 9


def test_a_reader_that_leaves_early_hears_no_complaint(tmp_path):
    """``luthier models | head -1``: the pipe breaks while we write."""
    program = "from luthier.cli.main import main; main(['models', '--json'])"
    writer = subprocess.Popen(
        [sys.executable, "-c", program],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "LUTHIER_HOME": str(tmp_path)},
    )
    writer.stdout.close()
    error = writer.stderr.read()
    writer.stderr.close()
    assert writer.wait(timeout=60) == 1
    assert error == b""


def test_env_tells_what_is_there(luthier):
    facts = luthier("env", "--json").document
    assert facts["packages"]["torch"]
    assert facts["devices"][0] == "cpu"
    assert set(facts["extras"]) >= {"onnx", "mlflow", "wandb"}
    assert luthier("env").out.startswith("luthier ")


def test_models_lists_what_can_be_tuned_and_refuses_what_cannot(luthier):
    names = [m["name"] for m in luthier("models", "--json").document]
    assert "all-minilm-l6-v2" in names
    described = luthier("models", "describe", "all-minilm-l6-v2", "--json").document
    assert "max_seq_length" in [option["name"] for option in described["options"]]
    assert luthier("models", "describe", "all-minilm").code == 6
    assert luthier("models", "describe", "resnet50").code == 4
    losses = {item["name"]: item for item in luthier("models", "losses", "--json").document}
    assert "pairs" in losses["MultipleNegativesRankingLoss"]["forms"]


def test_json_is_all_that_stdout_holds(luthier):
    for words in (["runs", "list"], ["experiments", "list"], ["models"], ["env"]):
        json.loads(luthier(*words, "--json").out)
