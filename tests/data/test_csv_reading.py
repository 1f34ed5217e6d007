"""CSV as people write it: what is read, what is refused, and with which place."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from luthier.data import csv_reader, encoding
from luthier.data.blocks import MAX_CELL_BYTES
from luthier.data.reading import read
from luthier.errors import DataError
from luthier.spec import CSVOptions

#: From the documentation of Finetuner: spaces after the commas, and a quoted comma.
FINETUNER_LABELLED = """\
Hello!, greeting-english
Hi there., greeting-english
Good morning., greeting-english
I'm (…) sorry!, apologize-english
I'm sorry to have…, apologize-english
Please ... forgive me!, apologize-english
"""
FINETUNER_PAIRS = """\
This is an English sentence, Das ist ein englischer Satz
This is an English sentence, Dit is een Engelse zin
This is another English sentence, "Dies ist, wie gesagt, ein weiterer englischer Satz"
"""


def test_separator_is_never_a_space(desk: Any) -> None:
    assert desk.rows("apple pie|dessert\nred wine|drink\n") == [
        ("apple pie", "dessert"), ("red wine", "drink"),
    ]  # fmt: skip


def test_examples_of_finetuner(desk: Any) -> None:
    labelled = desk.rows(FINETUNER_LABELLED, is_labeled=True)
    assert labelled[0] == ("Hello!", "greeting-english")
    assert len(labelled) == 6
    assert len({label for _, label in labelled}) == 2
    assert desk.rows(FINETUNER_PAIRS)[2][1] == "Dies ist, wie gesagt, ein weiterer englischer Satz"
    assert desk.rows('field1,"field, 2"\n') == [("field1", "field, 2")]


@pytest.mark.parametrize(
    ("content", "rows"),
    [
        ("a,b\r\nc,d\r\n", [("a", "b"), ("c", "d")]),
        ("a\tb, c\nd\te\n", [("a", "b, c"), ("d", "e")]),
        ("a;b\nc;d", [("a", "b"), ("c", "d")]),
        ("\ufeffa,b\n\n\nc,d\n\n", [("a", "b"), ("c", "d")]),
        ('"a","two\nlines"\n"c ""d""",e\n', [("a", "two\nlines"), ('c "d"', "e")]),
        ('5" pipe,tube\n6" pipe,tube\n', [('5" pipe', "tube"), ('6" pipe', "tube")]),
        ("a,b\rc,d\r", [("a", "b"), ("c", "d")]),
        ("Berlin, Germany|city\nRhine|river\n", [("Berlin, Germany", "city"), ("Rhine", "river")]),
    ],
)
def test_read(desk: Any, content: str, rows: list[tuple[str, ...]]) -> None:
    assert desk.rows(content) == rows


def test_ambiguous_separator_is_refused_unless_something_decides(desk: Any) -> None:
    error = desk.error("red, ripe|fruit\nblue, deep|colour\n")
    assert "comma (2 cells) or vertical bar (2 cells)" in error.message
    assert error.row == 1
    assert desk.rows("red, ripe|fruit\nblue, deep|colour\n", delimiter="|")[0][1] == "fruit"
    assert desk.rows("red, ripe|fruit\nblue, deep|colour\n", dialect="excel")[0][1] == " ripe|fruit"
    by_header = desk.rows("text|label\nred, ripe|fruit\n")
    assert by_header == [("red, ripe", "fruit")]
    assert desk.rows("red, ripe\tfruit\n", name="data.tsv") == [("red, ripe", "fruit")]


def test_a_bad_row_does_not_let_commas_of_prose_win(desk: Any) -> None:
    rows = [f"Town {i}, Germany\tcity" for i in range(30)]
    rows[17] = "Town, Germany city"
    assert "tab" in desk.error("\n".join(rows)).message


@pytest.mark.parametrize("delimiter", ["", "ab", '"', "\n", " ", "é"])
def test_impossible_delimiters(desk: Any, delimiter: str) -> None:
    assert "cannot separate" in desk.error("a,b\n", delimiter=delimiter).message


@pytest.mark.parametrize(
    ("content", "row", "column", "says"),
    [
        ("a,b\nc,d\ne\n", 3, None, "1 cell, where the other rows have 2"),
        ("a,b\nc,d,x\ne,f\n", 2, None, "3 cells, where the other rows have 2"),
        ('a,b\n"x\ny",c\nd,"\n', 4, "2", "never closed"),
        ('a,b\n"x\n\ny",c\nd,\n', 5, "column 2", "empty"),
        ("a,b\nc,   \n", 2, "column 2", "empty"),
        ('a,b\n"c" d,e\n', 2, "1", "text follows the closing quote: ' d,e'"),
        (b"a,b\nc,d\xff\n", 2, "2", "not UTF-8: ff"),
        (b"a,b\nc\x00,d\n", 2, "1", "NUL"),
        ("anchor,positive\na,b\nc,\n", 3, "positive", "empty"),
        ("query,document\n\n\na,b\n,d\n", 5, "query (anchor)", "empty"),
        ("a,b,0.5\nc,d,1.5\n", 2, "column 3", "a score from 0 to 1, found 1.5"),
        ("sentence1,sentence2,score\na,b,0.1\nc,d,nan\n", 3, "score", "'nan'"),
        ("sentence1,sentence2,score\na,b,\n", 2, "score", "found nothing"),
        ("a,b," + "9" * 400 + "\n", 1, "column 3", "inf"),
        ("a,b\nc," + "d" * (MAX_CELL_BYTES + 1) + "\n", 2, "2", "longer than"),
        ('a,b\nc,"' + "d" * (MAX_CELL_BYTES + 1) + '"\n', 2, "2", "longer than"),
    ],
)
def test_refused_with_its_place(
    desk: Any, content: str | bytes, row: int, column: str | None, says: str
) -> None:
    error = desk.error(content, dialect="excel")
    assert says in error.message
    assert error.row == row
    assert error.file == "data.csv"
    shown = str(error.column) if error.column is not None else None
    wanted = column.removeprefix("column ") if column else None
    assert shown is None if wanted is None else str(shown).startswith(wanted)


def test_ten_problems_are_listed_and_nothing_is_kept(desk: Any) -> None:
    content = "a,b\n" * 50 + "".join(f"only{i}\n" for i in range(30)) + "c,d\n" * 50
    error = desk.error(content)
    assert error.row == 51
    assert error.message.count("also row") == 9
    assert "reading stopped here" in error.message


def test_problems_of_different_kinds_come_in_the_order_of_rows(desk: Any) -> None:
    message = desk.error("a,b\n,d\ne\n").message
    assert "also row 3: 1 cell" in message


def test_decimal_commas_and_scores_as_text(desk: Any) -> None:
    error = desk.error('a,b,"0,5"\n', columns={"sentence1": 1, "sentence2": 2, "score": 3})
    assert "point" in (error.hint or "")
    assert desk.rows("a,b, 0.5 \nc,d,1e-1\n") == [("a", "b", 0.5), ("c", "d", 0.1)]


def test_header(desk: Any) -> None:
    assert desk.rows("text,label\na,b\n") == [("a", "b")]
    assert desk.rows("text,label\na,b\n", header=False) == [("text", "label"), ("a", "b")]
    assert "cannot tell whether" in desk.error("anchor,flavour\na,b\n").message
    assert desk.rows("question,pie\na,b\n", header=False) == [("question", "pie"), ("a", "b")]
    assert "the header has 3 names" in desk.error("text,label,x\na,b\nc,d\n", header=True).message
    assert "match no role" in desk.error("frage,antwort\na,b\n", header=True).message
    chosen = {"anchor": "frage", "positive": "antwort"}
    assert desk.rows("frage,antwort\na,b\n", columns=chosen) == [("a", "b")]
    assert "names but no rows" in desk.error("text,label\n").message


@pytest.mark.parametrize(
    "codec", ["utf-16", "utf-16-le", "utf-32", "latin-1", "cp1252", "utf-8-sig"]
)
def test_encodings(desk: Any, codec: str) -> None:
    content = "größe,Maß\nété,summer\n".encode(codec)
    assert desk.rows(content, encoding=codec) == [("größe", "Maß"), ("été", "summer")]


def test_wrong_encodings(desk: Any) -> None:
    error = desk.error("a,b\nc,d\n".encode("utf-16"))
    assert error.hint == "csv_options: encoding='utf-16'"
    assert desk.error("a,b\nc,ö\n".encode("latin-1")).row == 2
    assert desk.error(b"a,b\nc,d\ne,\x81\n", encoding="cp1252").row == 3
    assert desk.error("日,b\nc,\n".encode("shift_jis") + b"\x81", encoding="shift_jis").row == 3
    for name in ("utf-9", "rot13", "base64", "\0", "idna"):
        assert desk.error("a,b\n", encoding=name).code == "data_invalid"


@pytest.mark.parametrize("codec", ["utf-8", "utf-16", "shift_jis"])
def test_characters_cut_between_pieces(
    desk: Any, monkeypatch: pytest.MonkeyPatch, codec: str
) -> None:
    rows = [(f"日本{i}", f"語, {i}") for i in range(50)]
    content = "".join(f'{a},"{b}"\r\n' for a, b in rows).encode(codec)
    path = desk.file(content)
    for size in (64, 97, 1000):
        monkeypatch.setattr(encoding, "PIECE_BYTES", size)
        options = CSVOptions(encoding=codec)
        reading = read(path, "csv", options, "data.csv")
        found = [row for batch in reading.batches for row in batch.to_pylist()]
        assert [tuple(row.values()) for row in found] == rows


def test_empty_and_missing_files(desk: Any, tmp_path: Path) -> None:
    assert "empty" in desk.error("").message
    assert "empty" in desk.error("\n \n").message
    assert "empty" in desk.error("\ufeff").message
    from luthier.data import load_dataset

    for path, says in ((tmp_path / "none.csv", "no such file"), (tmp_path, "cannot be read")):
        with pytest.raises(DataError, match=says):
            load_dataset(path, CSVOptions(), tmp_path / "cache")


def test_one_long_line_does_not_fill_the_memory(desk: Any) -> None:
    path = desk.folder / "long.csv"
    with open(path, "wb") as file:
        file.truncate(1 << 30)  # NUL bytes that take no room on the disk
    reads = []

    class Counted(csv_reader.CSVReader):
        def _feed(self):  # type: ignore[no-untyped-def]
            for piece in super()._feed():
                reads.append(len(piece))
                yield piece

    options = CSVOptions(dialect="excel", header=False)

    def attempt() -> None:
        reader = Counted(path, options, "long.csv", is_header=lambda _: False)
        list(read(path, "csv", options, "long.csv", reader=reader).batches)

    with pytest.raises(DataError, match="longer than"):
        attempt()
    assert sum(reads) <= 32 << 20


def test_options_for_other_modalities_are_refused(desk: Any) -> None:
    assert "images and meshes" in desk.error("a,b\n", convert_to_blob=False).message
    assert "images and meshes" in desk.error("a,b\n", point_cloud_size=5).message


def test_size_and_sampling_rate(desk: Any) -> None:
    content = "".join(f"a{i},b{i}\n" for i in range(2000))
    assert len(desk.load(content, size=7)) == 7
    assert desk.rows(content, size=7)[-1] == ("a6", "b6")
    sampled = desk.rows(content, sampling_rate=0.25)
    assert 400 < len(sampled) < 600
    assert desk.rows(content, sampling_rate=1.0) == desk.rows(content)
    # the choice is by the row's number: not by how the file is cut, nor by its format
    as_json = "".join(f'{{"anchor": "a{i}", "positive": "b{i}"}}\n' for i in range(2000))
    assert desk.rows(as_json, "data.jsonl", sampling_rate=0.25) == sampled
    fewer = desk.rows(content, sampling_rate=0.25, size=1000)
    assert fewer == [row for row in sampled if int(row[0][1:]) < 1000]
    # rows beyond size are not looked at; rows that the rate leaves out are
    assert len(desk.load(content + "bad\n", size=2000)) == 2000
    assert desk.error(content + "bad\n", sampling_rate=0.01).row == 2001
    assert "left no row" in desk.error("a,b\n", sampling_rate=1e-9).message


def test_lines_are_counted_over_blocks(desk: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    content = "".join(f'"a\n{i}",b\r\n' for i in range(500)) + "c,\n"
    for block in (16, 100, 1 << 20):
        monkeypatch.setattr(csv_reader.CSVReader.__init__, "__kwdefaults__", {
            "fast": True, "block_bytes": block,
        })  # fmt: skip
        error = desk.error(content)
        assert error.row == 1001
