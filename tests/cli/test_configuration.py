"""CONFIG.yaml: its two forms, its paths, and what is refused with file and line."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from luthier.cli.configuration import is_nested, lay_over, read_configuration, read_value
from luthier.errors import DataError, SpecError


def _read(tmp_path, text):
    file = tmp_path / "config.yaml"
    file.write_text(text, encoding="utf-8")
    return read_configuration(file)


def test_numbers_without_a_dot_are_numbers(tmp_path):
    """YAML 1.1 would read 1e-4 as text."""
    data = _read(tmp_path, "learning_rate: 1e-4\nloss_options: {margin: 5E-2, s: '1e-4'}\n")
    assert data["learning_rate"] == 1e-4
    assert data["loss_options"] == {"margin": 0.05, "s": "1e-4"}


def test_paths_are_meant_from_the_files_own_folder(tmp_path, monkeypatch):
    (tmp_path / "models").mkdir()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    data = _read(
        tmp_path,
        """
model: models
train_data: data/train.csv
eval_data: s3://bucket/eval.csv
callbacks:
  - {kind: evaluation, query_data: queries.csv, index_data: 'blob:00ff'}
  - {kind: early_stopping}
""",
    )
    assert data["model"] == str(tmp_path / "models")
    assert data["train_data"] == str(tmp_path / "data/train.csv")
    assert data["eval_data"] == "s3://bucket/eval.csv"
    assert data["callbacks"][0]["query_data"] == {"uri": str(tmp_path / "queries.csv")}
    assert data["callbacks"][0]["index_data"] == {"uri": "blob:00ff"}


def test_a_model_name_is_no_path(tmp_path):
    assert _read(tmp_path, "model: bert-base-en")["model"] == "bert-base-en"
    assert _read(tmp_path, "model: BAAI/bge-small-en-v1.5")["model"] == "BAAI/bge-small-en-v1.5"
    assert _read(tmp_path, "model: ./tuned")["model"] == str(tmp_path / "tuned")


def test_a_nested_spec_is_told_from_words(tmp_path):
    nested = _read(tmp_path, "model: {name: ./m}\ndata: {train: a.csv, csv: {size: 3}}\n")
    assert is_nested(nested)
    assert nested["model"]["name"] == str(tmp_path / "m")
    assert nested["data"]["train"] == {"uri": str(tmp_path / "a.csv")}
    assert not is_nested(_read(tmp_path, "model: m\ntrain_data: a.csv\n"))


def test_flags_merge_into_options_and_replace_the_rest():
    data = {"objective": {"loss": "A", "loss_options": {"margin": 1, "p": 2}}}
    lay_over(data, "objective.loss_options", {"margin": 3})
    lay_over(data, "objective.loss", "B")
    lay_over(data, "training.seed", 7)
    assert data == {
        "objective": {"loss": "B", "loss_options": {"margin": 3, "p": 2}},
        "training": {"seed": 7},
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model: a\nmodel: b\n", "row 2, column 1: .*'model' is given twice"),
        ("loss_options:\n  margin: 1\n  margin: 2\n", "row 3, column 3: .*'margin' is given twice"),
        ("model: [a\ntrain_data: b\n", "is no YAML"),
        ("- a\n- b\n", "holds no mapping"),
        ("", "holds no mapping"),
        ("1: a\n", "1 is no name"),
        ("when: 2020-13-45\n", "is no YAML"),
        ("a: !!python/object/apply:os.system [ls]\n", "is no YAML"),
    ],
)
def test_a_bad_file_is_refused_with_its_place(tmp_path, text, message):
    with pytest.raises(DataError, match=message) as caught:
        _read(tmp_path, text)
    assert "config.yaml" in str(caught.value)


def test_a_file_that_is_not_there_or_not_text(tmp_path):
    with pytest.raises(DataError, match="cannot be read: No such file"):
        read_configuration(tmp_path / "none.yaml")
    (tmp_path / "binary.yaml").write_bytes(b"a: \xff\xfe")
    with pytest.raises(DataError, match="is not UTF-8"):
        read_configuration(tmp_path / "binary.yaml")


@given(st.text(max_size=40))
def test_any_text_is_a_value_or_an_error_of_ours(text):
    with contextlib.suppress(SpecError):  # the only error that may leave
        read_value("x", text)
