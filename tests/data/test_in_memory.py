"""Data handed over in memory: dicts, tuples, frames, tables, documents."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from luthier.data import load_dataset, to_arrow
from luthier.data.documents import Document, DocumentArray
from luthier.errors import DataError, LuthierError
from luthier.spec import CSVOptions


@pytest.fixture
def through(tmp_path: Path, desk: Any) -> Any:
    """Hands data over and reads it as a run does: (form, rows)."""

    def read(data: object, **options: Any) -> tuple[str, list[tuple[Any, ...]]]:
        path = tmp_path / "handed.arrow"
        to_arrow(data, path)
        found = load_dataset(path, CSVOptions(**options), tmp_path / "cache")
        return found.form, desk.as_rows(found)

    return read


def test_rows_and_columns(through: Any) -> None:
    pairs = ("pairs", [("a", "b"), ("c", "d")])
    assert through([{"query": "a", "document": "b"}, {"document": "d", "query": "c"}]) == pairs
    assert through([("a", "b"), ("c", "d")]) == pairs
    assert through([["a", "b"], ["c", "d"]]) == pairs
    assert through({"anchor": ["a", "c"], "positive": ("b", "d")}) == pairs
    assert through(pa.table({"anchor": ["a", "c"], "positive": ["b", "d"]})) == pairs
    assert through([("a", "b", 0.5), ("c", "d", 1)])[0] == "scored"
    assert through([("a", "x"), ("b", 7)], is_labeled=True) == (
        "labelled", [("a", "x"), ("b", "7")],
    )  # fmt: skip
    numpy_values = [{"text": np.str_("a"), "label": np.int64(3)}]
    assert through(numpy_values) == ("labelled", [("a", "3")])
    assert through({"text": np.array(["a", "b"]), "label": np.array([1, 2])})[1][1] == ("b", "2")
    chosen = {"anchor": "frage", "positive": "antwort"}
    named = through([{"frage": "a", "antwort": "b"}], columns=chosen)
    assert named == ("pairs", [("a", "b")])


def test_frames_and_hub_datasets(through: Any) -> None:
    pandas = pytest.importorskip("pandas")
    datasets = pytest.importorskip("datasets")
    frame = pandas.DataFrame({"text": ["a", "b"], "label": [1, 2]}, index=[5, 6])
    assert through(frame) == ("labelled", [("a", "1"), ("b", "2")])
    assert through(pandas.DataFrame([("a", "b")])) == ("pairs", [("a", "b")])
    assert through(frame.astype({"label": "category"}))[0] == "labelled"
    mixed = pandas.DataFrame({"text": ["a", "b"], "label": [1, "x"]})
    assert through(mixed) == ("labelled", [("a", "1"), ("b", "x")])
    hub = datasets.Dataset.from_dict({"anchor": ["a", "b", "c"], "positive": ["x", "y", "z"]})
    assert through(hub.select([2, 0])) == ("pairs", [("c", "z"), ("a", "x")])
    with pytest.raises(DataError, match=r"datasets\.DatasetDict") as caught:
        through(datasets.DatasetDict(train=hub))
    assert "data['train']" in (caught.value.hint or "")
    with pytest.raises(DataError) as caught:
        through(pandas.DataFrame({"text": ["a", None], "label": ["x", "y"]}))
    assert (caught.value.row, caught.value.column) == (2, "text")


@pytest.mark.parametrize(
    ("data", "row", "column", "says"),
    [
        ([], None, None, "no rows"),
        ({}, None, None, "no rows"),
        ([{"text": "a", "label": "x"}, {"text": "b"}], 2, "label", "lacks the field"),
        ([{"text": "a", "label": 1}, {"text": "b", "label": 1, "z": 1}], 2, "z", "does not have"),
        ([{"text": "a", "label": None}], 1, "label", "None"),
        ([{"text": "a", "label": True}], 1, "label", "found bool"),
        ([{"text": b"a", "label": 1}], 1, "text", "found bytes"),
        ([{"text": "\ud800", "label": 1}], 1, "text", "surrogate"),
        ([{"text": "a", "label": 1}, {"text": 2.5, "label": 1}], 2, "text", "in a column of texts"),
        ([("a", "b"), ("c",)], 2, None, "1 cells"),
        ([("a", "b"), "cd"], 2, None, "expected a tuple"),
        (["a", "b"], 1, None, "expected a dict or a tuple"),
        ({"text": ["a"], "label": ["x", "y"]}, None, None, "different length"),
        ({"text": "a", "label": ["x"]}, None, "text", "a list of values"),
        (pa.table({"text": ["a"], "label": [[1]]}), 1, "label", "found list"),
        (pa.table({"text": ["a", "b", None], "label": [1, 2, 3]}), 3, "text", "None"),
        (42, None, None, "cannot train on a int"),
    ],
)  # fmt: skip
def test_refused_with_its_place(
    tmp_path: Path, data: object, row: int | None, column: str | None, says: str
) -> None:
    with pytest.raises(DataError) as caught:
        to_arrow(data, tmp_path / "x.arrow")
    assert says in caught.value.message
    assert (caught.value.row, caught.value.column) == (row, column)
    assert not list(tmp_path.iterdir()), "nothing is left"


def test_labelled_documents(through: Any, tmp_path: Path) -> None:
    (tmp_path / "long.txt").write_text("from a file", "utf-8")
    documents = DocumentArray([
        Document("a", tags={"finetuner_label": "x"}),
        Document(text="b", tags={"finetuner_label": 2}),
        Document(uri=str(tmp_path / "long.txt"), tags={"finetuner_label": 3.0}),
    ])  # fmt: skip
    expected = ("labelled", [("a", "x"), ("b", "2"), ("from a file", "3")])
    assert through(documents) == expected
    assert through(list(documents)) == expected


def test_documents_with_chunks(through: Any) -> None:
    def row(*texts: str, **tags: float) -> Document:
        return Document(chunks=[Document(t, modality="text") for t in texts], tags=tags)

    assert through(DocumentArray([row("a", "b")])) == ("pairs", [("a", "b")])
    assert through(DocumentArray([row("a", "b", "c")])) == ("triplets", [("a", "b", "c")])
    assert through([row("a", "b", finetuner_score=0.5)]) == ("scored", [("a", "b", 0.5)])
    assert through([row("a", "b", "c", finetuner_margin=-2.5)]) == (
        "margin", [("a", "b", "c", -2.5)],
    )  # fmt: skip


@pytest.mark.parametrize(
    ("document", "says"),
    [
        (Document("a"), "no tags"),
        (Document("a", tags={"label": "x"}), "no tags"),
        (Document(tags={"finetuner_label": 1}), "no text"),
        (Document(b"\x89PNG", tags={"finetuner_label": 1}), "with a blob"),
        (Document(np.zeros(3), tags={"finetuner_label": 1}), "with a tensor"),
        (Document("a", modality="image", tags={"finetuner_label": 1}), "modality 'image'"),
        (Document(chunks=[Document("a")]), "one chunk"),
        (Document(chunks=[Document("a"), Document()]), "no text"),
        (Document(chunks=[Document("a")] * 3, tags={"finetuner_score": 1.0}), "3 chunks"),
    ],
)
def test_documents_that_are_refused(tmp_path: Path, document: Document, says: str) -> None:
    good = Document("a", tags={"finetuner_label": "x"})
    with pytest.raises(DataError, match=says) as caught:
        to_arrow(DocumentArray([good, document]), tmp_path / "x.arrow")
    assert caught.value.row == 2


def test_a_uri_that_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "image.png").write_bytes(b"\x89PNG\xff")
    for uri in ("image.png", "none.txt"):
        document = Document(uri=str(tmp_path / uri), tags={"finetuner_label": 1})
        with pytest.raises(LuthierError):
            to_arrow([document], tmp_path / "x.arrow")


def test_document_arrays_are_lists(tmp_path: Path) -> None:
    array = DocumentArray([Document("a")])
    array.append(Document("b"))
    array.extend([Document("c")])
    array.insert(0, Document("z"))
    assert array.texts == ["z", "a", "b", "c"]
    assert isinstance(array[1:], DocumentArray)
    assert Document("a", tags={"k": 1}) == Document(text="a", tags={"k": 1}) != Document("a")
    for call in (array.append, lambda x: array.extend([x]), lambda x: DocumentArray([x])):
        with pytest.raises(DataError, match="holds Documents"):
            call("text")
    with pytest.raises(DataError, match="one of text"):
        Document("a", text="b")


def test_saved_and_loaded(tmp_path: Path) -> None:
    array = DocumentArray([
        Document("größe", tags={"finetuner_label": "x", "n": 1}),
        Document(chunks=[Document(""), Document(uri="s3://x")]), Document(b"\x00\xff"),
    ])  # fmt: skip
    array.save(tmp_path / "a.jsonl")
    assert DocumentArray.load(tmp_path / "a.jsonl") == array
    with pytest.raises(DataError, match="tensor"):
        DocumentArray([Document(np.zeros(2))]).save(tmp_path / "b.jsonl")
    for line in ("{", "[]", '{"text": "a", "tex": 1}', '{"blob": "?"}'):
        (tmp_path / "bad.jsonl").write_text('{"text": "a"}\n' + line + "\n")
        with pytest.raises(DataError) as caught:
            DocumentArray.load(tmp_path / "bad.jsonl")
        assert caught.value.row == 2


def test_documents_from_csv(tmp_path: Path, through: Any) -> None:
    for content in ("text,label\na,x\nb,y\n", "a,b\nc,d\n", "a,b,0.5\n", "a,b,c\nd,e,f\n"):
        (tmp_path / "data.csv").write_text(content)
        array = DocumentArray.from_csv(tmp_path / "data.csv")
        found = load_dataset(tmp_path / "data.csv", CSVOptions(), tmp_path / "cache")
        assert through(array)[0] == found.form
    assert array[0].chunks.texts == ["a", "b", "c"]


# docarray 0.40 passes pydantic an extra argument, which pydantic 2 deprecates
@pytest.mark.filterwarnings("ignore:Using extra keyword arguments on `Field`")
def test_docarray(through: Any) -> None:
    docarray = pytest.importorskip("docarray")
    from docarray.documents import TextDoc

    class Pair(docarray.BaseDoc):  # type: ignore[misc]
        query: TextDoc
        document: str

    class Item(docarray.BaseDoc):  # type: ignore[misc]
        text: str
        label: int

    class Odd(docarray.BaseDoc):  # type: ignore[misc]
        text: str
        label: list[int]

    rows = docarray.DocList[Pair]([Pair(query=TextDoc(text="a"), document="b")])
    assert through(rows) == ("pairs", [("a", "b")])
    assert through([Item(text="a", label=1)]) == ("labelled", [("a", "1")])
    with pytest.raises(DataError, match="found list"):
        through(docarray.DocList[Odd]([Odd(text="a", label=[1])]))
