"""Files as tables of raw columns."""

import json

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from luthier.data.parts import THREE_WAYS, TWO_WAYS, split_rows
from luthier.data.rows import Rows, read_rows
from luthier.errors import DataError
from luthier.spec import CSVOptions

ROWS = [
    {"id": 7, "tokens": ["a", "b"], "answer": {"text": ["x"], "start": [3]}, "score": 0.5},
    {"id": 8, "tokens": [], "answer": {"text": [], "start": []}, "score": 1.0},
    {"id": 9, "tokens": ["ü"], "answer": {"text": ["y", "z"], "start": [1, 2]}, "score": -2.0},
]


def read(tmp_path, content, name, only=None, **options):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_rows(path, CSVOptions(**options), name=name, only=only)


def jsonl(rows):
    return "\n".join(json.dumps(row, ensure_ascii=False) for row in rows)


def error(tmp_path, content, name, **options):
    with pytest.raises(DataError) as caught:
        read(tmp_path, content, name, **options)
    return str(caught.value)


def test_the_same_content_has_the_same_id_in_every_format(tmp_path):
    lines = read(tmp_path, jsonl(ROWS), "a.jsonl")
    array = read(tmp_path, json.dumps(ROWS, indent=1), "a.json")
    table = pa.Table.from_pylist(ROWS).select(["score", "tokens", "id", "answer"])
    parquet.write_table(table, tmp_path / "a.parquet", row_group_size=1)
    small = table.set_column(2, "id", table["id"].cast(pa.int8()))
    with (
        pa.OSFile(str(tmp_path / "a.arrow"), "wb") as sink,
        pa.ipc.new_file(sink, small.schema) as writer,
    ):
        writer.write_table(small)
    others = [read_rows(tmp_path / name, CSVOptions()) for name in ("a.parquet", "a.arrow")]
    assert {rows.id for rows in (lines, array, *others)} == {lines.id}
    assert lines.row(2) == ROWS[2]
    assert lines.columns == ("id", "tokens", "answer", "score")
    assert others[0].row(1) == ROWS[1]
    changed = read(tmp_path, jsonl([*ROWS[:2], ROWS[2] | {"id": 10}]), "b.jsonl")
    assert changed.id != lines.id


def test_csv_and_tsv_are_text_and_agree_with_json_of_text(tmp_path):
    rows = [{"text": "a, b", "label": "0"}, {"text": "two\nlines", "label": "1"}]
    csv = read(tmp_path, 'text,label\n"a, b",0\n"two\nlines",1\n', "a.csv")
    tsv = read(tmp_path, 'text\tlabel\na, b\t0\n"two\nlines"\t1\n', "a.tsv")
    assert csv.id == tsv.id == read(tmp_path, jsonl(rows), "a.jsonl").id
    assert csv.row(1) == rows[1]


def test_lines_are_those_of_an_editor_also_after_taking(tmp_path):
    csv = read(tmp_path, 'text,label\n"a\nb",0\n\nc,1\nd,1\n', "a.csv")
    assert [csv.line(i) for i in range(3)] == [2, 5, 6]
    assert [csv.take([2, 0]).line(i) for i in range(2)] == [6, 2]
    assert csv.take([2, 1]).take([0]).line(0) == 6
    array = read(tmp_path, json.dumps(ROWS, indent=1), "a.json")
    lines = json.dumps(ROWS, indent=1).split("\n")
    starts = [i for i, line in enumerate(lines, 1) if line == " {"]
    assert [array.line(i) for i in range(3)] == starts


def test_one_column_and_no_header(tmp_path):
    assert read(tmp_path, "text\nhello there\nagain\n", "a.csv").row(0) == {"text": "hello there"}
    rows = read(tmp_path, "a,b\nc,d\n", "a.csv", header=False)
    assert rows.columns == ("1", "2")
    assert len(rows) == 2


def test_size_sampling_and_only(tmp_path):
    many = [{"text": f"t{i}", "n": i} for i in range(500)]
    assert len(read(tmp_path, jsonl(many), "a.jsonl", size=7)) == 7
    some = read(tmp_path, jsonl(many), "a.jsonl", sampling_rate=0.2)
    assert 50 < len(some) < 150
    kept = some.column("n").to_pylist()
    assert [some.line(i) for i in (0, 5)] == [kept[0] + 1, kept[5] + 1]
    ragged = [{"text": "a", "extra": 1}, {"text": "b"}, {"text": "c", "other": []}]
    assert read(tmp_path, jsonl(ragged), "b.jsonl", only=["text"]).columns == ("text",)


def test_types_that_differ_between_blocks_are_joined(tmp_path):
    """A block of JSON holds 8,192 rows after the first thousand."""
    plain = [{"label": i, "m": [{"role": "user"}]} for i in range(1500)]
    rows = read(tmp_path, jsonl([*plain, {"label": 2.5, "m": [{"role": "x", "name": "n"}]}]),
                "a.jsonl")  # fmt: skip
    assert rows.column("label").type == pa.float64()
    assert rows.row(1500)["m"] == [{"role": "x", "name": "n"}]
    words = read(tmp_path, jsonl([*plain, {"label": "none", "m": []}]), "b.jsonl")
    assert words.row(3)["label"] == "3"


def test_values_of_rows_are_found_in_their_chunks():
    parts = [pa.array(["a", "b"]), pa.array([], pa.string()), pa.array(["c"]), pa.array(["d", "e"])]
    rows = Rows("f", pa.table({"x": pa.chunked_array(parts)}))
    assert rows.values("x", [4, 0, 2, 2, 3, 1]) == ["e", "a", "c", "c", "d", "b"]
    assert rows.take([3, 1]).values("x", np.array([1])) == ["b"]
    assert rows.id == Rows("f", pa.table({"x": list("abcde")})).id


def test_values_of_different_kinds_name_the_row(tmp_path):
    rows = [{"a": 1, "b": ["x"]}, {"a": 2, "b": "x"}, {"a": 3, "b": ["y"]}]
    assert error(tmp_path, jsonl(rows), "a.jsonl").startswith(
        "a.jsonl, row 2, column b: a text, 'x', where rows before it have a list"
    )
    late = [{"b": ["x"]} for _ in range(1100)] + [{"b": "x"}]
    assert "late.jsonl, row 1101, column b: a text" in error(tmp_path, jsonl(late), "late.jsonl")
    lone = '{"a": "\\ud800"}'
    assert "a.jsonl, row 1, column a: half of a surrogate pair" in error(tmp_path, lone, "a.jsonl")


def test_what_cannot_be_read_is_named(tmp_path):
    assert "a.jsonl, row 2, column b: this row lacks the field" in error(
        tmp_path, '{"a": 1, "b": 2}\n{"a": 1}', "a.jsonl"
    )
    assert "a.csv, row 3: 3 cells, where the other rows have 2" in error(
        tmp_path, "a,b\n1,2\n1,2,3\n4,5\n6,7\n", "a.csv"
    )
    assert "the file is empty" in error(tmp_path, "", "a.csv")
    assert "csv_options.columns is for embeddings" in error(
        tmp_path, "a,b\n1,2\n", "a.csv", columns={"text": "a"}
    )
    assert "column a: two columns have this name" in error(tmp_path, "a,a\n1,2\n", "a.csv")
    with pytest.raises(DataError, match="there is no such file"):
        read_rows(tmp_path / "none.csv", CSVOptions())


def rows_of(labels):
    return Rows("a.jsonl", pa.table({"n": range(len(labels)), "label": labels}))


def test_parts_are_disjoint_whole_and_the_same_again():
    rows = rows_of(["x"] * 103)
    parts = split_rows(rows, THREE_WAYS, seed=1)
    numbers = {name: part.column("n").to_pylist() for name, part in parts.items()}
    assert sorted(n for part in numbers.values() for n in part) == list(range(103))
    for name, share in THREE_WAYS.items():
        assert abs(len(parts[name]) - share * 103) <= 1
    again = split_rows(rows, (0.8, 0.1, 0.1), seed=1)
    assert {name: part.column("n").to_pylist() for name, part in again.items()} == numbers
    other = split_rows(rows, THREE_WAYS, seed=2)
    assert other["test"].column("n").to_pylist() != numbers["test"]
    assert {len(part) for part in split_rows(rows, TWO_WAYS).values()} <= {82, 83, 20, 21}


def test_a_class_of_one_row_is_always_learnt():
    labels = ["common"] * 300 + [f"once {i}" for i in range(40)]
    parts = split_rows(rows_of(labels), THREE_WAYS, seed=5, stratify_by="label")
    assert set(parts["train"].column("label").to_pylist()) == set(labels)
    assert len(parts["test"]) > 20


def test_equal_rows_stay_together():
    texts = [f"text {i // 4}" for i in range(400)]
    rows = Rows("f", pa.table({"text": texts, "label": ["x"] * 400, "id": range(400)}))
    parts = split_rows(rows, THREE_WAYS, seed=1, stratify_by="label", together_by=["text"])
    found = [set(part.column("text").to_pylist()) for part in parts.values()]
    assert sum(map(len, found)) == 100, "no text is in two parts"
    assert abs(len(parts["train"]) - 320) <= 4
    alone = split_rows(rows, THREE_WAYS, seed=1)
    assert sum(len(set(part.column("text").to_pylist())) for part in alone.values()) > 100
    nested = Rows("f", pa.table({"words": [["a", str(i // 2)] for i in range(60)]}))
    found = [set(map(str, p.column("words").to_pylist())) for p in split_rows(nested).values()]
    assert sum(map(len, found)) == 30


def test_classes_are_shared_out_alike_and_train_has_them_all():
    labels = ["common"] * 500 + ["rare"] * 50 + ["rarer"] * 10 + ["once"]
    mixed = np.random.default_rng(0).permutation(labels).tolist()
    parts = split_rows(rows_of(mixed), THREE_WAYS, seed=3, stratify_by="label")
    for name, share in THREE_WAYS.items():
        found = parts[name].column("label").to_pylist()
        for label in ("common", "rare", "rarer"):
            assert abs(found.count(label) - share * labels.count(label)) <= 2
        assert abs(len(found) - share * len(labels)) <= 2
    assert "once" in parts["train"].column("label").to_pylist()


def test_too_few_rows_are_refused():
    with pytest.raises(DataError, match="3 rows are too few to be split 80%/10%/10%"):
        split_rows(rows_of(["a", "b", "c"]))
    with pytest.raises(DataError, match=r"8 rows \(only 2 of them differ\) are too few"):
        split_rows(rows_of(["a", "b"] * 4), together_by=["label"])
    with pytest.raises(DataError, match="add up to 1"):
        split_rows(rows_of(["a", "b", "c"]), {"train": 0.5, "test": 0.4})
