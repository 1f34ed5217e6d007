"""Rankings: read from every format alike, each fault named by row and column."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from luthier.data import facts, load_dataset, split, to_arrow
from luthier.data.rankings import Rankings
from luthier.errors import DataError
from luthier.spec import CSVOptions


def rows(count=12):
    return [
        {
            "query": f"q{i % 4}",
            "items": [f"item {j}" for j in range(i % 3 + 2)],
            "relevance": [1.0] + [0.0] * (i % 3 + 1),
            "score": [0.5 * j for j in range(i % 3 + 2)],
        }
        for i in range(count)
    ]


def written(folder, data, kind):
    file = folder / f"data.{kind}"
    if kind == "jsonl":
        file.write_text("\n".join(map(json.dumps, data)))
    elif kind == "json":
        file.write_text(json.dumps(data))
    elif kind == "parquet":
        pq.write_table(pa.Table.from_pylist(data), file)
    else:
        to_arrow(data, file)
    return file


def load(folder, data, kind="jsonl", **options):
    return load_dataset(written(folder, data, kind), CSVOptions(**options), folder / "cache")


@pytest.mark.parametrize("kind", ["jsonl", "json", "parquet", "arrow"])
def test_every_format_gives_the_same(tmp_path, kind):
    found = load(tmp_path, rows(), kind)
    assert isinstance(found, Rankings)
    assert found.form == "rankings"
    assert found.id == load(tmp_path, rows(), "jsonl").id
    for number, row in enumerate(rows()):
        shown = found.shown([number])
        names = found.catalogue.texts("text", shown.items)
        assert names == row["items"] == found.texts("items", [number])
        assert shown.relevance.tolist() == row["relevance"]
        assert shown.score.tolist() == row["score"]
        assert found.texts("query", [number]) == [row["query"]]
        assert found.catalogue.texts("text", shown.queries) == [row["query"]]
    assert len(found.catalogue) == 4 + 4


def test_in_memory_numpy_and_pandas(tmp_path):
    import pandas as pd

    arrays = [{**row, "relevance": np.array(row["relevance"])} for row in rows()]
    file = tmp_path / "a.arrow"
    expected = load(tmp_path, rows()).id
    for data in (arrays, pd.DataFrame(rows()), pa.Table.from_pylist(rows())):
        to_arrow(data, file)
        assert load_dataset(file, CSVOptions(), tmp_path / "cache").id == expected


def test_other_content_has_another_id(tmp_path):
    first = load(tmp_path, rows())
    for change in ({"relevance": [0.0, 1.0]}, {"items": ["item 0", "item x"]}, {"query": "q"}):
        data = rows()
        data[3] = {**data[3], "items": ["item 0", "item 1"], "relevance": [1.0, 0.0], **change}
        assert load(tmp_path, data).id != first.id
    data = rows()  # the same values in lists that are cut elsewhere
    data[0], data[1] = (
        {**data[0], **{k: v[:1] for k, v in data[0].items() if k != "query"}},
        {**data[1], **{k: data[0][k][1:] + v for k, v in data[1].items() if k != "query"}},
    )
    assert load(tmp_path, data).id != first.id


BAD = [
    ({"items": ["a", " "]}, "row 4, column items: a text of the list is empty"),
    ({"items": ["a", None]}, "row 4, column items: expected a list of texts, found None"),
    ({"items": ["a", 3]}, "row 4, column items: expected a list of texts, found 3 at place 2"),
    ({"items": "a"}, "row 4, column items: expected a list of texts, found str 'a'"),
    ({"items": [], "relevance": [], "score": []}, "row 4, column items: an empty list"),
    ({"relevance": [1.0]}, "row 4, column relevance: 1 values for 2 items"),
    ({"relevance": [1.0, -1.0]}, "from 0 on, 0 for what was not clicked, found -1"),
    ({"relevance": [1.0, True]}, "row 4, column relevance: expected a list of numbers"),
    ({"relevance": None}, "row 4, column relevance: expected a list of numbers from 0 on, 0 for"),
    ({"score": [1.0, "b"]}, "row 4, column score: expected a list of finite numbers, found 'b'"),
    ({"query": " "}, "row 4, column query: empty"),
    ({"query": None}, "row 4, column query: missing"),
]


@pytest.mark.parametrize(("change", "said"), BAD, ids=str)
def test_faults_name_row_and_column(tmp_path, change, said):
    data = rows()
    two = {"items": ["a", "b"], "relevance": [1.0, 0.0], "score": [1.0, 0.0]}
    data[3] = {**data[3], **two, **change}
    with pytest.raises(DataError) as error:
        load(tmp_path, data)
    assert said in str(error.value)


def test_faults_of_arrow_columns(tmp_path):
    for column, values, said in (
        ("weight", [[1.0, float("inf")]], "row 1, column weight: expected a list of numbers"),
        ("weight", [[1.0, None]], "row 1, column weight: expected a list of numbers"),
        (
            "weight",
            [None],
            "row 1, column weight: expected a list of numbers from 0 on, found null",
        ),
        ("weight", [["a", "b"]], "row 1, column weight: expected a list of numbers"),
        ("irrelevant", [[0.0, 2.0]], "row 1, column irrelevant: expected a list of 0 and 1"),
        ("weight", [1.0], "row 1, column weight: expected a list of numbers from 0 on, found"),
    ):
        table = {"query": ["q"], "items": [["a", "b"]], "relevance": [[1.0, 0.0]], column: values}
        file = tmp_path / "bad.parquet"
        pq.write_table(pa.table(table), file)
        with pytest.raises(DataError) as error:
            load_dataset(file, CSVOptions(), tmp_path / "cache")
        assert said in str(error.value)


def test_columns_by_other_names(tmp_path):
    data = [{"question": r["query"], "docs": r["items"], "relevance": r["relevance"], "id": 7}
            for r in rows()]  # fmt: skip
    found = load(tmp_path, data)
    assert found.mapping == {"query": "question", "items": "docs", "relevance": "relevance"}
    data = [{"q": r["query"], "shown": r["items"], "y": r["relevance"], "z": "x"} for r in rows()]
    chosen = {"query": "q", "items": "shown", "relevance": "y"}
    assert load(tmp_path, data, columns=chosen).id == found.id


def test_unknown_columns_are_refused(tmp_path):
    data = [{**row, "colour": "red"} for row in rows()]
    with pytest.raises(DataError, match="the column 'colour' matches no role of rankings"):
        load(tmp_path, data)
    data = [{k: v for k, v in row.items() if k != "query"} for row in rows()]
    with pytest.raises(DataError, match="need a column with the query"):
        load(tmp_path, data)
    chosen = {"query": "query", "items": "items", "relevance": "relevance", "colour": "score"}
    with pytest.raises(DataError, match="no role of rankings is called 'colour'"):
        load(tmp_path, rows(), columns=chosen)


def test_a_csv_holds_no_lists(tmp_path):
    file = tmp_path / "a.csv"
    file.write_text("query,items,relevance\nq,a,1\n")
    with pytest.raises(DataError) as error:
        load_dataset(file, CSVOptions(header=True), tmp_path / "cache")
    assert "lists are read from JSONL" in str(error.value)


def test_a_part_of_a_part(tmp_path):
    whole = load(tmp_path, rows())
    part = whole.take([8, 1, 5, 2]).take([3, 0])
    assert part.texts("query", [0, 1]) == whole.texts("query", [2, 8])
    assert part.array("relevance").tolist() == [
        v for row in (2, 8) for v in rows()[row]["relevance"]
    ]
    assert part.sizes.tolist() == [len(rows()[2]["items"]), len(rows()[8]["items"])]
    assert part.table.column("items").to_pylist() == [rows()[2]["items"], rows()[8]["items"]]
    assert [t for c in part.chunks("items") for t in c.to_pylist()] == part.texts("items", [0, 1])
    with pytest.raises(IndexError):
        part.shown([2])


@pytest.mark.parametrize("seed", range(3))
def test_no_query_is_on_both_sides_of_a_split(tmp_path, seed):
    whole = load(tmp_path, rows(40))
    train, held = split(whole, 0.3, seed)
    assert len(train) + len(held) == 40
    assert 0 < len(held) <= 20
    assert not set(train.texts("query", range(len(train)))) & set(
        held.texts("query", range(len(held)))
    )
    assert facts.overlap(train, held) == 0
    assert split(whole, 0.3, seed)[1].id == held.id
    one = load(tmp_path, [{**row, "query": "q"} for row in rows()])
    with pytest.raises(DataError, match="all have the same query"):
        split(one, 0.5, seed)


def test_facts(tmp_path):
    data = [*rows(), {**rows()[0], "relevance": [0.0, 0.0]}]
    found = facts.describe(load(tmp_path, data))
    assert (found["rows"], found["distinct_queries"], found["without_relevant"]) == (13, 4, 1)
    assert found["items"]["max"] == 4
    assert found["characters"]["items"]["max"] == len("item 0")
    lengths = facts.row_lengths(load(tmp_path, data))
    assert lengths.tolist() == [len(r["query"]) + sum(map(len, r["items"])) for r in data]
    assert json.dumps(found)


def test_size_and_sampling(tmp_path):
    assert len(load(tmp_path, rows(), size=5)) == 5
    assert 0 < len(load(tmp_path, rows(200), sampling_rate=0.5)) < 200
