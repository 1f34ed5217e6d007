"""Class-balanced batches: so many classes, so many items of each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from luthier.batches.arithmetic import Rows, below, derive, numbers, permutation
from luthier.batches.cache import EpochCache
from luthier.batches.dealing import deal
from luthier.batches.random_plan import check_step


@dataclass(frozen=True)
class Shape:
    """A batch of ``classes`` times ``items``; ``note`` says why, when another was asked for."""

    classes: int
    items: int
    note: str | None = None


def choose_shape(batch_size: int, items: int, num_classes: int, contrast: bool) -> Shape | None:
    """The shape nearest to ``items`` per class that fills a batch exactly.

    A batch needs no more classes than there are and, for a loss that contrasts items, at
    least two classes of two items. Where no number of items divides the batch so, the batch
    gets smaller. None when even a batch of this size cannot contrast anything.

    >>> choose_shape(20, 4, num_classes=2, contrast=True).items
    10
    >>> choose_shape(8, 3, num_classes=100, contrast=True).items
    2
    """
    for size in range(batch_size, 0, -1):
        fits = [k for k in range(1, size + 1) if _fits(size, k, num_classes, contrast)]
        if fits:
            k = min(fits, key=lambda k: (abs(k - items), k))
            why = _reason(batch_size, items, num_classes, contrast)
            return Shape(size // k, k, _note(batch_size, items, size, k, why) if why else None)
    return None


def _fits(size: int, k: int, num_classes: int, contrast: bool) -> bool:
    least = 2 if contrast else 1
    return size % k == 0 and least <= size // k <= num_classes and k >= least


def _reason(size: int, k: int, num_classes: int, contrast: bool) -> str | None:
    if k > size:
        return f"a batch of {size} cannot hold {k} items of a class"
    if size % k:
        return f"{k} does not divide the batch of {size}"
    if size // k > num_classes:
        return f"a batch of {size} would need {size // k} classes and there are {num_classes}"
    if contrast and size // k < 2:
        return f"a batch of {size} would hold one class only, and nothing to compare it with"
    if contrast and k < 2:
        return "one item of a class has no other to be compared with"
    return None


def _note(asked: int, k_asked: int, size: int, k: int, why: str) -> str:
    smaller = f" in batches of {size} instead of {asked}" if size != asked else ""
    return f"num_items_per_class={k_asked} is not possible: {why}; using {k}{smaller}"


@dataclass(frozen=True)
class _Epoch:
    items: npt.NDArray[np.integer]  # [n] rows, shuffled within their class
    classes: Rows  # [steps, P] which class
    groups: Rows  # [steps, P] which group of it; -1 - s: drawn again, from item s on


class ClassPlan:
    """A batch holds P classes with k items each.

    Each epoch every class is shuffled and cut into groups of k; a short last group is filled
    up with other items of its class, or with its own again. Groups are dealt at random to
    batches of P different classes, so every item comes once or more an epoch. Batches that
    lack groups get some of a class drawn again: no batch is ever short.

    labels: [n] class codes, from 0 on; codes that no row has are no classes.
    """

    def __init__(
        self,
        labels: Rows,
        *,
        shape: Shape,
        key: tuple[object, ...],
        notes: tuple[str, ...] = (),
    ) -> None:
        counts = np.bincount(labels)
        self._counts = counts[counts > 0].astype(np.int64)
        self._by_class = _by_class(labels)
        self._starts = np.concatenate([[0], np.cumsum(self._counts)[:-1]])
        self._class_of = np.repeat(np.arange(len(self._counts)), self._counts)  # of _by_class
        self._p, self._k, self._key = shape.classes, shape.items, key
        self._groups = -(-self._counts // self._k)  # a class
        self.batch_size = self._p * self._k
        # a class is in a batch once, so the largest needs a batch for each of its groups
        full = -(-int(self._groups.sum()) // self._p)
        self.steps_per_epoch = max(full, int(self._groups.max()))
        self.notes = notes + ((shape.note,) if shape.note else ()) + self._data_notes(full)
        self._epoch = EpochCache(self._deal)

    def _data_notes(self, full: int) -> tuple[str, ...]:
        notes = []
        single = int((self._counts == 1).sum())
        if single and self._k > 1:
            what = "class has" if single == 1 else "classes have"
            notes.append(
                f"{single} of {len(self._counts)} {what} one item, which is its own positive"
            )
        filled = int((self._groups * self._k).sum() - self._counts.sum())
        used = int(self._groups.sum()) * self._k
        if filled * 5 > used:
            notes.append(
                f"{filled / used:.0%} of the items of an epoch fill up groups of {self._k}: "
                "the classes are small; fewer num_items_per_class would repeat less"
            )
        if self.steps_per_epoch > full:
            notes.append(
                f"the largest class sets the length of an epoch: {self.steps_per_epoch} steps "
                f"instead of {full}; items of the other classes are drawn again"
            )
        return tuple(notes)

    def rows(self, epoch: int, step: int) -> Rows:
        """The rows of a step, int64 [P * k]: items of a class are next to each other."""
        check_step(step, self.steps_per_epoch)
        dealt = self._epoch(epoch)
        classes, groups = dealt.classes[step], dealt.groups[step]
        counts = self._counts[classes][:, None]  # [P, 1]
        first = np.where(groups >= 0, groups * self._k, -1 - groups)[:, None]
        place = first + np.arange(self._k)  # [P, k]
        # beyond the end: a group drawn again goes round; a short one takes items before it,
        # from a random one on, or, where it is the only one, its own
        pool = np.where((groups[:, None] > 0), first, counts)
        salt = below(derive(*self._key, epoch, "fill", step), self._p, 2**62)[:, None]
        filling = (np.where(groups[:, None] >= 0, salt, 0) + place - counts) % pool
        place = np.where(place < counts, place, filling)
        found: Rows = dealt.items[self._starts[classes][:, None] + place].astype(np.int64)
        return found.reshape(-1)

    def _deal(self, epoch: int) -> _Epoch:
        key = (*self._key, epoch)
        steps, p = self.steps_per_epoch, self._p
        order = permutation(derive(*key, "classes"), len(self._counts)).astype(np.int64)
        kinds: Rows = np.repeat(order, self._groups[order])  # [G], groups of a class adjacent
        starts = np.concatenate([[0], np.cumsum(self._groups[order])[:-1]])
        number = np.arange(len(kinds)) - np.repeat(starts, self._groups[order])
        batch = deal(kinds, [steps] * p, key)
        layer = np.arange(len(kinds)) // steps
        classes = np.full((steps, p), -1, dtype=np.int64)
        groups = np.zeros((steps, p), dtype=np.int64)
        classes[batch, layer], groups[batch, layer] = kinds, number
        self._draw_again(classes, groups, len(kinds), key)
        return _Epoch(self._shuffled(key), classes, groups)

    def _shuffled(self, key: tuple[object, ...]) -> npt.NDArray[np.integer]:
        """Rows by class, in a random order within each."""
        random = numbers(derive(*key, "items"), len(self._by_class))
        if len(self._counts) < 2**24:  # one sort of (class, 40 random bits) instead of two
            word = (self._class_of.astype(np.uint64) << np.uint64(40)) | (random >> np.uint64(24))
            order = np.argsort(word, kind="stable")
        else:
            order = np.lexsort((random, self._class_of))
        shuffled = self._by_class[order]
        return shuffled.astype(np.int32) if len(shuffled) < 2**31 else shuffled

    def _draw_again(self, classes: Rows, groups: Rows, dealt: int, key: tuple[object, ...]) -> None:
        """Fill the places that are left with classes that the batch does not have."""
        steps, p = classes.shape
        for layer in range(dealt // steps, p):
            where = np.flatnonzero(classes[:, layer] < 0)
            salt = derive(*key, "again", layer)
            drawn = below(salt, where, len(self._counts) - layer)
            for held in np.sort(classes[where, :layer], axis=1).T:  # skip those it has
                drawn += held <= drawn
            classes[where, layer] = drawn
            groups[where, layer] = -1 - below(salt + 1, where, self._counts[drawn])

    def describe(self) -> dict[str, Any]:
        """What the pre-flight report shows."""
        return {
            "sampler": "class",
            "batch_size": self.batch_size,
            "num_items_per_class": self._k,
            "classes_per_batch": self._p,
            "classes": len(self._counts),
            "steps_per_epoch": self.steps_per_epoch,
            "rows_per_epoch": self.steps_per_epoch * self.batch_size,
        }


def _by_class(labels: Rows) -> Rows:
    """Rows in the order of their labels: one sort of (label, row), faster than an argsort."""
    if len(labels) >= 2**31 or int(labels.max(initial=0)) >= 2**31:
        return np.argsort(labels, kind="stable")
    words = (labels.astype(np.uint64) << np.uint64(32)) | np.arange(len(labels), dtype=np.uint64)
    words.sort()
    return (words & np.uint64(0xFFFFFFFF)).astype(np.int64)
