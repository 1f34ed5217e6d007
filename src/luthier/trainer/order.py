"""The order in which rows are dealt: transformers', as a pure function of seed, epoch and step.

transformers and accelerate draw one permutation an epoch, from a generator that is seeded with
``seed + epoch``. So the rows of any step are known without the steps before it, and a resumed
run starts at its step at once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import numpy as np
import torch
from accelerate.data_loader import BatchSamplerShard, SeedableRandomSampler
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, SequentialSampler
from transformers.trainer_pt_utils import LengthGroupedSampler, get_length_grouped_indices

#: From the number of an epoch to the order of its rows, int64 [n].
Permutation = Callable[[int], np.ndarray]


class Order:
    """Which rows make which batch.

    rows: how many there are. batch_size: rows that go through the model at once.
    accumulation: so many batches make an optimizer step; the last step of an epoch may have
    fewer, and its last batch fewer rows unless ``drop_last``.
    """

    def __init__(
        self,
        permutation: Permutation,
        rows: int,
        batch_size: int,
        accumulation: int,
        *,
        drop_last: bool = False,
    ) -> None:
        self._permutation = permutation
        self._rows, self._size, self._accumulation = rows, batch_size, accumulation
        self.batches_per_epoch = rows // batch_size if drop_last else -(-rows // batch_size)
        self._drop_last = drop_last
        self.process = 0
        self._epoch: tuple[int, list[np.ndarray]] | None = None

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps of an epoch, at least 1."""
        return max(1, -(-self.batches_per_epoch // self._accumulation))

    def batches(self, epoch: int, step: int) -> list[np.ndarray]:
        """The rows of each batch of one optimizer step: int64 [batch_size] or fewer."""
        if self._epoch is None or self._epoch[0] != epoch:
            self._epoch = epoch, self._dealt(self._permutation(epoch))
        first = step * self._accumulation
        return self._epoch[1][first : first + self._accumulation]

    def _dealt(self, rows: np.ndarray) -> list[np.ndarray]:
        """The batches of an epoch."""
        starts = range(0, self.batches_per_epoch * self._size, self._size)
        return [rows[start : start + self._size] for start in starts]


class SharedOrder(Order):
    """The part that one of several processes has, dealt by accelerate itself: batch by batch in
    turn, and the last ones filled up with the first rows, so that all have equally many."""

    def __init__(
        self, permutation: Permutation, rows: int, shard: BatchSamplerShard, accumulation: int
    ) -> None:
        whole: Any = shard.batch_sampler
        super().__init__(
            permutation, rows, whole.batch_size, accumulation, drop_last=whole.drop_last
        )
        self.batches_per_epoch = len(shard)
        self.process = int(shard.process_index)
        self._shard = shard

    def _dealt(self, rows: np.ndarray) -> list[np.ndarray]:
        shard = self._shard
        mine = BatchSamplerShard(
            BatchSampler(rows.tolist(), self._size, self._drop_last),
            shard.num_processes,
            shard.process_index,
            shard.split_batches,
            shard.even_batches,
        )
        return [np.asarray(batch) for batch in mine]


def order_of(loader: Any, accumulation: int) -> Order | None:
    """The order of a loader that transformers made, or None where only the loader knows it: data
    without a length, or a sampler of the user's own."""
    dealer: Any = getattr(loader, "batch_sampler", None)
    shard = dealer if type(dealer) is BatchSamplerShard else None
    dealer = dealer if shard is None else shard.batch_sampler
    if not isinstance(loader, DataLoader) or type(dealer) is not BatchSampler:
        return None
    permutation = _permutation(dealer.sampler)
    if permutation is None:
        return None
    rows = len(cast(Any, dealer.sampler))
    if shard is not None:
        return SharedOrder(permutation, rows, shard, accumulation)
    return Order(permutation, rows, dealer.batch_size, accumulation, drop_last=dealer.drop_last)


def _permutation(sampler: Any) -> Permutation | None:
    if type(sampler) is SequentialSampler:
        rows = np.arange(len(sampler))
        return lambda epoch: rows
    if type(sampler) is SeedableRandomSampler and _plain(sampler):
        seed, count = sampler.initial_seed, len(sampler)
        return lambda epoch: torch.randperm(count, generator=seeded(seed + epoch)).numpy()
    if type(sampler) is LengthGroupedSampler and sampler.generator is not None:
        lengths, size = sampler.lengths, sampler.batch_size
        first = sampler.generator.initial_seed()
        return lambda epoch: grouped(lengths, size, first + epoch)
    return None


def _plain(sampler: RandomSampler) -> bool:
    return not sampler.replacement and sampler.num_samples == len(sampler.data_source)


def grouped(lengths: Sequence[int], batch_size: int, seed: int) -> np.ndarray:
    """Rows in random order, those of like length near each other, the longest first. Their
    sampler takes its numbers from wherever torch's global generator happens to be."""
    group: Any = get_length_grouped_indices
    found = group(lengths, batch_size, generator=seeded(seed))
    return np.asarray(found, dtype=np.int64)


def seeded(seed: int) -> torch.Generator:
    """A new generator on the CPU."""
    generator = torch.Generator()
    generator.manual_seed(seed)
    return generator
