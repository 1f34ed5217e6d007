"""The verbs for names of artifacts, as a program calls them."""

import json

import pytest

from luthier.cli.main import run
from luthier.runs.connection import Home
from luthier.store.bundle import write_bundle


@pytest.fixture
def place(tmp_path):
    home = Home(tmp_path / "home")
    ids = []
    for text in "ab":
        bundle = write_bundle(
            tmp_path / text, lambda f, t=text: (f / "weights").write_text(t) and None, {}
        )
        ids.append(home.store.publish(bundle, public=False))
    home.close()
    return str(home.path), ids


def test_promote_roll_back_and_look(place, capsys):
    home, (a, b) = place

    def call(*words):
        code = run(["models", *words, "--home", home, "--json"])
        said = capsys.readouterr().out
        return code, json.loads(said) if said else None

    assert call("promote", a[:8], "--note", "first")[1]["artifact_id"] == a
    code, found = call("promote", b, "--expect", "nothing")
    assert (code, found["code"]) == (7, "conflict")
    assert call("promote", b, "--expect", a[:6])[1]["before"] == a
    assert {x["name"]: x["artifact_id"] for x in call("aliases")[1]} == {
        "production": b, "previous": a,
    }  # fmt: skip
    assert call("rollback")[1]["artifact_id"] == a
    assert call("rollback")[1]["code"] == "illegal_transition"
    told = [(c["action"], c["note"]) for c in call("history", "production")[1]]
    assert told == [("rollback", ""), ("promote", ""), ("promote", "first")]
    assert call("alias", "staging", "alias:production")[1]["artifact_id"] == a
    code, found = call("alias", "staging", "nonesuch")
    assert (code, found["code"]) == (6, "not_found")


def test_for_a_person_it_is_a_table(place, capsys):
    home, (a, _) = place
    assert run(["models", "promote", a, "--as", "blue", "--home", home]) == 0
    assert run(["models", "aliases", "--home", home]) == 0
    assert capsys.readouterr().out.splitlines()[1].split()[:2] == ["blue", a[:12]]
    assert run(["models", "history", "blue", "--home", home]) == 0
    assert "promote" in capsys.readouterr().out
    assert run(["models", "unalias", "blue", "--home", home]) == 0
    assert run(["models", "rollback", "blue", "--home", home]) == 6
    assert "no alias is called 'blue'" in capsys.readouterr().err
