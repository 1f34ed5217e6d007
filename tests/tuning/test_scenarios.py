"""Chunks of every scenario against rows picked one by one."""

import time
from itertools import chain

import numpy as np
import pytest
import torch
from torch.utils.data import ConcatDataset, Dataset, Subset, TensorDataset

from luthier.errors import DataError, SpecError
from luthier.tuning.data_modules import (
    DataIncrementalDataModule,
    DataModule,
    DigitsDataModule,
    TensorDataModule,
)
from luthier.tuning.scenarios import (
    BenchmarkScenario,
    ClassIncrementalScenario,
    DataIncrementalScenario,
    IIDScenario,
    PermutationScenario,
    Scenario,
    TransformScenario,
)


class Given(DataModule):
    """The data sets that it is made with."""

    def __init__(self, train, val=None, test=None):
        super().__init__("")
        self.given = (train, val, test)

    def setup(self):
        self._train_data, self._val_data, self._test_data = self.given


class OneByOne(Dataset):
    """Rows that can be asked for one by one only."""

    def __init__(self, rows):
        self.rows = rows

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, i):
        return self.rows[i]


class Unreadable(OneByOne):
    """Rows whose labels are known without them."""

    def __init__(self, rows):
        super().__init__(rows)
        self.targets = [int(y) for _, y in rows]

    def __getitem__(self, i):
        raise AssertionError("a row was read")


def rows_of(n=60, classes=6, seed=0):
    """Inputs that are the row's number, and labels in no order."""
    labels = torch.from_numpy(np.random.default_rng(seed).integers(0, classes, n))
    labels[:classes] = torch.arange(classes)[:n]
    return TensorDataset(torch.arange(n, dtype=torch.float32)[:, None], labels)


def pairs(rows):
    return [(float(x.flatten()[0]), int(y)) for x, y in rows]


def digits(**words):
    return DigitsDataModule(val_size=0.2, seed=1, **words)


GROUPS = [[0, 1], [2, 3], [4, 5]]


@pytest.mark.parametrize(
    "wrap",
    [
        lambda rows: rows,
        OneByOne,
        lambda rows: Subset(rows, range(len(rows))),
        lambda rows: ConcatDataset([Subset(rows, range(20)), Subset(rows, range(20, 60))]),
        lambda rows: [(x, int(y)) for x, y in rows],
        lambda rows: [(x, y[None]) for x, y in rows],
        lambda rows: TensorDataset(rows.tensors[0], rows.tensors[1].float()),
    ],
    ids=["tensors", "one by one", "subset", "concat", "list", "columns", "whole fractions"],
)
def test_a_chunk_of_classes_is_their_rows(wrap):
    train, tests = rows_of(seed=1), rows_of(seed=2)
    scenario = ClassIncrementalScenario(Given(wrap(train), None, wrap(tests)), 1, GROUPS)
    scenario.prepare_data()
    scenario.setup()
    assert pairs(scenario.train_data()) == [(x, y) for x, y in pairs(train) if y in (2, 3)]
    assert [pairs(rows) for rows in scenario.test_data()] == [
        [(x, y) for x, y in pairs(tests) if y in group] for group in GROUPS
    ]
    assert scenario.val_data() is None
    assert scenario.notes == ()


def test_labels_are_read_in_bulk_where_they_are_kept():
    module = Given(Unreadable(rows_of()))
    scenario = ClassIncrementalScenario(module, 0, class_groupings=GROUPS)
    scenario.setup()
    assert len(scenario.train_data()) == sum(y in (0, 1) for _, y in pairs(rows_of()))


def test_chunks_of_the_digits_share_no_row_and_leave_none():
    seen = []
    for chunk in range(5):
        groups = [(2 * i, 2 * i + 1) for i in range(5)]
        scenario = ClassIncrementalScenario(digits(), chunk, groups)
        scenario.setup()
        assert {int(y) for _, y in scenario.train_data()} == {2 * chunk, 2 * chunk + 1}
        assert {int(y) for _, y in scenario.val_data()} == {2 * chunk, 2 * chunk + 1}
        seen += [scenario.train_data(), scenario.val_data()]
        assert sum(map(len, scenario.test_data())) == 359
    assert sum(map(len, seen)) == 1797 - 359


def test_classes_in_no_group_are_told():
    scenario = ClassIncrementalScenario(Given(rows_of()), 0, [[0], [1, 4]])
    scenario.setup()
    left = sum(y in (2, 3, 5) for _, y in pairs(rows_of()))
    assert scenario.notes == (f"{left} rows of classes in no group are left out: 2, 3, 5",)


@pytest.mark.parametrize(
    ("module", "said"),
    [
        (Given(rows_of(classes=3)), "no rows to learn from of chunk 1 have the class 3"),
        (Given(rows_of(), None, rows_of(classes=5)), "to be judged by of chunk 2 have the class 5"),
        (
            Given(rows_of(), Subset(rows_of(classes=1), range(3))),
            "no rows for validation of chunk 1 have the class 2, 3\n.*classes here: 0",
        ),
        (Given(None), "no rows to learn from after setup"),
        (Given([(1.0, "cat")]), "target of row 0 is 'cat'; a class is a whole number"),
        (Given([(1.0, 0), (1.0, 0.5)]), "target of row 1 is 0.5; a class is a whole number"),
        (Given(TensorDataset(torch.zeros(2, 1), torch.zeros(2, 3))), "a target has the shape"),
        (Given([(1.0, 0, 2)]), "row 0 of the data set is 3 values"),
        (Given([1.0]), "row 0 of the data set is float"),
        (Given(iter([(1.0, 0)])), "does not know how many rows it has"),
    ],
)
def test_rows_that_do_not_fit_are_refused(module, said):
    with pytest.raises(DataError, match=said):
        ClassIncrementalScenario(module, 1, GROUPS).setup()


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda m: ClassIncrementalScenario(m, 3, GROUPS), "chunk_id: there is no chunk 3"),
        (lambda m: ClassIncrementalScenario(m, -1, GROUPS), "chunk_id: -1 is not a whole"),
        (lambda m: ClassIncrementalScenario(m, None, GROUPS), "chunk_id: None is not a whole"),
        (lambda m: ClassIncrementalScenario(m, True, GROUPS), "chunk_id: True is not a whole"),
        (lambda m: ClassIncrementalScenario(m, 0), "groupings: not given"),
        (
            lambda m: ClassIncrementalScenario(m, 0, GROUPS, class_groupings=GROUPS),
            "groupings: given under both of its names",
        ),
        (lambda m: ClassIncrementalScenario(m, 0, [0, 1]), "no list of lists"),
        (lambda m: ClassIncrementalScenario(m, 0, "01"), "no list of lists"),
        (lambda m: ClassIncrementalScenario(m, 0, ["01"]), "no list of lists"),
        (lambda m: ClassIncrementalScenario(m, 0, []), "no chunks"),
        (lambda m: ClassIncrementalScenario(m, 0, [[0], []]), "a chunk without members"),
        (lambda m: ClassIncrementalScenario(m, 0, class_groupings=[["a"]]), "class_groupings: 'a'"),
        (lambda m: ClassIncrementalScenario(m, 0, GROUPS, num_tasks=2), "2 chunks, but groupings"),
        (lambda m: IIDScenario(m, 0, 0), "num_tasks: 0 is not a whole number from 1"),
        (lambda m: TransformScenario(m, [], 0), "transforms: none given"),
        (lambda m: PermutationScenario(m, 2, [0, 3], 0), "input_dim: 0 is not"),
        (lambda m: PermutationScenario(m, 2, "ab", 0), "input_dim: 'a' is not"),
        (lambda m: DataIncrementalScenario(m, 0), "none is given"),
        (lambda m: DataIncrementalScenario(m, 0, [1], [[1]]), "both are given"),
        (lambda m: DataIncrementalScenario(m, 0, [1]), "has no data_id"),
    ],
)
def test_arguments_that_cannot_be_are_refused(make, said):
    with pytest.raises(SpecError, match=said):
        make(Given(rows_of()))


def test_random_chunks_are_equal_parts_of_all_rows():
    train, held_out = [], []
    for chunk in range(4):
        scenario = IIDScenario(Given(rows_of(61), rows_of(9), rows_of(7)), 4, chunk, seed=2)
        scenario.setup()
        train.append(pairs(scenario.train_data()))
        held_out.append(pairs(scenario.val_data()))
        assert [pairs(rows) for rows in scenario.test_data()] == [pairs(rows_of(7))] * 4
    assert sorted(map(len, train)) == [15, 15, 15, 16]
    assert sorted(map(len, held_out)) == [2, 2, 2, 3]
    assert sorted(chain(*train)) == pairs(rows_of(61))
    assert sorted(chain(*held_out)) == pairs(rows_of(9))


def test_a_seed_is_another_division():
    def first(seed):
        scenario = IIDScenario(Given(rows_of()), 2, 0, seed)
        scenario.setup()
        return pairs(scenario.train_data())

    assert first(1) == first(1)
    assert first(1) != first(2)


def test_fewer_rows_than_chunks_are_refused():
    with pytest.raises(DataError, match="6 rows for validation cannot make 7 chunks"):
        IIDScenario(Given(rows_of(), rows_of(6)), 7, 0).setup()


def test_a_transform_for_each_chunk():
    transforms = [lambda x: x, lambda x: -x]
    scenario = TransformScenario(Given(rows_of(), rows_of(10), rows_of(7)), transforms, 1, seed=4)
    scenario.setup()
    plain = IIDScenario(Given(rows_of(), rows_of(10), rows_of(7)), 2, 1, seed=4)
    plain.setup()
    assert pairs(scenario.train_data()) == [(-x, y) for x, y in pairs(plain.train_data())]
    assert pairs(scenario.val_data()) == [(-x, y) for x, y in pairs(plain.val_data())]
    tests = pairs(rows_of(7))
    assert [pairs(rows) for rows in scenario.test_data()] == [tests, [(-x, y) for x, y in tests]]


@pytest.mark.parametrize("wrap", [lambda rows: rows, OneByOne], ids=["tensors", "one by one"])
def test_features_in_another_order(wrap):
    x = torch.rand(12, 2, 3)
    rows = TensorDataset(x, torch.arange(12))
    scenarios = [PermutationScenario(Given(wrap(rows), None, wrap(rows)), 3, (2, 3), i, 5)
                 for i in range(3)]  # fmt: skip
    for scenario in scenarios:
        scenario.setup()
    for y, test in enumerate(scenarios[0].test_data()[0]):
        assert torch.equal(test[0], x[y])  # chunk 0 is as it was
    orders = []
    for chunk in (1, 2):
        tests = scenarios[0].test_data()[chunk]
        order = [x[0].flatten().tolist().index(v) for v in tests[0][0].flatten().tolist()]
        assert sorted(order) == list(range(6))
        assert order != list(range(6))
        for y in range(12):
            expected = [x[y].flatten().tolist()[i] for i in order]
            assert tests[y][0].shape == (2, 3)
            assert tests[y][0].flatten().tolist() == expected
        trained = [(a.tolist(), int(b)) for a, b in scenarios[chunk].train_data()]
        assert all(a == tests[b][0].tolist() for a, b in trained)
        orders.append(order)
    assert orders[0] != orders[1]


def test_an_order_does_not_depend_on_the_number_of_chunks():
    def second(num_tasks):
        scenario = PermutationScenario(digits(), num_tasks, 64, 1, seed=3)
        scenario.setup()
        return scenario.test_data()[1][0][0]

    assert torch.equal(second(2), second(5))


def test_features_that_are_not_as_many_are_refused():
    with pytest.raises(DataError, match=r"an input has 64 features, input_dim says 63\n.*1, 8, 8"):
        PermutationScenario(digits(), 2, 63, 0).setup()


class ByYear(DataIncrementalDataModule):
    """Ten rows a year; 2001 has none for validation."""

    def __init__(self, tests=True):
        super().__init__("", data_id=None)
        self.prepared, self.made, self.tests = [], [], tests

    def prepare_data(self):
        self.prepared.append(self.data_id)

    def setup(self):
        self.made.append(self.data_id)
        start = float(self.data_id)
        rows = TensorDataset(start + torch.arange(10.0)[:, None] / 10, torch.zeros(10).long())
        self._train_data = rows
        if self.data_id != 2001:
            self._val_data = Subset(rows, [0])
        if self.tests:
            self._test_data = Subset(rows, [1, 2])


def _starts(rows):
    return sorted({int(x) for x, _ in pairs(rows)})


def test_data_sets_by_id():
    module = ByYear()
    scenario = DataIncrementalScenario(module, 1, data_ids=[2000, 2001, 2002])
    scenario.prepare_data()
    scenario.setup()
    assert module.prepared == [2000, 2001, 2002]
    assert sorted(module.made) == [2000, 2001, 2002]  # once each
    assert module.data_id == 2001
    assert _starts(scenario.train_data()) == [2001]
    assert scenario.val_data() is None  # not that of the year before
    assert [_starts(rows) for rows in scenario.test_data()] == [[2000], [2001], [2002]]


def test_data_sets_in_groups():
    groups = ((2000, 2001), (2001, 2002))
    scenario = DataIncrementalScenario(ByYear(), 0, groupings=groups)
    scenario.setup()
    assert _starts(scenario.train_data()) == [2000, 2001]
    assert _starts(scenario.val_data()) == [2000]
    assert [_starts(rows) for rows in scenario.test_data()] == [[2000, 2001], [2001, 2002]]
    assert len(scenario.train_data()) == 20


def test_data_sets_without_test_data():
    scenario = DataIncrementalScenario(ByYear(tests=False), 0, [2000, 2001])
    scenario.setup()
    assert scenario.test_data() == []


def test_chunks_of_the_modules_own():
    lists = [rows_of(3), rows_of(4)]
    scenario = BenchmarkScenario(Given(rows_of(), None, lists), 2, 0)
    scenario.setup()
    assert scenario.test_data() == lists
    with pytest.raises(DataError, match="no list of 3 data sets"):
        BenchmarkScenario(Given(rows_of(), None, lists), 3, 0).setup()


def test_a_scenario_of_ones_own_by_the_protected_names():
    class Halves(Scenario):
        def setup(self):
            super().setup()
            self._test_data = [self._data_module.test_data()] * self._num_tasks
            self._train_data = Subset(self._data_module.train_data(), [self._chunk_id])

    scenario = Halves(Given(rows_of(), None, rows_of(2)), num_tasks=2, chunk_id=1, seed=9)
    scenario.setup()
    assert pairs(scenario.train_data()) == pairs(rows_of())[1:2]
    assert len(scenario.test_data()) == scenario.num_tasks == 2


def test_a_large_table_is_divided_in_a_moment():
    n = 1_000_000
    module = TensorDataModule(torch.zeros(n, 1), torch.arange(n) % 10, test_size=0.1)
    scenario = ClassIncrementalScenario(module, 0, [[2 * i, 2 * i + 1] for i in range(5)])
    start = time.process_time()
    scenario.setup()
    assert time.process_time() - start < 2.0
    assert len(scenario.train_data()) == pytest.approx(180_000, rel=0.01)
