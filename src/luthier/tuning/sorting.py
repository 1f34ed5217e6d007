"""Scenarios in which rows come in the order of something: a feature, a hue."""

from __future__ import annotations

import abc
from itertools import pairwise
from typing import Any

from torch import Tensor
from torch.utils.data import Subset

from luthier.batches.arithmetic import below, derive
from luthier.errors import DataError
from luthier.tuning.data_module import DataModule
from luthier.tuning.datasets import Rows, inputs_of
from luthier.tuning.scenario import Scenario, enough, real, refused, whole
from luthier.tuning.transforms import dominant_hues


class SortingScenario(Scenario):
    """Rows in the order of a score, cut into parts of equal size (to a row).

    randomness: 0 to 1: ``randomness · n / 2`` random pairs of the n rows are swapped first.
    """

    def __init__(
        self,
        data_module: DataModule,
        num_tasks: int,
        randomness: float,
        chunk_id: int,
        seed: int = 0,
    ) -> None:
        super().__init__(data_module, num_tasks, chunk_id, seed)
        self._randomness = real("randomness", randomness, "0 to 1")
        if not 0 <= self._randomness <= 1:
            raise refused("randomness", f"{randomness!r} is not from 0 to 1")

    @abc.abstractmethod
    def _scores(self, rows: Rows) -> Tensor:
        """What to sort by, (n,)."""

    def setup(self) -> None:
        super().setup()
        module = self._data_module
        self._train_data = self._cut(module.train_data(), "to learn from")[self._chunk_id]
        if (held_out := module.val_data()) is not None:
            self._val_data = self._cut(held_out, "for validation")[self._chunk_id]
        if (tests := module.test_data()) is not None:
            self._test_data = self._cut(tests, "to be judged by")

    def _cut(self, rows: Rows, what: str) -> list[Any]:
        enough(rows, self._num_tasks, what)
        scores = self._scores(rows)
        if len(wrong := scores.isnan().nonzero()):
            raise DataError(f"row {int(wrong[0])} cannot be sorted: its value is not a number")
        order = scores.argsort(stable=True).tolist()
        swaps = int(self._randomness * len(order) / 2)
        pairs = below(derive("swaps", self._seed), 2 * swaps, len(order)).tolist()
        for i, j in zip(pairs[::2], pairs[1::2], strict=True):
            order[i], order[j] = order[j], order[i]
        ends = [round(i * len(order) / self._num_tasks) for i in range(self._num_tasks + 1)]
        return [Subset(rows, order[a:b]) for a, b in pairwise(ends)]


class FeatureSortingScenario(SortingScenario):
    """Rows sorted by a feature.

    feature_idx: its place along the first dimension of an input; what lies below is averaged, so
    that of images (channels, height, width) it is a channel's mean.
    """

    def __init__(
        self,
        data_module: DataModule,
        num_tasks: int,
        feature_idx: int,
        randomness: float,
        chunk_id: int,
        seed: int = 0,
    ) -> None:
        super().__init__(data_module, num_tasks, randomness, chunk_id, seed)
        self._feature = whole("feature_idx", feature_idx, 0)

    def _scores(self, rows: Rows) -> Tensor:
        inputs = inputs_of(rows)
        features = inputs.shape[1] if inputs.dim() > 1 else 0
        if self._feature >= features:
            raise refused(
                "feature_idx",
                f"there is no feature {self._feature}",
                f"inputs of the shape {tuple(inputs.shape[1:])} have {features}",
            )
        values = inputs[:, self._feature].double()
        return values.flatten(1).mean(1) if values.dim() > 1 else values


class HueShiftScenario(SortingScenario):
    """RGB images (3, height, width) sorted by the hue that most of their pixels have: the fullest
    of 100 bins. Bytes 0..255 or fractions 0..1."""

    def _scores(self, rows: Rows) -> Tensor:
        return dominant_hues(inputs_of(rows))
