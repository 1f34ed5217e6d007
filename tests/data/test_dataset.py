"""Datasets: the cache, parts, classes from pairs."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.data import Dataset, load_dataset
from luthier.data.keys import array_keys
from luthier.errors import DataError, NotFound
from luthier.spec import CSVOptions


def pairs_of(rows: list[tuple[str, str]], cut: int = 3) -> Dataset:
    """A dataset in several chunks, made without a file."""
    anchors, positives = zip(*rows, strict=True)
    columns = {
        name: pa.chunked_array(
            [pa.array(values[i : i + cut], pa.string()) for i in range(0, len(values), cut)]
        )
        for name, values in (("anchor", anchors), ("positive", positives))
    }
    return Dataset("pairs", pa.table(columns), "id", {"anchor": "a", "positive": "b"})


def classes_of(dataset: Dataset) -> set[frozenset[str]]:
    """The classes as sets of texts."""
    texts = dataset.texts("text", np.arange(len(dataset)))
    found: dict[int, set[str]] = {}
    for text, label in zip(texts, dataset.array("label").tolist(), strict=True):
        found.setdefault(label, set()).add(text)
    assert len(texts) == len(set(texts)), "every distinct text is one item"
    return {frozenset(members) for members in found.values()}


def slow_components(rows: list[tuple[str, str]]) -> set[frozenset[str]]:
    """Merge sets until nothing changes."""
    groups = [set(row) for row in rows]
    merged = True
    while merged:
        merged = False
        for i in range(len(groups)):
            for j in range(i + 1, len(groups)):
                if groups[i] & groups[j]:
                    groups[i] |= groups.pop(j)
                    merged = True
                    break
            if merged:
                break
    return {frozenset(group) for group in groups}


names = st.sampled_from("abcdefghijklmnop")


@settings(max_examples=150, deadline=None)
@given(rows=st.lists(st.tuples(names, names), min_size=1, max_size=14), seed=st.integers(0, 9))
def test_pairs_become_connected_components_in_any_order(
    rows: list[tuple[str, str]], seed: int
) -> None:
    expected = slow_components(rows)
    assert classes_of(pairs_of(rows).as_labelled()) == expected
    shuffled = [row if random.Random(seed + i).random() < 0.5 else row[::-1]
                for i, row in enumerate(rows)]  # fmt: skip
    random.Random(seed).shuffle(shuffled)
    assert classes_of(pairs_of(shuffled).as_labelled()) == expected


def test_the_two_faults_of_finetuner() -> None:
    assert classes_of(pairs_of([("a", "b"), ("c", "b")]).as_labelled()) == {frozenset("abc")}
    found = pairs_of([("a", "b"), ("c", "d"), ("b", "c")]).as_labelled()
    assert classes_of(found) == {frozenset("abcd")}
    assert found.array("label").tolist() == [0, 0, 0, 0]
    assert found.num_classes == 1


def test_components_of_a_part(desk: Any) -> None:
    whole = pairs_of([("a", "b"), ("b", "c"), ("x", "y"), ("c", "d"), ("y", "z")])
    assert classes_of(whole.take([4, 0, 2]).as_labelled()) == {frozenset("ab"), frozenset("xyz")}


def test_triplets_as_classes(desk: Any) -> None:
    good = desk.load("a,b,x\nb,c,y\n", header=False)
    assert classes_of(good.as_labelled()) == {frozenset("abc"), frozenset("x"), frozenset("y")}
    bad = desk.load("a,b,x\nb,c,d\nc,e,a\n", header=False)
    with pytest.raises(DataError, match="same class as its anchor") as caught:
        bad.as_labelled()
    assert caught.value.row == 3


def test_forms_without_classes(desk: Any) -> None:
    labelled = desk.load("text,label\na,b\n")
    assert labelled.as_labelled() is labelled
    with pytest.raises(DataError, match="no classes"):
        desk.load("a,b,0.5\n").as_labelled()


@settings(max_examples=100, deadline=None)
@given(
    texts=st.lists(st.text(max_size=30), max_size=30),
    cut=st.integers(1, 9), wanted=st.lists(st.integers(0, 10**6), max_size=400),
)  # fmt: skip
def test_texts_and_parts_equal_plain_lists(texts: list[str], cut: int, wanted: list[int]) -> None:
    dataset = pairs_of([(text, f"p{i}") for i, text in enumerate(texts)] or [("a", "b")], cut)
    plain = texts or ["a"]
    rows = [w % len(plain) for w in wanted]
    assert dataset.texts("anchor", np.array(rows, dtype=np.int64)) == [plain[r] for r in rows]
    part = dataset.take(rows)
    assert len(part) == len(rows)
    assert part.table.column("anchor").to_pylist() == [plain[r] for r in rows]
    again = part.take(range(0, len(rows), 2))
    assert again.texts("positive", range(len(again))) == part.texts(
        "positive", range(0, len(rows), 2)
    )


def test_rows_outside_are_refused() -> None:
    dataset = pairs_of([("a", "b"), ("c", "d")])
    for rows in ([2], [-1]):
        with pytest.raises(IndexError):
            dataset.texts("anchor", rows)
        with pytest.raises(IndexError):
            dataset.take(rows)
    with pytest.raises(NotFound, match="no role 'anchr'"):
        dataset.texts("anchr", [0])


def test_arrays(desk: Any) -> None:
    scored = desk.load("a,b,0.25\nc,d,1\n")
    assert scored.array("score").dtype == np.float64
    assert scored.roles == ("sentence1", "sentence2")
    assert scored.take([1]).array("score").tolist() == [1.0]
    labelled = desk.load("text,label\na,x\nb,y\nc,x\n")
    assert labelled.array("label").tolist() == [0, 1, 0]
    assert labelled.array("label").dtype == np.int64
    assert labelled.array("label").flags.writeable, "torch.from_numpy warns otherwise"
    assert (labelled.num_classes, labelled.class_name(1)) == (2, "y")
    part = labelled.take([1])
    assert (part.array("label").tolist(), part.num_classes) == ([1], 2), "codes keep their meaning"


def test_ids(desk: Any) -> None:
    first = desk.load("a,b\nc,d\n")
    assert first.id == desk.load('"a";"b"\r\n"c";"d"', name="other.csv").id
    ids = {
        first.id, first.take([0, 1]).id, first.take([1, 0]).id, first.as_labelled().id,
        desk.load("a,b\nc,e\n").id, desk.load("ab,c\nd,e\n").id, desk.load("a,bc\nd,e\n").id,
        desk.load("a,b\nc,d\n", is_labeled=True).id,
    }  # fmt: skip
    assert len(ids) == 8


def test_the_cache_is_used_and_never_trusted_blindly(desk: Any) -> None:
    path = desk.file("a,b\nc,d\n")
    first = desk.load("a,b\nc,d\n")
    (entry,) = desk.cache.iterdir()
    before = (entry / "data.arrow").stat().st_ino
    load_dataset(path, CSVOptions(), desk.cache)
    assert (entry / "data.arrow").stat().st_ino == before, "read from the cache"

    content = bytearray((entry / "data.arrow").read_bytes())
    content[content.index(b"ac")] ^= 1  # one bit of one text
    (entry / "data.arrow").write_bytes(content)
    assert desk.as_rows(desk.load("a,b\nc,d\n")) == [("a", "b"), ("c", "d")]
    (entry / "meta.json").write_text("{")
    assert desk.load("a,b\nc,d\n").id == first.id
    (entry / "data.arrow").unlink()
    assert desk.load("a,b\nc,d\n").id == first.id


def test_other_options_are_another_entry(desk: Any) -> None:
    assert desk.load("a,b\nc,d\n").form == "pairs"
    assert desk.load("a,b\nc,d\n", is_labeled=True).form == "labelled"
    assert len(desk.load("a,b\nc,d\n", size=1)) == 1


def test_progress_is_told(desk: Any) -> None:
    told: list[int] = []
    path = desk.file("".join(f'{{"anchor": "a{i}", "positive": "b"}}\n' for i in range(20_000)),
                     "x.jsonl")  # fmt: skip
    load_dataset(path, CSVOptions(), desk.cache, progress=told.append)
    assert told == sorted(told)
    assert told[-1] == 20_000
    assert len(told) >= 3


def test_a_file_that_changes_while_it_is_read_is_refused(desk: Any) -> None:
    path = desk.file("".join(json.dumps(["a", "b"]) + "\n" for _ in range(20_000)), "x.jsonl")

    def change(_: int) -> None:
        with open(path, "a", encoding="utf-8") as file:
            file.write('["c", "d"]\n')

    with pytest.raises(DataError, match="changed while it was read"):
        load_dataset(path, CSVOptions(), desk.cache, progress=change)
    assert not list(desk.cache.iterdir())


def test_labels_over_many_batches(desk: Any, tmp_path: Path) -> None:
    rows = [(f"t{i}", f"class {i * 7 % 1000}") for i in range(150_000)]
    content = "text\tlabel\n" + "".join(f"{text}\t{label}\n" for text, label in rows)
    dataset = desk.load(content, "data.tsv")
    assert dataset._base.column("text").num_chunks > 1
    codes = dataset.array("label")
    order = list(dict.fromkeys(label for _, label in rows))
    expected = {label: code for code, label in enumerate(order)}
    assert codes.tolist() == [expected[label] for _, label in rows]
    assert [dataset.class_name(code) for code in (0, 999)] == [order[0], order[999]]


@settings(max_examples=200, deadline=None)
@given(texts=st.lists(st.text(max_size=40), min_size=1, max_size=30), start=st.integers(0, 29))
def test_keys_are_equal_where_texts_are(texts: list[str], start: int) -> None:
    values = pa.array(texts, pa.string())
    keys = array_keys(values).tolist()
    assert len(set(keys)) == len(set(texts))
    assert array_keys(values.slice(start)).tolist() == keys[start:]
