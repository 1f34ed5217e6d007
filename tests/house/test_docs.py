"""The docs are law: their Python runs, they name every public name, and they fit the code."""

import doctest
import importlib
import inspect
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import luthier
from luthier.cli.words import RUN_WORDS
from luthier.doors import fit as door

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
WITH_PYTHON = [page for page in PAGES if BLOCK.search(page.read_text(encoding="utf-8"))]


def _name(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with the files that the pages speak of, and a home with a worker of its own."""
    folder = tmp_path_factory.mktemp("docs")
    rows = [f"thing number {i},what is called by the name {i}" for i in range(48)]
    for name, part in (("pairs.csv", rows[:32]), ("held-out.csv", rows[32:])):
        (folder / name).write_text("\n".join(["anchor,positive", *part]) + "\n")
    environment = {
        **os.environ,
        "LUTHIER_HOME": str(folder / "home"),
        "LUTHIER_WORKER": "none",
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    with open(folder / "worker.log", "w") as log:
        worker = subprocess.Popen(
            [sys.executable, "-m", "luthier", "worker"], env=environment, stdout=log, stderr=log
        )
    yield folder, environment
    worker.terminate()
    assert worker.wait(timeout=60) == 0, (folder / "worker.log").read_text()


@pytest.mark.real
@pytest.mark.parametrize("page", WITH_PYTHON, ids=_name)
def test_the_python_of_a_page_runs(page, place):
    """All blocks of a page, in order, as one program."""
    folder, environment = place
    text = page.read_text(encoding="utf-8")
    program = "import luthier\n"
    for block in BLOCK.finditer(text):
        line = text[: block.start()].count("\n") + 1  # of the fence: code starts below it
        program += f"exec(compile({chr(10) * line + block[1]!r}, {_name(page)!r}, 'exec'))\n"
    done = subprocess.run(
        [sys.executable, "-W", "error::DeprecationWarning:__main__", "-c", program],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_every_public_name_is_documented():
    text = "".join(page.read_text(encoding="utf-8") for page in PAGES)
    missing = [n for n in luthier.__all__ if n != "__version__" and f"luthier.{n}" not in text]
    assert not missing


def test_every_word_of_fit_is_documented():
    page = (ROOT / "docs" / "fit.md").read_text(encoding="utf-8")
    words = [*inspect.signature(luthier.fit).parameters, *RUN_WORDS]
    missing = [w for w in words if w != "training" and f"`{w}`" not in page]
    training = {"per_device_train_batch_size", "num_train_epochs", "optim", "optim_args",
                "lr_scheduler_type", "lr_scheduler_kwargs", "dataloader_num_workers"}  # fmt: skip
    missing += [w for w in door.WORDS if w not in training and f"`{w}`" not in page]
    assert not sorted(set(missing))


def test_no_module_takes_the_place_of_a_public_name():
    """Importing ``luthier.fit``, were there one, would put a module where the function is."""
    program = """
import luthier
from importlib.util import find_spec
names = [n for n in luthier.__all__ if n != "__version__"]
assert len(names) > 20
assert all(getattr(luthier, n).__name__ == n for n in names)
print(*(n for n in names if find_spec(f"luthier.{n}") is not None))
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == []


def test_the_page_of_the_command_line_is_what_the_command_says():
    environment = {k: v for k, v in os.environ.items() if not k.startswith("LUTHIER_")}
    script = ROOT / "scripts" / "cli_docs.py"
    done = subprocess.run([sys.executable, script, "--check"], env=environment, check=False)
    assert done.returncode == 0, "run: python scripts/cli_docs.py"


def test_links_between_pages_lead_somewhere():
    dead = []
    pages = [*PAGES, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"]
    for page in pages:
        for target in re.findall(r"\]\(([^)#\s]+)", page.read_text(encoding="utf-8")):
            if "://" not in target and not (page.parent / target).exists():
                dead.append(f"{_name(page)}: {target}")
    assert not dead


def test_every_page_is_in_the_index():
    index = (ROOT / "docs" / "README.md").read_text(encoding="utf-8")
    pages = [p.name for p in (ROOT / "docs").glob("*.md") if p.name != "README.md"]
    assert [p for p in pages if f"({p})" not in index] == []
    records = [p.name for p in (ROOT / "docs" / "decisions").glob("0*.md")]
    listed = (ROOT / "docs" / "decisions" / "README.md").read_text(encoding="utf-8")
    assert [p for p in records if f"({p})" not in listed] == []


SOURCES = sorted((ROOT / "src" / "luthier").rglob("*.py"))
WITH_DOCTEST = [s for s in SOURCES if re.search(r"^\s+>>> ", s.read_text("utf-8"), re.MULTILINE)]


def _module(file: Path) -> str:
    return ".".join(file.relative_to(ROOT / "src").with_suffix("").parts)


@pytest.mark.parametrize("file", WITH_DOCTEST, ids=_module)
def test_examples_in_docstrings_are_true(file):
    result = doctest.testmod(importlib.import_module(_module(file)))
    assert result.attempted > 0
    assert result.failed == 0
