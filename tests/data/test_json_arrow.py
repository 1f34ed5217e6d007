"""JSON Lines, JSON arrays, Parquet and Arrow: the same rows, the same checks, the same id."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from luthier.data import encoding, load_dataset
from luthier.data.reading import kind_of, read
from luthier.errors import DataError
from luthier.spec import CSVOptions

ROWS = [{"text": "größe, Maß", "label": "a"}, {"text": 'two\n"lines"', "label": "b"},
        {"text": "x", "label": "a"}]  # fmt: skip


def write_all(folder: Path) -> list[Path]:
    """The same rows in every format."""
    table = pa.Table.from_pylist(ROWS)
    paths = [folder / f"data.{end}" for end in ("csv", "jsonl", "json", "parquet", "arrow")]
    lines = ['"' + '","'.join(v.replace('"', '""') for v in row.values()) + '"' for row in ROWS]
    paths[0].write_text("text,label\n" + "\n".join(lines), "utf-8")
    paths[1].write_text("\n".join(json.dumps(row) for row in ROWS))
    paths[2].write_text(json.dumps(ROWS, indent=1, ensure_ascii=False), "utf-8")
    parquet.write_table(table, paths[3], row_group_size=2)
    with pa.OSFile(str(paths[4]), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=1)
    stream = folder / "stream.arrow"  # what the datasets library writes
    with pa.OSFile(str(stream), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return [*paths, stream]


def test_all_formats_give_the_same_dataset(tmp_path: Path, desk: Any) -> None:
    found = [load_dataset(path, CSVOptions(), tmp_path / "cache") for path in write_all(tmp_path)]
    assert len({dataset.id for dataset in found}) == 1
    assert all(desk.as_rows(d) == [tuple(row.values()) for row in ROWS] for d in found)


def test_the_format_is_told_from_the_content(tmp_path: Path) -> None:
    kinds = []
    for path in write_all(tmp_path):
        bare = tmp_path / f"{path.stem}-{path.suffix[1:]}"
        path.rename(bare)
        kinds.append(kind_of(bare, "blob:0123", None))
        assert load_dataset(bare, CSVOptions(), tmp_path / "cache", name="blob:0123").form
    assert kinds == ["csv", "jsonl", "json", "parquet", "arrow", "arrow"]


def test_the_name_decides_before_the_content(tmp_path: Path) -> None:
    path = tmp_path / "0123"
    path.write_text('{"a,b\n')
    assert kind_of(path, "s3://bucket/x.csv?versionId=1", None) == "csv"
    assert kind_of(path, "x.csv", "jsonl") == "jsonl"
    with pytest.raises(DataError, match="no format is called 'jsonlines'"):
        kind_of(path, "x.csv", "jsonlines")
    path.write_bytes(b"\x1f\x8b....")
    with pytest.raises(DataError, match="packed"):
        kind_of(path, "x.csv.gz", None)


def test_rows_as_lists(desk: Any) -> None:
    assert desk.rows('["a", "b"]\n["c", "d"]\n', "data.jsonl") == [("a", "b"), ("c", "d")]
    assert desk.rows('[["a", "b", 0.5], ["c", "d", 1]]', "data.json")[1] == ("c", "d", 1.0)


@pytest.mark.parametrize(
    ("line", "column", "says"),
    [
        ('{"text": "a"}', "label", "lacks the field"),
        ('{"text": "a", "label": "b", "more": 1}', "more", "first row does not have"),
        ('{"text": null, "label": "b"}', "text", "missing"),
        ('{"text": 5, "label": "b"}', "text", "expected text, found int 5"),
        ('{"text": ["a"], "label": "b"}', "text", "found list"),
        ('{"text": "a", "label": 1.5}', "label", "found float 1.5"),
        ('{"text": "a", "label": true}', "label", "found bool True"),
        ('{"text": "a", "label": ""}', "label", "empty"),
        ('{"text": " ", "label": "b"}', "text", "empty"),
        ('{"text": "\\ud800", "label": "b"}', "text", "surrogate"),
        ('{"text": "a\\u0000", "label": "b"}', "text", "NUL"),
        ('{"text": "a", "text": "b", "label": "b"}', None, "'text' is given twice"),
        ('{"text": "a", "label": NaN}', None, "NaN is not JSON"),
        ('{"text": "a", "label": "b"', None, "not JSON"),
        ('"text"', None, "expected an object"),
        ("[" * 100_000, None, "nested too deeply"),
        ('{"text": "a", "label": ' + "9" * 5000 + "}", None, "not JSON"),
    ],
)
def test_bad_lines_are_named(desk: Any, line: str, column: str | None, says: str) -> None:
    good = '{"text": "a", "label": "b"}\n'
    error = desk.error(good * 2 + "\n" + line + "\n" + good, "data.jsonl")
    assert says in error.message
    assert error.row == 4
    assert error.column is None if column is None else str(error.column).startswith(column)


def test_bytes_that_are_no_utf8(desk: Any) -> None:
    assert desk.error(b'{"text": "a", "label": "b"}\n{"text": "\xff"}\n', "x.jsonl").row == 2
    assert desk.error(b'[{"text": "a", "label": "b"},\n{"text": "\xff"}]\n', "x.json").row == 2
    assert desk.error(b'[{"text": "a", "label": "b"}]\n\xff', "x.json").row == 2


@pytest.mark.parametrize(
    ("content", "row", "says"),
    [
        ('[{"text": "a", "label": "b"}\n {"text": "a", "label": "b"}]', 2, "a comma is missing"),
        ('[{"text": "a", "label": "b"},\n]', 2, "a comma before the end"),
        ('[{"text": "a", "label": "b"}\n', 2, "never closed"),
        ('[{"text": "a", "label": "b"}]\n x', 2, "follows the end"),
        ('[{"text": "a",\n "label": }]', 1, "not JSON"),
        ("[]", None, "no rows"),
        ("[" * 100_000, 1, "nested too deeply"),
        ('[{"text": "a", "label": "b"},\n 2]', 2, "expected an object"),
    ],
)
def test_bad_arrays_are_named(desk: Any, content: str, row: int | None, says: str) -> None:
    error = desk.error(content, "data.json")
    assert says in error.message
    assert error.row == row


def test_chosen_columns_leave_the_others_out(desk: Any) -> None:
    content = '{"q": "a", "d": "b", "n": [1]}\n{"d": "d", "q": "c"}\n'
    chosen = {"anchor": "q", "positive": "d"}
    assert desk.rows(content, "data.jsonl", columns=chosen) == [("a", "b"), ("c", "d")]
    assert (
        "lacks"
        in desk.error('{"q": "a", "d": "b"}\n{"q": "a"}\n', "x.jsonl", columns=chosen).message
    )


def test_labels_may_mix_numbers_and_words(desk: Any) -> None:
    content = '{"text": "a", "label": 1}\n{"text": "b", "label": "x"}\n{"text": "c", "label": 1}\n'
    assert desk.rows(content, "data.jsonl") == [("a", "1"), ("b", "x"), ("c", "1")]


@pytest.mark.parametrize("size", [5, 16, 40])
def test_arrays_are_read_over_any_cut(
    desk: Any, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    monkeypatch.setattr(encoding, "PIECE_BYTES", size)
    rows = [{"anchor": f"日本 {i}, [", "positive": 'a "b"]'} for i in range(30)]
    for content in (json.dumps(rows, indent=2), json.dumps(rows, ensure_ascii=False)):
        assert desk.rows(content, "data.json") == [tuple(row.values()) for row in rows]


@pytest.mark.parametrize(
    ("table", "row", "column", "says"),
    [
        ({"text": ["a", None], "label": ["x", "y"]}, 2, "text", "missing"),
        ({"text": [1, 2], "label": ["x", "y"]}, 1, "text", "expected text, found int64"),
        ({"text": ["a", "b"], "label": [1.5, 2.0]}, 1, "label", "found double"),
        ({"sentence1": ["a"] * 3, "sentence2": ["b"] * 3, "score": [0.1, float("nan"), 2.0]},
         2, "score", "found nan"),
        ({"sentence1": ["a"], "sentence2": ["b"], "score": [None]}, 1, "score", "found nothing"),
    ],
)  # fmt: skip
def test_bad_values_in_parquet(
    desk: Any, tmp_path: Path, table: dict[str, Any], row: int, column: str, says: str
) -> None:
    path = tmp_path / "made.parquet"
    parquet.write_table(pa.table(table), path)
    error = desk.error(path.read_bytes(), "data.parquet")
    assert says in error.message
    assert error.row == row
    assert str(error.column).startswith(column)


def test_dictionary_and_large_columns(desk: Any, tmp_path: Path) -> None:
    table = pa.table({
        "text": pa.array(["a", "b", "c"], pa.large_string()),
        "label": pa.array(["x", "y", "x"]).dictionary_encode(),
    })  # fmt: skip
    path = tmp_path / "made.parquet"
    parquet.write_table(table, path)
    rows = desk.rows(path.read_bytes(), "data.parquet")
    assert rows == [("a", "x"), ("b", "y"), ("c", "x")]


@settings(max_examples=300, deadline=None, derandomize=True,
          suppress_health_check=[HealthCheck.function_scoped_fixture])  # fmt: skip
@given(
    kind=st.sampled_from(["jsonl", "json", "parquet", "arrow"]),
    changes=st.lists(
        st.tuples(st.integers(0, 5000), st.binary(max_size=3)), min_size=1, max_size=4
    ),
)  # fmt: skip
def test_changed_bytes_never_end_in_anything_but_a_data_error(
    tmp_path_factory: pytest.TempPathFactory, kind: str, changes: list[tuple[int, bytes]]
) -> None:
    folder = tmp_path_factory.getbasetemp() / "formats"
    if not folder.exists():
        folder.mkdir()
        write_all(folder)
    data = (folder / f"data.{kind}").read_bytes()
    for place, added in changes:
        at = place % len(data)
        data = data[:at] + added + data[at + 1 :]
    path = folder / f"changed.{kind}"
    path.write_bytes(data)
    try:
        kind = kind_of(path, "x", None)
        rows = [row for b in read(path, kind, CSVOptions(), "x").batches for row in b.to_pylist()]
    except DataError as error:
        if error.file != "x":
            raise AssertionError("the error names no file") from error
        return
    if kind == "jsonl":
        lines = [json.loads(line) for line in data.decode("utf-8-sig").split("\n") if line.strip()]
        assert rows == [{"text": row["text"], "label": str(row["label"])} for row in lines]
    if kind == "json":
        assert rows == [
            {k: str(v) for k, v in r.items()} for r in json.loads(data.decode("utf-8-sig"))
        ]
