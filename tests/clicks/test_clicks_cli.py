"""``luthier clicks`` end to end, as people call it."""

import json
import subprocess
import sys

import pytest

from luthier.cli.main import run


def _luthier(*words, code=0):
    command = [sys.executable, "-m", "luthier", "clicks", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == code, done.stderr
    return done


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    found = tmp_path_factory.mktemp("clicks")
    rows = [f"word{i} word{i % 5},text {i} word{i} word{i % 3}" for i in range(40)]
    (found / "pairs.csv").write_text("\n".join(["query,document", *rows]) + "\n")
    return found


def test_simulate_import_bias(folder):
    log, sessions = folder / "log.csv", folder / "sessions.arrow"
    made = _luthier(
        "simulate", folder / "pairs.csv", log, "--sessions", 6000, "--results", 5, "--noise", 2,
        "--json",
    )  # fmt: skip
    assert json.loads(made.stdout)["impressions"] == 30_000
    with open(log, "a") as file:
        file.write("s,u,q,item,none,1,\n")
    read = json.loads(_luthier("import", log, sessions, "--json").stdout)
    assert read["sessions"] == 6000
    assert read["rejected"]["first"][0]["row"] == 30_002
    shown = _luthier("show", log).stdout
    assert "30,000" in shown or "30000" in shown
    found = json.loads(_luthier("bias", sessions, "--json").stdout)
    values = [row["propensity"] for row in found["positions"]]
    assert values == pytest.approx([1, 1 / 2, 1 / 3, 1 / 4, 1 / 5], rel=0.2)
    table = _luthier("bias", sessions, "--method", "em", "--positions", 3).stdout.splitlines()
    assert [line.split()[0] for line in table[1:]] == ["1", "2", "3"]
    assert float(table[2].split()[1]) == pytest.approx(0.5, rel=0.1)


def test_what_cannot_be_is_said_with_its_exit_code(folder, capsys):
    def said_of(*words, code=0):
        assert run(["clicks", *map(str, words)]) == code
        return capsys.readouterr().err

    said = said_of("show", folder / "none.csv", code=3)
    assert "there is no such file" in said
    said = said_of("simulate", folder / "pairs.csv", folder / "log.xml", code=3)
    assert ".arrow or .jsonl or .csv" in said
    bad = folder / "bad.csv"
    bad.write_text("query,item,clicked\nq,a,1\nq,b,perhaps\n")
    said = said_of("import", bad, folder / "bad.arrow", "--strict", code=3)
    assert "row 3, column clicked" in said
    assert "row 3" in said_of("import", bad, folder / "bad.arrow", "--clean")
    assert "roles:" in said_of("import", bad, folder / "b.arrow", "--column", "x=y", code=3)
