"""Splits with no text on both sides, and the facts told before training."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.data import Dataset, split
from luthier.data.facts import class_sizes, describe, overlap
from luthier.errors import DataError


def made(form: Any, **columns: list[Any]) -> Dataset:
    table = pa.table({
        name: pa.chunked_array([pa.array(values[:3]), pa.array(values[3:], pa.array(values).type)])
        for name, values in columns.items()
    })  # fmt: skip
    return Dataset(form, table, "id", {name: name for name in columns})


def texts_of(dataset: Dataset) -> set[str]:
    everything = np.arange(len(dataset))
    return {text for role in dataset.roles for text in dataset.texts(role, everything)}


few = st.integers(0, 30).map(lambda i: f"t{i}")


@settings(max_examples=200, deadline=None)
@given(
    rows=st.lists(st.tuples(few, few, few), min_size=1, max_size=40),
    share=st.floats(0.01, 0.9), seed=st.integers(0, 5), form=st.sampled_from(["pairs", "triplets"]),
)  # fmt: skip
def test_no_text_is_on_both_sides(
    rows: list[tuple[str, str, str]], share: float, seed: int, form: str
) -> None:
    roles = ["anchor", "positive", "negative_1"][: 2 if form == "pairs" else 3]
    data = made(form, **{role: [row[i] for row in rows] for i, role in enumerate(roles)})
    try:
        train, held_out = split(data, share, seed)
    except DataError as error:
        assert "no text on both sides" in error.message
        return
    assert not texts_of(train) & texts_of(held_out)
    assert len(train) + len(held_out) == len(rows)
    assert 0 < len(held_out) <= max(2, 2 * round(share * len(rows)))
    assert train
    again = split(data, share, seed)
    assert [part.id for part in again] == [train.id, held_out.id]


def test_the_share_is_met_where_the_rows_are_free() -> None:
    data = made("pairs", anchor=[f"a{i}" for i in range(1000)],
                positive=[f"b{i}" for i in range(1000)])  # fmt: skip
    sides = [split(data, share, 0) for share in (0.001, 0.1, 0.5)]
    assert [len(held_out) for _, held_out in sides] == [1, 100, 500]
    assert split(data, 0.1, 1)[1].id != sides[1][1].id, "the seed matters"


def test_rows_that_hang_together_cannot_be_split() -> None:
    data = made("pairs", anchor=["same"] * 50, positive=[f"b{i}" for i in range(50)])
    with pytest.raises(DataError, match="1 groups, the largest of 50 rows") as caught:
        split(data, 0.1, 0)
    assert "eval_data" in (caught.value.hint or "")


@settings(max_examples=100, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 40), min_size=1, max_size=30), share=st.floats(0.05, 0.6),
    seed=st.integers(0, 3),
)  # fmt: skip
def test_labelled_data_is_split_within_its_classes(
    sizes: list[int], share: float, seed: int
) -> None:
    labels = [code for code, size in enumerate(sizes) for _ in range(size)]
    data = made("labelled", text=[f"t{i}" for i in range(len(labels))], label=labels)
    try:
        train, held_out = split(data, share, seed)
    except DataError as error:
        assert max(sizes) < 3 or sum(sizes) * share < 1
        assert "too small" in error.message
        return
    assert not texts_of(train) & texts_of(held_out)
    kept, taken = (np.bincount(d.array("label"), minlength=len(sizes)) for d in (train, held_out))
    assert (kept >= 1).all(), "every class keeps an item to train on"
    alone = taken == 1
    assert (np.asarray(sizes)[alone] == 2).all() or not alone.any(), "none is alone"
    assert abs(taken - np.asarray(sizes) * share).max() <= 2 + share * 2


def test_a_text_that_occurs_twice_keeps_to_one_side() -> None:
    texts = [f"t{i % 60}" for i in range(240)]
    data = made("labelled", text=texts, label=[i % 60 % 6 for i in range(240)])
    train, held_out = split(data, 0.3, 0)
    assert held_out
    assert not texts_of(train) & texts_of(held_out)


@pytest.mark.parametrize("share", [0, 1, -0.1, 1.5, float("nan")])
def test_impossible_shares(share: float) -> None:
    with pytest.raises(DataError, match="between 0 and 1"):
        split(made("pairs", anchor=["a"], positive=["b"]), share, 0)


def test_facts() -> None:
    data = made("triplets", anchor=["a", "a", "b", "a"], positive=["b", "b", "b", "c"],
                negative_1=["xyz", "xyz", "ä漢", "xyz"])  # fmt: skip
    found = describe(data)
    assert (found["rows"], found["form"]) == (4, "triplets")
    assert found["distinct_texts"] == 5
    assert found["duplicate_rows"] == 1
    assert found["same_text_rows"] == 1
    assert found["characters"]["negative_1"] == {
        "min": 2.0, "median": 3.0, "p95": 3.0, "max": 3.0, "mean": 2.75,
    }  # fmt: skip
    assert found["classes"] is None
    assert describe(data.take([0, 2]))["rows"] == 2


def test_facts_of_classes_and_scores() -> None:
    data = made("labelled", text=["a", "b", "c", "d", "a"], label=[0, 0, 2, 0, 0])
    found = describe(data)
    assert found["classes"]["count"] == 2
    assert found["classes"]["single_item"] == 1
    assert found["classes"]["largest"] == {"component 0": 4, "component 2": 1}
    assert found["duplicate_rows"] == 1
    assert class_sizes(data.take([2]))["count"] == 1
    scored = made("scored", sentence1=["a", "a"], sentence2=["b", "b"], score=[0.0, 1.0])
    assert describe(scored)["values"]["mean"] == 0.5
    assert describe(scored)["duplicate_rows"] == 0, "the same texts with another score"


def test_overlap_counts_distinct_texts() -> None:
    train = made("pairs", anchor=["a", "b"], positive=["c", "d"])
    held_out = made("labelled", text=["d", "d", "x", "a"], label=[0, 0, 1, 1])
    assert overlap(train, held_out) == 2
    assert overlap(train, held_out.take([2])) == 0
