"""Keep a share of the rows for evaluation, with no text on both sides."""

from __future__ import annotations

import hashlib

import numpy as np
import numpy.typing as npt

from luthier.data.components import Places, components, distinct_texts
from luthier.data.dataset import Dataset
from luthier.data.rankings import Rankings
from luthier.errors import DataError


def split(dataset: Dataset, share: float, seed: int) -> tuple[Dataset, Dataset]:
    """(what to train on, what to evaluate on), each in the order of the file.

    Labelled data is split within its classes, in twos where a class allows it, so that an
    evaluation item finds another one of its class; a text keeps to one side. Rankings are split
    by query: their items, a catalogue's, are on both sides. Other rows are
    split by connected components of their texts. Deterministic in (content, share, seed).
    Raises DataError when no such split exists, as when one text connects all rows.
    """
    if not 0 < share < 1:
        raise DataError(f"the share to evaluate on must lie between 0 and 1, not {share}")
    digest = hashlib.sha256(f"{dataset.id} {seed}".encode()).digest()
    random = np.random.Generator(np.random.Philox(int.from_bytes(digest[:16], "little")))
    if isinstance(dataset, Rankings):
        held_out = _by_query(dataset, share, random)
    elif dataset.form == "labelled":
        held_out = _by_class(dataset, share, random)
    else:
        held_out = _by_component(dataset, share, random)
    return dataset.take(np.flatnonzero(~held_out)), dataset.take(np.flatnonzero(held_out))


def _by_component(
    dataset: Dataset, share: float, random: np.random.Generator
) -> npt.NDArray[np.bool_]:
    texts, appearance = distinct_texts(dataset, dataset.roles)
    edges = [(texts[0], other) for other in texts[1:]]
    component = components(edges, appearance)[texts[0]]
    sizes = np.bincount(component)
    wanted = max(1, round(len(dataset) * share))
    chosen = _fill(sizes, wanted, random)
    count = int(sizes[chosen].sum())
    if not 0 < count < len(dataset) or count > 2 * wanted:
        raise DataError(
            f"cannot keep {share:.0%} of {len(dataset):,} rows for evaluation with no text on "
            f"both sides: shared texts connect the rows into {len(sizes):,} groups, the largest "
            f"of {sizes.max():,} rows",
            hint="give eval_data of its own instead of val_split",
        )
    inside = np.zeros(len(sizes), dtype=bool)
    inside[chosen] = True
    return inside[component]


def _by_query(
    dataset: Rankings, share: float, random: np.random.Generator
) -> npt.NDArray[np.bool_]:
    _, query, sizes = np.unique(dataset.queries, return_inverse=True, return_counts=True)
    if len(sizes) < 2:
        raise DataError(
            f"cannot keep {share:.0%} of the searches for evaluation: all have the same query",
            hint="give eval_data of its own instead of val_split",
        )
    chosen = _fill(sizes, max(1, round(len(dataset) * share)), random)
    if len(chosen) == len(sizes):
        chosen = chosen[:-1]
    inside = np.zeros(len(sizes), dtype=bool)
    inside[chosen] = True
    held_out: npt.NDArray[np.bool_] = inside[query]
    return held_out


def _fill(sizes: Places, wanted: int, random: np.random.Generator) -> Places:
    """Groups drawn at random, each taken if it still fits; where none fits, the smallest."""
    order = random.permutation(len(sizes))
    total = np.cumsum(sizes[order])
    # everything before the first that does not fit is taken at once; then one by one
    ready = int(np.searchsorted(total, wanted, side="right"))
    chosen = [order[:ready]]
    left = wanted - (int(total[ready - 1]) if ready else 0)
    for group in order[ready:]:
        if left <= 0:
            break
        if sizes[group] <= left:
            chosen.append(np.array([group]))
            left -= int(sizes[group])
    found = np.concatenate(chosen)
    return found if len(found) else np.array([np.argmin(sizes)])


def _by_class(dataset: Dataset, share: float, random: np.random.Generator) -> npt.NDArray[np.bool_]:
    labels = dataset.array("label")
    (texts,), appearance = distinct_texts(dataset, ("text",))
    stratum = labels[appearance]  # a text with two labels counts where it first appears
    order = np.lexsort((random.random(len(stratum)), stratum))
    codes, start, size = np.unique(stratum[order], return_index=True, return_counts=True)
    quota = _quotas(size, share, random)
    within = np.arange(len(order)) - np.repeat(start, size)
    chosen = np.zeros(len(stratum), dtype=bool)
    chosen[order[within < np.repeat(quota, size)]] = True
    held_out = chosen[texts]
    if not held_out.any():
        raise DataError(
            f"cannot keep {share:.0%} of the items of each class for evaluation: "
            f"{len(codes):,} classes with {len(stratum):,} different texts are too small",
            hint="give eval_data of its own instead of val_split",
        )
    return held_out


def _quotas(sizes: Places, share: float, random: np.random.Generator) -> Places:
    """Items to take of each class: twos, so that none is alone; one at least stays.

    The classes of three and more are passed in random order and the running total is kept near
    the share, so that small classes, of which the share is less than two, are taken now and
    then. Where that takes nothing but one item or more is due, the largest class gives two.
    """
    quota = np.zeros(len(sizes), dtype=np.int64)
    order = random.permutation(np.flatnonzero(sizes >= 3))
    total = np.cumsum(sizes[order] * share) + random.random() * 2
    quota[order] = 2 * np.diff(np.floor(total / 2), prepend=0.0).astype(np.int64)
    quota = np.minimum(quota, np.maximum(sizes - 1, 0))
    if not quota.any() and len(order) and sizes.sum() * share >= 1:
        quota[np.argmax(sizes)] = 2
    return quota
