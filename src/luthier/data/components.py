"""Pairs as classes. Being related is transitive, so a class is a connected component.

(a, b), (c, d), (b, c) is one class whatever the order of the rows; Finetuner, which gave labels
as it read, made two.
"""

from __future__ import annotations

import hashlib

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from luthier.data.dataset import Dataset
from luthier.data.keys import numbered, text_keys
from luthier.errors import DataError

Ints = npt.NDArray[np.int64]


def distinct_texts(dataset: Dataset, roles: tuple[str, ...]) -> tuple[list[Ints], Ints]:
    """For each role the numbers of its texts [n], equal where texts are equal; and for each
    number the place where it first appears in the roles laid one after the other."""
    keys = [(text_keys(dataset, role), text_keys(dataset, role, seed=1)) for role in roles]
    numbers, appearance = numbered(keys)
    return np.split(numbers, len(roles)), appearance


def components(edges: list[tuple[Ints, Ints]], count: int) -> Ints:
    """The component of each of ``count`` nodes, numbered in the order of their nodes."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    left = np.concatenate([a for a, _ in edges]).astype(np.int32)
    right = np.concatenate([b for _, b in edges]).astype(np.int32)
    ones = np.ones(len(left), dtype=np.int8)
    graph = coo_array((ones, (left, right)), shape=(count, count)).tocsr()
    _, found = connected_components(graph, directed=False)
    _, first, inverse = np.unique(found, return_index=True, return_inverse=True)
    rank = np.empty(len(first), dtype=np.int64)
    rank[np.argsort(first)] = np.arange(len(first))
    return rank[inverse]


def labelled(dataset: Dataset) -> Dataset:
    """See ``Dataset.as_labelled``."""
    if dataset.form == "labelled":
        return dataset
    if dataset.form not in ("pairs", "triplets"):
        raise DataError(
            f"{dataset.form} data has no classes: its rows say how much, not whether, two texts "
            "belong together",
            hint="use a loss for scores, or give labelled data or pairs",
        )
    texts, appearance = distinct_texts(dataset, dataset.roles)
    component = components([(texts[0], texts[1])], len(appearance))
    for role, negative in zip(dataset.roles[2:], texts[2:], strict=True):
        same = component[texts[0]] == component[negative]
        if same.any():
            raise DataError(
                "the negative belongs to the same class as its anchor: other rows connect them",
                row=int(np.argmax(same)) + 1, column=role,
                hint="classes need negatives that no chain of positives reaches",
            )  # fmt: skip
    chunks = [chunk for role in dataset.roles for chunk in dataset.chunks(role)]
    labels = np.concatenate([component[numbers] for numbers in texts])
    table = pa.table({"text": pa.chunked_array(chunks, pa.string()), "label": pa.array(labels)})
    where = " and ".join(dataset.mapping[role] for role in dataset.roles)
    digest = hashlib.sha256(b"labelled " + dataset.id.encode()).hexdigest()
    mapping = {"text": where, "label": "connected components"}
    return Dataset("labelled", table, digest, mapping, selection=appearance, notes=dataset.notes)
