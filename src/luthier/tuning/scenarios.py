"""Scenarios: how a data module's rows come one chunk after another, for experiments.

| scenario | a chunk is | test data of a chunk | arguments besides data_module, chunk_id |
|---|---|---|---|
| ``ClassIncrementalScenario`` | the rows of some classes | the same classes | ``groupings`` |
| ``IIDScenario`` | a random part | all | ``num_tasks``, ``seed`` |
| ``TransformScenario`` | a random part, transformed | all, transformed | ``transforms``, ``seed`` |
| ``ImageRotationScenario`` | a random part, turned | all, turned | ``degrees``, ``seed`` |
| ``PermutationScenario`` | a random part, features in another order (chunk 0: as they are) \
| all, likewise | ``num_tasks``, ``input_dim``, ``seed`` |
| ``FeatureSortingScenario`` | a range of a feature's values | the same share of the sorted \
test rows | ``num_tasks``, ``feature_idx``, ``randomness``, ``seed`` |
| ``HueShiftScenario`` | a range of dominant hues | likewise | ``num_tasks``, ``randomness``, \
``seed`` |
| ``DataIncrementalScenario`` | the data sets that ids name | the same ids | ``data_ids`` or \
``groupings`` |
| ``BenchmarkScenario`` | what the module gives | the module's own list | ``num_tasks`` |

A scenario is used as a data module is: ``prepare_data()``, ``setup()``, then ``train_data()`` and
``val_data()`` of the chunk, and ``test_data()``: a list, one data set for each chunk (empty where
the module has no test data). What is random is a function of ``seed``, and the same everywhere.
``class_groupings`` is the former name of ``groupings``; ``num_tasks``, once given with groupings,
degrees and transforms, may be, and must agree.

    >>> from luthier.tuning.data_modules import TensorDataModule
    >>> rows = TensorDataModule([[0.0], [1.0], [2.0], [3.0]], [0, 1, 0, 1], test_size=0)
    >>> scenario = ClassIncrementalScenario(rows, 1, groupings=[[0], [1]])
    >>> scenario.setup()
    >>> [x.item() for x, _ in scenario.train_data()]
    [1.0, 3.0]
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import ConcatDataset, Subset

from luthier.errors import DataError
from luthier.tuning.data_module import DataModule
from luthier.tuning.datasets import Rows, Transform, labels_of, transformed
from luthier.tuning.scenario import Groupings, Scenario, agree, groups, real, refused, whole
from luthier.tuning.sorting import FeatureSortingScenario, HueShiftScenario, SortingScenario
from luthier.tuning.transforms import Permutation, Rotation

__all__ = [
    "BenchmarkScenario",
    "ClassIncrementalScenario",
    "DataIncrementalScenario",
    "FeatureSortingScenario",
    "HueShiftScenario",
    "IIDScenario",
    "ImageRotationScenario",
    "PermutationScenario",
    "Scenario",
    "SortingScenario",
    "TransformScenario",
]


class BenchmarkScenario(Scenario):
    """Chunks that the data module makes itself: its test data is a list of one for each."""

    def setup(self) -> None:
        super().setup()
        module = self._data_module
        self._train_data, self._val_data = module.train_data(), module.val_data()
        tests = module.test_data()
        if not isinstance(tests, list | tuple) or len(tests) != self._num_tasks:
            raise DataError(f"the module's test data is no list of {self._num_tasks} data sets")
        self._test_data = list(tests)


class ClassIncrementalScenario(Scenario):
    """Classes come in groups: chunk i has the rows whose class is in ``groupings[i]``.

    Rows of classes in no group are left out, and ``notes`` says so. Raises DataError for a
    class without rows to learn from or to be judged by.
    """

    def __init__(
        self,
        data_module: DataModule,
        chunk_id: int,
        groupings: Groupings | None = None,
        *,
        class_groupings: Groupings | None = None,
        num_tasks: int | None = None,
        seed: int = 0,
    ) -> None:
        field = "groupings" if class_groupings is None else "class_groupings"
        if (groupings is None) == (class_groupings is None):
            problem = "not given" if groupings is None else "given under both of its names"
            raise refused("groupings", problem, "groupings=[[0, 1], [2, 3]] are two chunks")
        found = groups(field, (class_groupings if groupings is None else groupings) or ())
        self._groups = [[whole(field, member, 0) for member in group] for group in found]
        agree(num_tasks, len(self._groups), field)
        super().__init__(data_module, len(self._groups), chunk_id, seed)

    def setup(self) -> None:
        super().setup()
        module = self._data_module
        rows, group = module.train_data(), self._groups[self._chunk_id]
        labels = labels_of(rows)
        self._train_data = _of_classes(rows, labels, group, self._chunk_id, "to learn from")
        self._note(labels)
        if (held_out := module.val_data()) is not None:
            labels = labels_of(held_out)
            group = [c for c in group if bool((labels == c).any())] or group
            self._val_data = _of_classes(held_out, labels, group, self._chunk_id, "for validation")
        if (tests := module.test_data()) is not None:
            labels = labels_of(tests)
            self._test_data = [
                _of_classes(tests, labels, group, i, "to be judged by")
                for i, group in enumerate(self._groups)
            ]

    def _note(self, labels: Tensor) -> None:
        known = torch.tensor(sorted({c for group in self._groups for c in group}))
        out = labels[~torch.isin(labels, known)]
        if len(out):
            shown = ", ".join(map(str, torch.unique(out).tolist()[:12]))
            self.notes = (f"{len(out)} rows of classes in no group are left out: {shown}",)


class TransformScenario(Scenario):
    """Random parts, each sent through a transform of its own; chunk i has ``transforms[i]``.

    The test data of a chunk are all test rows, sent through the chunk's transform.
    """

    def __init__(
        self,
        data_module: DataModule,
        transforms: Sequence[Transform],
        chunk_id: int,
        seed: int = 0,
        *,
        num_tasks: int | None = None,
    ) -> None:
        self._transforms = tuple(transforms)
        if not self._transforms:
            raise refused("transforms", "none given", "one for each chunk")
        agree(num_tasks, len(self._transforms), "transforms")
        super().__init__(data_module, len(self._transforms), chunk_id, seed)

    def setup(self) -> None:
        super().setup()
        self._random_chunks()
        transform = self._transforms[self._chunk_id]
        self._train_data = transformed(self._train_data, transform)
        if self._val_data is not None:
            self._val_data = transformed(self._val_data, transform)
        if (tests := self._data_module.test_data()) is not None:
            self._test_data = [transformed(tests, each) for each in self._transforms]


class ImageRotationScenario(TransformScenario):
    """Random parts, each turned counterclockwise by ``degrees[i]``."""

    def __init__(
        self,
        data_module: DataModule,
        degrees: Sequence[float],
        chunk_id: int,
        seed: int = 0,
        *,
        num_tasks: int | None = None,
    ) -> None:
        angles = [real("degrees", angle, "degrees=[0, 45, 90]") for angle in degrees]
        if not angles:
            raise refused("degrees", "none given", "one angle for each chunk")
        agree(num_tasks, len(angles), "degrees")
        super().__init__(data_module, [Rotation(angle) for angle in angles], chunk_id, seed)


class PermutationScenario(TransformScenario):
    """Random parts, the features of each in an order of its own; chunk 0 is left as it is.

    input_dim: the number of an input's features, or its shape.
    """

    def __init__(
        self,
        data_module: DataModule,
        num_tasks: int,
        input_dim: int | Sequence[int],
        chunk_id: int,
        seed: int = 0,
    ) -> None:
        shape = input_dim if isinstance(input_dim, Sequence) else [input_dim]
        features = math.prod(whole("input_dim", length, 1) for length in shape)
        orders = [Permutation(features, seed, i) for i in range(whole("num_tasks", num_tasks, 1))]
        super().__init__(data_module, orders, chunk_id, seed)


class IIDScenario(Scenario):
    """Random parts of equal size (to a row), without any shift between them."""

    def setup(self) -> None:
        super().setup()
        self._random_chunks()
        tests = self._data_module.test_data()
        self._test_data = [] if tests is None else [tests] * self._num_tasks


class DataIncrementalScenario(Scenario):
    """Data sets that the module knows by id: chunk i has those that ``groupings[i]`` names, or
    the one of ``data_ids[i]``. Before each ``setup`` the module's ``data_id`` is set."""

    def __init__(
        self,
        data_module: DataModule,
        chunk_id: int,
        data_ids: Sequence[Any] | None = None,
        groupings: Groupings | None = None,
        seed: int = 0,
    ) -> None:
        if (data_ids is None) == (groupings is None):
            given = "none is given" if data_ids is None else "both are given"
            raise refused("data_ids", f"data_ids or groupings: {given}")
        if groupings is not None:
            self._groups = groups("groupings", groupings)
        else:
            self._groups = groups("data_ids", [[each] for each in data_ids or ()])
        if not hasattr(data_module, "data_id"):
            raise refused(
                "data_module",
                f"{type(data_module).__name__} has no data_id to choose a data set by",
                "derive it from DataIncrementalDataModule",
            )
        super().__init__(data_module, len(self._groups), chunk_id, seed)

    def prepare_data(self) -> None:
        """Bring the files of all ids to this machine."""
        for data_id in dict.fromkeys(each for group in self._groups for each in group):
            self._choose(data_id)
            self._data_module.prepare_data()

    def setup(self) -> None:
        """Make the data sets of the chunk's ids, and the test data of all."""
        tests: dict[Any, Any] = {}
        train, held_out = [], []
        chunk = self._groups[self._chunk_id]
        # the chunk's own come last, so that the module is left at what is learned
        others = [each for group in self._groups for each in group if each not in chunk]
        for data_id in dict.fromkeys([*others, *chunk]):
            self._choose(data_id)
            super().setup()
            tests[data_id] = self._data_module.test_data()
            if data_id in chunk:
                train.append(self._data_module.train_data())
                held_out.append(self._data_module.val_data())
        self._train_data = _joined(train)
        self._val_data = _joined([rows for rows in held_out if rows is not None])
        found = [_joined([tests[each] for each in group if tests[each] is not None])
                 for group in self._groups]  # fmt: skip
        if missing := [i for i, rows in enumerate(found) if rows is None]:
            if len(missing) < len(found):
                ids = self._groups[missing[0]]
                raise DataError(f"the data sets of chunk {missing[0]} ({ids}) have no test data")
            found = []
        self._test_data = found

    def _choose(self, data_id: Any) -> None:
        module = self._data_module
        module.data_id = data_id  # type: ignore[attr-defined]
        module._train_data = module._val_data = module._test_data = None  # nothing stale


def _of_classes(rows: Rows, labels: Tensor, group: list[int], chunk: int, what: str) -> Subset[Any]:
    present = set(torch.unique(labels).tolist())
    if missing := [each for each in group if each not in present]:
        raise DataError(
            f"no rows {what} of chunk {chunk} have the class {', '.join(map(str, missing))}",
            hint=f"classes here: {', '.join(map(str, sorted(present)[:20])) or 'none'}",
        )
    places = torch.isin(labels, torch.tensor(group)).nonzero()[:, 0]
    return Subset(rows, places.tolist())


def _joined(parts: list[Any]) -> Any:
    if not parts:
        return None
    return parts[0] if len(parts) == 1 else ConcatDataset(parts)
