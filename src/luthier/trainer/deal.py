"""Batches for a training step, collated: here, or by worker processes."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from typing import Any

import numpy as np
import torch
from accelerate import skip_first_batches
from torch.utils.data import DataLoader, Dataset

from luthier.engine.state import Position, random_states, restore_random_states, seed_everything
from luthier.trainer.order import Order

#: One optimizer step's batches, each as the collator made it.
Step = list[Any]

_ODD = 0x9E3779B97F4A7C15  # 2^64 over the golden ratio: spreads neighbouring numbers
_OTHER = 0xBF58476D1CE4E5B9  # of splitmix64, for processes


class Deal(Dataset[Step]):
    """The batches of any step by its number, for a random-access data set.

    What a collator or a data set draws at random (masked words, cropped images) is seeded by the
    step, and the process: the same in a resumed run, and with any number of workers.
    """

    def __init__(self, loader: DataLoader[Any], order: Order, seed: int) -> None:
        self._rows, self._collate = loader.dataset, loader.collate_fn
        self._order, self._seed = order, seed

    def __getitem__(self, place: tuple[int, int]) -> Step:
        epoch, step = place
        number = epoch * self._order.steps_per_epoch + step
        before = random_states()
        seed_everything((self._seed * _ODD + self._order.process * _OTHER + number) % 2**32)
        try:
            return [self._collate(self._fetch(rows)) for rows in self._order.batches(*place)]
        finally:
            restore_random_states(before)

    def _fetch(self, rows: np.ndarray) -> list[Any]:
        many = getattr(self._rows, "__getitems__", None)
        found: list[Any] = many(rows.tolist()) if many else [self._rows[i] for i in rows.tolist()]
        return found


def dealt(
    loader: DataLoader[Any], order: Order, seed: int, move: Callable[[Any], Any]
) -> Callable[[Position], Generator[Step]]:
    """Batches from a position on: a ``Loop``'s source. ``move`` puts one onto the device."""
    deal = Deal(loader, order, seed)

    def batches(position: Position) -> Generator[Step]:
        places = _places(position, order.steps_per_epoch)
        if not loader.num_workers:
            for place in places:
                yield [move(batch) for batch in deal[place]]
            return
        states = random_states()  # an iterator draws a number, which is not the run's to spend
        workers = iter(_with_workers(deal, places, loader))
        restore_random_states(states)
        try:
            for step in workers:
                yield [move(batch) for batch in step]
        finally:
            stop = getattr(workers, "_shutdown_workers", None)
            if stop is not None:
                stop()

    return batches


def streamed(
    loader: Any,
    accumulation: int,
    steps_per_epoch: int,
    *,
    count: int | None,
    enter: Callable[[int, bool], None],
) -> Callable[[Position], Generator[Step | None]]:
    """Batches of a loader whose order is its own. On resuming, it is read up to the position.

    count: batches of an epoch; None where nobody knows, and then None ends an epoch.
    enter: called with the epoch, and whether it is entered in the middle, before each
    iterator is made: the loader may draw its order from the global random state.
    """

    def batches(position: Position) -> Generator[Step | None]:
        epoch, step = position.epoch, position.step
        if step == steps_per_epoch:
            epoch, step = epoch + 1, 0
        while True:
            enter(epoch, step > 0)
            if hasattr(loader, "set_epoch"):
                loader.set_epoch(epoch)
            rest = iter(skip_first_batches(loader, step * accumulation) if step else loader)
            while step < steps_per_epoch:
                left = accumulation
                if count is not None:
                    left = min(left, count - step * accumulation)
                group = [batch for _, batch in zip(range(left), rest, strict=False)]
                if not group:
                    yield None
                    break
                yield group
                step += 1
            epoch, step = epoch + 1, 0

    return batches


def _places(position: Position, steps_per_epoch: int) -> Iterator[tuple[int, int]]:
    start = position.epoch * steps_per_epoch + position.step
    for number in range(start, 10**18):
        yield divmod(number, steps_per_epoch)


class _Sequence(torch.utils.data.Sampler[tuple[int, int]]):
    def __init__(self, places: Iterator[tuple[int, int]]) -> None:
        self._places = places

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return self._places


def _with_workers(
    deal: Deal, places: Iterator[tuple[int, int]], loader: DataLoader[Any]
) -> DataLoader[Step]:
    return DataLoader(
        deal,
        batch_size=None,
        sampler=_Sequence(places),
        num_workers=loader.num_workers,
        pin_memory=loader.pin_memory,
        prefetch_factor=loader.prefetch_factor,
        multiprocessing_context=loader.multiprocessing_context,
        worker_init_fn=loader.worker_init_fn,
        in_order=loader.in_order,
    )
