"""What stands in the tree: sizes of files, words that do not belong there, pinned versions."""

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

#: Longer than this, a file has more than one responsibility.
MOST_LINES = 400
#: File → why it may be longer, and how long.
LONGER = {"src/luthier/models/catalog.py": (480, "half of it is the table of models")}


def _tracked() -> list[Path]:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=False)
    if listed.returncode != 0:
        pytest.skip("not a git checkout: what is part of the tree cannot be told")
    files = [ROOT / name for name in listed.stdout.decode().split("\0") if name]
    return [file for file in files if file.is_file()]


def _texts():
    for file in _tracked():
        data = file.read_bytes()
        if b"\0" not in data[:8000]:
            yield file, data.decode("utf-8", errors="replace")


def test_no_source_file_is_too_long():
    lengths = {str(f.relative_to(ROOT)): len(_lines(f)) for f in (ROOT / "src").rglob("*.py")}
    allowed = {name: LONGER.get(name, (MOST_LINES,))[0] for name in lengths}
    assert {name: n for name, n in lengths.items() if n > allowed[name]} == {}


def _lines(file: Path) -> list[str]:
    return file.read_text(encoding="utf-8").splitlines()


def test_no_room_for_what_has_no_name():
    names = {"utils", "util", "common", "helpers", "helper", "misc"}
    found = [f for f in (ROOT / "src").rglob("*") if f.stem in names]
    assert not found


def test_nothing_names_a_machine_or_a_registry():
    """Paths of somebody's machine, and addresses of package indexes, are not ours to commit."""
    homes = "|".join(("work", "root", "Users"))
    index = "index" + "-url"
    pattern = re.compile(rf"(?<![\w.<~}}])/(?:{homes})/\w|--(?:extra-)?{index}[ =]\S")
    found = [
        f"{file.relative_to(ROOT)}: {match[0]}"
        for file, text in _texts()
        for match in pattern.finditer(text)
    ]
    assert not found


def test_constraints_pin_every_requirement():
    text = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    pinned = {re.sub(r"[-_.]+", "-", n).lower() for n in re.findall(r"^([\w.-]+)==", text, re.M)}
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = [*project["dependencies"], *project["optional-dependencies"]["dev"]]
    names = [re.sub(r"[-_.]+", "-", re.match(r"[\w.-]+", w)[0]).lower() for w in wanted]
    assert [n for n in names if n not in pinned and n != "luthier"] == []
    assert "+" not in text, "a local version cannot be installed elsewhere"


def test_a_variable_of_the_environment_has_one_name_and_one_meaning():
    """All are in one module, no two alike, and the page on the command line tells of each."""
    from luthier import environment

    names = [value for key, value in vars(environment).items() if key.isupper()]
    assert len(set(names)) == len(names) > 10
    assert all(name.startswith("LUTHIER_") for name in names)
    page = (ROOT / "docs" / "cli.md").read_text()
    told = re.search(r"\| variable \| means \|\n(?:\|.*\n)+", page)[0]
    assert sorted(re.findall(r"`(LUTHIER_\w+)`", told)) == sorted(names)
    spelt = re.compile(r"""["']LUTHIER_\w+["']""")
    found = {
        str(file.relative_to(ROOT)): spelt.findall(file.read_text())
        for file in (ROOT / "src").rglob("*.py")
        if file.name != "environment.py"
    }
    assert {name: words for name, words in found.items() if words} == {}
