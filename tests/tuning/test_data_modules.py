"""Rows from arrays and files: what is held out, what is refused, and that it is the same again."""

import hashlib
from itertools import chain

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from luthier.errors import DataError, SpecError
from luthier.tuning.data_modules import (
    DataModule,
    DigitsDataModule,
    NPZDataModule,
    RenateDataModule,
    TensorDataModule,
)
from luthier.tuning.datasets import randomly_split_data


def _ids(rows):
    return [int(x.flatten()[0]) for x, _ in rows]


def _numbered(n=20):
    return torch.arange(n, dtype=torch.float32)[:, None], torch.arange(n) % 2


def test_parts_have_all_rows_once_and_keep_their_order():
    rows = TensorDataset(torch.arange(101)[:, None])
    parts = [[int(x) for (x,) in part] for part in randomly_split_data(rows, [0.7, 0.2, 0.1], 3)]
    assert sorted(chain(*parts)) == list(range(101))
    assert [len(part) for part in parts] == [71, 20, 10]
    assert all(part == sorted(part) for part in parts)


def test_a_split_is_the_same_on_every_machine():
    """The order in plain Python: SplitMix64 of the row's number, keyed by sha256."""
    words = 2**64

    def number(i):
        z = ((i + 1) * 0x9E3779B97F4A7C15 + key) % words
        z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 % words
        z = (z ^ z >> 27) * 0x94D049BB133111EB % words
        return z ^ z >> 31

    key = int.from_bytes(hashlib.sha256(b"split\x1f7").digest()[:8], "little")
    order = sorted(range(1000), key=number)
    parts = randomly_split_data(TensorDataset(torch.arange(1000)), [0.75, 0.25], 7)
    assert [part.indices for part in parts] == [sorted(order[:750]), sorted(order[750:])]


def test_other_seeds_and_purposes_give_other_parts():
    rows = TensorDataset(torch.arange(200))

    def half(*seed, **words):
        return randomly_split_data(rows, [0.5, 0.5], *seed, **words)[0].indices

    assert half(1) != half(2)
    assert half(1) != half(1, purpose="other")


@pytest.mark.parametrize("shares", [[], [0.5, 0.4], [1.5, -0.5]])
def test_shares_must_sum_to_one(shares):
    with pytest.raises(SpecError, match="do not sum to 1"):
        randomly_split_data(TensorDataset(torch.arange(5)), shares)


def test_arrays_are_split_three_ways_without_overlap():
    module = TensorDataModule(*_numbered(), test_size=0.25, val_size=0.2, seed=5)
    module.prepare_data()
    module.setup()
    parts = [_ids(module.train_data()), _ids(module.val_data()), _ids(module.test_data())]
    assert [len(part) for part in parts] == [12, 3, 5]
    assert sorted(chain(*parts)) == list(range(20))
    module.setup()  # again, as a second trial does
    assert _ids(module.val_data()) == parts[1]


def test_test_arrays_are_taken_as_they_are():
    x, y = _numbered()
    module = TensorDataModule(x, y, test_inputs=x[:3], test_labels=y[:3])
    module.setup()
    assert len(module.train_data()) == 20
    assert module.val_data() is None
    assert _ids(module.test_data()) == [0, 1, 2]


def test_arrays_get_the_types_that_models_take():
    module = TensorDataModule(np.zeros((4, 2)), np.array([0, 1, 1, 0], dtype=np.uint8), test_size=0)
    module.setup()
    x, y = module.train_data()[1]
    assert (x.dtype, y.dtype) == (torch.float32, torch.int64)
    assert module.test_data() is None


@pytest.mark.parametrize(
    "array",
    [
        np.arange(6, dtype=">f4").reshape(3, 2),
        np.arange(6, dtype=">f8").reshape(3, 2),
        np.arange(5, -1, -1, dtype=np.float32).reshape(3, 2)[::-1, ::-1],
        np.broadcast_to(np.arange(6, dtype=np.int64), (2, 6))[0].reshape(3, 2),
        np.arange(6).reshape(2, 3).T.copy().T.reshape(3, 2),
        [[0, 1], [2, 3], [4, 5]],
    ],
    ids=["other bytes", "other wide bytes", "backwards", "read only", "transposed", "list"],
)
def test_arrays_of_any_layout_hold_the_same_numbers(array):
    module = TensorDataModule(array, [0, 1, 2], test_size=0)
    module.setup()
    assert module.train_data().tensors[0].tolist() == [[0, 1], [2, 3], [4, 5]]


def test_transforms_are_applied_late():
    calls = []

    def double(x):
        calls.append(1)
        return 2 * x

    module = TensorDataModule(
        *_numbered(), test_size=0, transform=double, target_transform=lambda y: y + 10
    )
    module.setup()
    assert not calls
    x, y = module.train_data()[3]
    assert (float(x), int(y), len(calls)) == (6.0, 11, 1)
    xs, ys = next(iter(DataLoader(module.train_data(), batch_size=5)))
    assert xs.flatten().tolist() == [0, 2, 4, 6, 8]
    assert ys.tolist() == [10, 11, 10, 11, 10]


@pytest.mark.parametrize(
    ("inputs", "labels", "said"),
    [
        ([[1.0], [2.0]], [0], "inputs has 2 rows, labels has 1"),
        ([["a"], ["b"]], [0, 1], "column inputs: this is no array of numbers"),
        ([[1.0], [1.0, 2.0]], [0, 1], "column inputs: this is no array of numbers"),
        ([[1.0], [float("nan")]], [0, 1], r"column inputs: entry \[1, 0\] is nan"),
        ([[1.0], [2.0]], [0.0, float("inf")], r"column labels: entry \[1\] is inf"),
        (3.0, [0], "column inputs: this is one number"),
        ([], [], "no rows to learn from"),
    ],
)
def test_arrays_that_are_no_rows_are_refused(inputs, labels, said):
    with pytest.raises(DataError, match=said):
        TensorDataModule(inputs, labels, test_size=0).setup()


@pytest.mark.parametrize("size", [1, 1.0, -0.1, float("nan"), True, "0.1", None])
@pytest.mark.parametrize("name", ["val_size", "test_size"])
def test_what_is_no_share_is_refused(name, size):
    with pytest.raises(SpecError, match=f"{name}: .* is not a share"):
        TensorDataModule(*_numbered(), **{name: size})


@pytest.mark.parametrize("words", [{"val_size": 0.01}, {"test_size": 0.01}])
def test_a_share_that_leaves_a_part_empty_is_refused(words):
    with pytest.raises(DataError, match="leaves none"):
        TensorDataModule(*_numbered(), **words).setup()


def test_the_digits_are_real():
    module = DigitsDataModule(val_size=0.1)
    module.setup()
    sizes = [len(rows) for rows in (module.train_data(), module.val_data(), module.test_data())]
    assert sum(sizes) == 1797
    x, y = module.train_data()[0]
    assert x.shape == (1, 8, 8)
    assert 0 <= float(x.min()) < float(x.max()) <= 1
    assert 0 <= int(y) <= 9


def test_an_npz_file_as_mnist_comes(tmp_path):
    x, y = np.arange(12, dtype=np.uint8).reshape(3, 2, 2), np.array([0, 1, 2])
    np.savez(tmp_path / "data.npz", x_train=x, y_train=y, x_test=x[:1], y_test=y[:1])
    module = NPZDataModule(tmp_path)
    module.setup()
    assert torch.equal(module.train_data()[2][0], torch.tensor([[8, 9], [10, 11]]).byte())
    assert len(module.test_data()) == 1


@pytest.mark.parametrize(
    ("write", "said"),
    [
        (lambda f: None, "there is no such file"),
        (lambda f: f.write_bytes(b""), "no .npz file of numbers"),
        (lambda f: f.write_bytes(b"PK\x03\x04 broken"), "no .npz file of numbers"),
        (lambda f: f.write_text("a,b"), "no .npz file of numbers"),
        (lambda f: np.savez(f, x_train=[1]), "no array 'y_train'"),
        (
            lambda f: np.savez(f, **dict.fromkeys(
                ("x_train", "y_train", "x_test", "y_test"), np.array([{}, {}]))),
            "no .npz file of numbers",
        ),
    ],
    ids=["missing", "empty", "broken", "text", "an array short", "objects"],
)  # fmt: skip
def test_a_file_that_is_no_npz_is_refused(tmp_path, write, said):
    write(tmp_path / "data.npz")
    with pytest.raises(DataError, match=f"data.npz.*{said}"):
        NPZDataModule(tmp_path).setup()


class Own(RenateDataModule):
    """As people write them: setup with a stage, the protected names of the base class."""

    def setup(self, stage=None):
        rows = TensorDataset(*_numbered(10))
        self._train_data, self._val_data = self._split_train_val_data(rows)


def test_a_module_of_ones_own():
    module = Own("some/folder", None, None, 0.3, 1)
    module.prepare_data()
    module.setup()
    assert (len(module.train_data()), len(module.val_data())) == (7, 3)
    assert module.test_data() is None
    assert module.train_collate_fn() is None


def test_a_module_without_setup_is_abstract():
    with pytest.raises(TypeError, match="abstract"):
        DataModule("folder")


@pytest.mark.parametrize(
    ("bucket", "folder", "said"),
    [
        (None, "folder", "which?"),
        ("a/b", None, "no bucket's name"),
        ("bucket", "../x", "does not lie in"),
        ("bucket", "x", "does not say which files"),
    ],
)
def test_a_bucket_that_cannot_be_is_refused(tmp_path, bucket, folder, said):
    class Fetching(Own):
        files = () if "which files" in said else ("data.npz",)

    with pytest.raises(SpecError, match=said):
        Fetching(tmp_path, bucket, folder).prepare_data()
