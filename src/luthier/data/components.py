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

Numbers = npt.NDArray[np.int32]
Places = npt.NDArray[np.int64]


def distinct_texts(dataset: Dataset, roles: tuple[str, ...]) -> tuple[list[Numbers], Places]:
    """For each role the numbers of its texts [n], equal where texts are equal; and for each
    number the place where it first appears in the roles laid one after the other."""
    numbers, appearance = numbered(np.concatenate([text_keys(dataset, role) for role in roles]))
    return np.split(numbers, len(roles)), appearance


def components(edges: list[tuple[Numbers, Numbers]], appearance: Places) -> Numbers:
    """The connected component of each node, numbered in the order of first appearance."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    left = np.concatenate([a for a, _ in edges])
    right = np.concatenate([b for _, b in edges])
    count = len(appearance)
    ones = np.ones(len(left), dtype=bool)
    graph = coo_array((ones, (left, right)), shape=(count, count)).tocsr()
    del left, right, ones
    total, found = connected_components(graph, directed=False)
    del graph
    first = np.empty(total, dtype=np.int64)
    late_to_early = np.argsort(appearance)[::-1]
    first[found[late_to_early]] = appearance[late_to_early]  # the earliest is written last
    rank = np.empty(total, dtype=np.int32)
    rank[np.argsort(first)] = np.arange(total, dtype=np.int32)
    numbered_by_appearance: Numbers = rank[found]
    return numbered_by_appearance


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
    component = components([(texts[0], texts[1])], appearance)
    for role, negative in zip(dataset.roles[2:], texts[2:], strict=True):
        same = component[texts[0]] == component[negative]
        if same.any():
            raise DataError(
                "the negative belongs to the same class as its anchor: other rows connect them",
                row=int(np.argmax(same)) + 1, column=role,
                hint="classes need negatives that no chain of positives reaches",
            )  # fmt: skip
    chunks = [chunk for role in dataset.roles for chunk in dataset.chunks(role)]
    labels = np.concatenate([component[numbers] for numbers in texts]).astype(np.int64)
    table = pa.table({"text": pa.chunked_array(chunks, pa.string()), "label": pa.array(labels)})
    where = " and ".join(dataset.mapping[role] for role in dataset.roles)
    digest = hashlib.sha256(b"labelled " + dataset.id.encode()).hexdigest()
    mapping = {"text": where, "label": "connected components"}
    return Dataset(
        "labelled", table, digest, mapping, selection=np.sort(appearance), notes=dataset.notes
    )
