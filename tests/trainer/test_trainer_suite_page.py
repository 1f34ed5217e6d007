"""The page of the public suite names tests that there are."""

import re
from fnmatch import fnmatch
from pathlib import Path

HERE = Path(__file__).parent
PAGE = HERE.parents[1] / "docs" / "trainer-suite.md"


def names_in(name: str) -> set[str]:
    """The tests of a file by the short name that the page has for it."""
    paths = [HERE / f"test_trainer_suite_{name}.py", HERE / f"test_trainer_{name}.py"]
    path = next(path for path in paths if path.exists())
    return set(re.findall(r"^def (test_\w+)", path.read_text(), re.MULTILINE))


def test_every_test_that_it_names_is_there() -> None:
    checked = 0
    for row in PAGE.read_text().splitlines():
        if not row.startswith("| ") or row.count("|") != 4:
            continue
        file = ""
        for word in re.findall(r"`([^`]+)`", row.split("|")[3]):
            if word.endswith(".py"):
                assert (HERE / word).exists(), word
                continue
            file = word.split("::")[0] if "::" in word else file
            pattern = word.split("::")[-1].replace("…", "*")
            if not pattern.startswith(("test_", "*")):
                continue
            found = [name for name in names_in(file) if fnmatch(name, pattern)]
            assert len(found) == 1, (file, pattern, found)
            checked += 1
    assert checked > 90
