"""CSV files as rows: values against Python's csv, errors that name file, row and column."""

import csv

import numpy as np
import pytest
import torch

from luthier.errors import DataError
from luthier.testing import s3
from luthier.tuning.data_modules import CSVDataModule

TRAIN = "a,b,y\n1,2,0\n3,4.5,1\n -1e3 ,.5,2\n"


def _module(folder, train=TRAIN, test="y,b,a\n1,2,3\n", **words):
    (folder / "train.csv").write_text(train)
    (folder / "test.csv").write_text(test)
    return CSVDataModule(folder, **words)


def test_numbers_and_classes(tmp_path):
    module = _module(tmp_path)
    module.setup()
    x, y = module.train_data().tensors
    assert x.tolist() == [[1, 2], [3, 4.5], [-1000, 0.5]]
    assert (x.dtype, y.dtype, y.tolist()) == (torch.float32, torch.int64, [0, 1, 2])
    x, y = module.test_data().tensors  # its columns are in another order
    assert (x.tolist(), y.tolist()) == ([[3, 2]], [1])


def test_many_rows_are_those_that_python_reads(tmp_path):
    rng = np.random.default_rng(0)
    values = rng.normal(size=(500, 7)) * 10.0 ** rng.integers(-8, 8, size=(500, 7))
    lines = [",".join(map(repr, map(float, row))) for row in values]
    text = "\n".join(["a,b,c,d,e,f,y", *lines])
    module = _module(tmp_path, text, text, val_size=0.2, seed=3)
    module.setup()
    rows = [[float(cell) for cell in row] for row in list(csv.reader(text.splitlines()))[1:]]
    expected = torch.tensor(rows, dtype=torch.float64).to(torch.float32)
    x, y = module.test_data().tensors
    assert torch.equal(x, expected[:, :6])
    assert torch.equal(y, expected[:, 6])
    assert (len(module.train_data()), len(module.val_data())) == (400, 100)
    held_out = module.val_data().indices
    assert torch.equal(module.val_data()[7][0], expected[held_out[7], :6])


def test_values_of_which_some_are_whole_are_values_in_both_files(tmp_path):
    module = _module(tmp_path, "a,y\n1,0.5\n", "a,y\n1,2\n")
    module.setup()
    assert module.train_data().tensors[1].dtype == torch.float32
    assert module.test_data().tensors[1].dtype == torch.float32


def test_names_of_classes(tmp_path):
    module = _module(tmp_path, "a,y\n1,dog\n2,cat\n", "a,y\n1,cat\n", classes=["cat", "dog"])
    module.setup()
    assert module.train_data().tensors[1].tolist() == [1, 0]
    assert module.test_data().tensors[1].tolist() == [0]


def test_another_target_and_other_files(tmp_path):
    (tmp_path / "one.csv").write_text("label;a\n1;2\n")
    module = CSVDataModule(tmp_path, "one.csv", "one.csv", target_name="label")
    module.setup()
    assert module.train_data()[0][0].tolist() == [2]


@pytest.mark.parametrize(
    ("train", "test", "words", "said"),
    [
        ("a,b,y\n1,2,0\n3,x,1\n", "a,b,y\n1,2,0\n", {}, r"train.csv, row 3, column b: 'x' is no"),
        (TRAIN, "a,b,y\n1,2,0\n3,,1\n", {}, r"test.csv, row 3, column b: this cell is empty"),
        ("a,y\n1,0\ninf,1\n", "a,y\n1,0\n", {}, r"train.csv, row 3, column a: 'inf' is no"),
        ('a,y\n1,0\n"1\n",1\n2,z\n', "a,y\n1,0\n", {}, "train.csv, row 5, column y: 'z' is no"),
        (TRAIN, "a,c,y\n1,2,0\n", {}, r"test.csv, column b: this column is in .*train.csv only"),
        (TRAIN, "a,b,c,y\n1,2,3,0\n", {}, r"train.csv, column c: this column is in .*test.csv"),
        (TRAIN, "a,b,y\n1,2\n", {}, r"test.csv, row 2"),
        (TRAIN, TRAIN, {"target_name": "Y"}, r"no column 'Y' to predict\n.*did you mean 'y'"),
        ("y\n1\n", "y\n1\n", {}, "no column to predict from"),
        (
            "a,y\n1,dog\n2,cow\n",
            "a,y\n1,dog\n",
            {"classes": ["cat", "dog"]},
            r"row 3, column y: 'c",
        ),
        (
            'a,y\n"1\n",dog\n2,cow\n',
            "a,y\n1,dog\n",
            {"classes": ["cat", "dog"]},
            "row 4, column y: 'c",
        ),
        ("a,y\n", TRAIN, {}, "train.csv: no rows"),
        ("", TRAIN, {}, "train.csv: the file is empty"),
    ],
)
def test_what_is_wrong_is_named(tmp_path, train, test, words, said):
    with pytest.raises(DataError, match=said):
        _module(tmp_path, train, test, **words).setup()


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(DataError, match=r"train.csv: there is no such file"):
        CSVDataModule(tmp_path).setup()


def test_files_come_from_a_bucket_once(tmp_path, monkeypatch):
    with s3.server(tmp_path / "server") as server:
        import s3fs

        s3fs.S3FileSystem.clear_instance_cache()
        monkeypatch.setenv("HOME", str(tmp_path))
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        for name in ("train.csv", "test.csv"):
            server.put("bucket", f"flowers/{name}", TRAIN.encode())
        words = {"src_bucket": "bucket", "src_object_name": "flowers"}
        module = CSVDataModule(tmp_path / "data", **words)
        module.prepare_data()
        module.prepare_data()
        module.setup()
        assert len(module.train_data()) == len(module.test_data()) == 3
        gets = [how for how, _ in server.requests("/bucket/flowers/train.csv") if how == "GET"]
        assert len(gets) == 1

        server.put("bucket", "flowers/train.csv", TRAIN.encode() + b"5,6,0\n")
        module.prepare_data()
        module.setup()
        assert len(module.train_data()) == 4

        with pytest.raises(DataError, match=r"nowhere/train.csv: there is no such file"):
            CSVDataModule(
                tmp_path / "data", **words | {"src_object_name": "nowhere"}
            ).prepare_data()
