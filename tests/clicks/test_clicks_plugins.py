"""Methods of fine-tuning, found in folders and by entry points."""

import os
from pathlib import Path

import pytest

from luthier.clicks import FineTuningMethod, PluginMeta, find_method, find_methods
from luthier.errors import Conflict, DataError, NotFound

EXAMPLE = Path(__file__).parents[2] / "examples" / "clicks" / "plugins"
MINE = """
from luthier.clicks import FineTuningMethod, PluginMeta

class Mine(FineTuningMethod):
    meta = PluginMeta(name="Mine", version="0.1", description="of a test")
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.delenv("LUTHIER_PLUGINS", raising=False)
    (tmp_path / "mine.py").write_text(MINE)
    (tmp_path / "_helper.py").write_text("raise RuntimeError('is not loaded')")
    return tmp_path


def test_the_example_is_a_plugin_of_under_40_lines(folder):
    file = EXAMPLE / "text_method.py"
    assert len(file.read_text().splitlines()) < 40
    method = find_method("TextMethod", EXAMPLE)
    assert isinstance(method, FineTuningMethod)
    assert method.meta == PluginMeta("TextMethod", "0.0.1", "Two rates to try")


def test_folders_are_arguments_or_named_by_a_variable(folder, monkeypatch):
    assert find_methods() == {}
    assert set(find_methods(folder)) == {"Mine"}
    monkeypatch.setenv("LUTHIER_PLUGINS", f"{folder}{os.pathsep}{EXAMPLE}")
    assert set(find_methods(folder)) == {"Mine", "TextMethod"}
    assert find_methods(folder)["Mine"] is find_methods()["Mine"]
    with pytest.raises(NotFound, match="did you mean 'TextMethod'"):
        find_method("TextMethode")


def test_entry_points_are_found(folder, tmp_path, monkeypatch):
    """A package that is really installed, as far as importlib can tell."""
    package = tmp_path / "site"
    (package / "a_package-1.0.dist-info").mkdir(parents=True)
    (package / "a_package.py").write_text(MINE)
    info = package / "a_package-1.0.dist-info"
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: a-package\nVersion: 1.0\n")
    points = info / "entry_points.txt"
    points.write_text("[luthier.clicks.methods]\nmine = a_package:Mine\n")
    monkeypatch.syspath_prepend(str(package))
    assert find_methods()["Mine"].__module__ == "a_package"
    with pytest.raises(Conflict, match="two methods are called 'Mine'"):
        find_methods(folder)
    points.write_text("[luthier.clicks.methods]\nmine = a_package:PluginMeta\n")
    with pytest.raises(DataError, match=r"entry point mine.*no subclass"):
        find_methods()
    points.write_text("[luthier.clicks.methods]\nmine = a_package:Nothing\n")
    with pytest.raises(DataError, match=r"entry point mine.*cannot be loaded"):
        find_methods()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("import nothing_of_this_name", r"bad.py, row 1: .*nothing_of_this_name"),
        ("x = 1\nclass = 3", r"bad.py, row 2: .*SyntaxError"),
        (MINE.replace("meta =", "data ="), r"bad.py: Mine has no meta"),
        (MINE.replace('"Mine"', '" "'), r"bad.py, row 5: .*a plugin has a name"),
    ],
)
def test_a_plugin_that_cannot_be_loaded_is_told_by_file_and_line(tmp_path, text, said):
    (tmp_path / "bad.py").write_text(text)
    with pytest.raises(DataError, match=said):
        find_methods(tmp_path)


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(DataError, match="no such folder of plugins"):
        find_methods(tmp_path / "none")
