"""Documents as Finetuner's users know them: a light Document and DocumentArray.

A document with a label in ``tags['finetuner_label']`` is an item of a class. One with chunks is
a row: two chunks are a pair, three or more an anchor, its positive and negatives; a
``finetuner_score`` in the tags scores two chunks, a ``finetuner_margin`` three.
"""

from __future__ import annotations

import base64
import json
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, SupportsIndex, overload

from luthier.errors import DataError, nearest
from luthier.store.urls import local_file

if TYPE_CHECKING:
    from luthier.spec import CSVOptions

LABEL, SCORE, MARGIN = "finetuner_label", "finetuner_score", "finetuner_margin"
_LARGEST_TEXT = 1 << 20
_FIELDS = ("text", "uri", "blob", "tensor", "tags", "chunks", "modality")


class Document:
    """One text (or the place of one), with tags and chunks.

    content: a text, bytes (a blob) or an array (a tensor). Text jobs read ``text``, or the
    text file that ``uri`` names; they refuse blobs and tensors.
    """

    def __init__(
        self, content: Any = None, *, text: str | None = None, uri: str | None = None,
        blob: bytes | None = None, tensor: Any = None, tags: Mapping[str, Any] | None = None,
        chunks: Iterable[Document] | None = None, modality: str | None = None,
    ) -> None:  # fmt: skip
        if content is not None:
            if any(value is not None for value in (text, blob, tensor)):
                raise DataError("give content, or one of text, blob and tensor")
            if isinstance(content, str):
                text = content
            elif isinstance(content, bytes):
                blob = content
            else:
                tensor = content
        self.text, self.uri, self.blob, self.tensor = text, uri, blob, tensor
        self.tags: dict[str, Any] = dict(tags or {})
        self.chunks = DocumentArray(chunks or ())
        self.modality = modality

    @property
    def content(self) -> Any:
        """The text, the blob or the tensor, whichever there is."""
        return next((v for v in (self.text, self.blob, self.tensor) if v is not None), None)

    def __repr__(self) -> str:
        given = {name: getattr(self, name) for name in _FIELDS}
        shown = ", ".join(f"{k}={v!r:.60}" for k, v in given.items() if v is not None and v != {})
        return f"Document({shown})"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Document):
            return NotImplemented
        same = all(getattr(self, n) == getattr(other, n) for n in _FIELDS if n != "tensor")
        return same and self.tensor is other.tensor  # arrays do not compare to one bool

    __hash__ = None  # type: ignore[assignment]  # it can be changed

    def to_dict(self) -> dict[str, Any]:
        """As JSON data. Raises DataError for a tensor."""
        if self.tensor is not None:
            raise DataError("a document with a tensor cannot be saved as JSON")
        made: dict[str, Any] = {
            name: getattr(self, name) for name in ("text", "uri", "modality", "tags")
            if getattr(self, name)
        }  # fmt: skip
        if self.text is not None:
            made["text"] = self.text
        if self.blob is not None:
            made["blob"] = base64.b64encode(self.blob).decode()
        if self.chunks:
            made["chunks"] = [chunk.to_dict() for chunk in self.chunks]
        return made

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Document:
        """The document that ``to_dict`` described. Raises DataError for unknown fields."""
        if not isinstance(data, Mapping):
            raise DataError(f"expected an object, found {type(data).__name__}")
        for name in data:
            if name not in _FIELDS:
                raise DataError(f"a document has no field '{name}'", hint=nearest(name, _FIELDS))
        made = dict(data)
        if made.get("blob") is not None:
            try:
                made["blob"] = base64.b64decode(made["blob"], validate=True)
            except (ValueError, TypeError):
                raise DataError("the blob is not base64") from None
        made["chunks"] = [cls.from_dict(chunk) for chunk in made.get("chunks") or ()]
        return cls(**made)


class DocumentArray(list[Document]):
    """A list of documents."""

    def __init__(self, documents: Iterable[Document] = ()) -> None:
        super().__init__(_document(item) for item in documents)

    def append(self, document: Document) -> None:
        """Add one document."""
        super().append(_document(document))

    def extend(self, documents: Iterable[Document]) -> None:
        """Add documents."""
        super().extend(_document(item) for item in documents)

    def insert(self, index: SupportsIndex, document: Document) -> None:
        """Put a document before another."""
        super().insert(index, _document(document))

    @overload
    def __getitem__(self, index: SupportsIndex) -> Document: ...
    @overload
    def __getitem__(self, index: slice) -> DocumentArray: ...
    def __getitem__(self, index: SupportsIndex | slice) -> Document | DocumentArray:
        if isinstance(index, slice):
            return DocumentArray(super().__getitem__(index))
        return super().__getitem__(index)

    @property
    def texts(self) -> list[str | None]:
        """The documents' texts."""
        return [document.text for document in self]

    def save(self, path: str | Path) -> None:
        """Write JSON Lines, a document a line."""
        lines = [json.dumps(document.to_dict(), ensure_ascii=False) for document in self]
        Path(path).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> DocumentArray:
        """Read what ``save`` wrote. Raises DataError with the row."""
        found = cls()
        try:
            lines = Path(path).read_text(encoding="utf-8").split("\n")
        except (OSError, UnicodeError) as error:
            raise DataError(f"cannot be read: {error}", file=str(path)) from None
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                found.append(Document.from_dict(json.loads(line)))
            except (ValueError, TypeError, AttributeError) as error:
                raise DataError(f"no document: {error}", file=str(path), row=number) from None
            except DataError as error:
                raise DataError(
                    error.message, file=str(path), row=number, hint=error.hint
                ) from None
        return found

    @classmethod
    def from_csv(cls, path: str | Path, options: CSVOptions | None = None) -> DocumentArray:
        """Read a CSV file of any form into documents. Raises DataError as training does."""
        from luthier.data.load import load_dataset
        from luthier.spec import CSVOptions as Options

        with tempfile.TemporaryDirectory() as folder:
            data = load_dataset(Path(path), options or Options(), Path(folder))
            return cls(_from_row(row) for row in _dicts(data))


def _dicts(data: Any) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = data.table.to_pylist()
    if data.form == "labelled":
        for row in rows:
            row["label"] = data.class_name(row["label"])
    return rows


def _from_row(row: dict[str, Any]) -> Document:
    tags = {tag: row.pop(role) for role, tag in _TAGS.items() if role in row}
    texts = [Document(text=text) for text in row.values()]
    if LABEL in tags:
        return Document(text=texts[0].text, tags=tags)
    return Document(chunks=texts, tags=tags)


_TAGS = {"label": LABEL, "score": SCORE, "margin": MARGIN}


def _document(item: object) -> Document:
    if not isinstance(item, Document):
        raise DataError(
            f"a DocumentArray holds Documents, not {type(item).__name__} {item!r:.60}",
            hint="Document(content='…', tags={'finetuner_label': '…'})",
        )
    return item


def is_documents(data: object) -> bool:
    """Whether this is an array of documents, of ours or of any version of docarray."""
    if isinstance(data, DocumentArray) or _of_docarray(data):
        return True
    if not isinstance(data, list) or not data:
        return False
    return isinstance(data[0], Document) or _of_docarray(data[0])


def _of_docarray(item: object) -> bool:
    """Told by its classes' modules, so that docarray need not be imported."""
    return any(base.__module__.partition(".")[0] == "docarray" for base in type(item).__mro__)


def rows(data: Iterable[Any]) -> list[dict[str, Any]]:
    """Documents as rows of named columns. Raises DataError with the document's number."""
    found = []
    for number, document in enumerate(data, 1):
        if not hasattr(document, "tags") or not hasattr(document, "chunks"):
            found.append(_row_of_fields(document, number))
        elif document.chunks:
            found.append(_row_of_chunks(document, number))
        else:
            found.append(_row_of_item(document, number))
    return found


def _row_of_item(document: Any, number: int) -> dict[str, Any]:
    if LABEL not in document.tags:
        near = "label" if "label" in document.tags else nearest(LABEL, document.tags)
        raise DataError(
            f"the document has no tags['{LABEL}'], and no chunks that would make it a pair",
            row=number, column="tags",
            hint=f"rename the tag 'label' to '{LABEL}'" if near == "label" else near,
        )  # fmt: skip
    label = document.tags[LABEL]
    if isinstance(label, float) and label.is_integer():
        label = int(label)  # docarray's protobuf keeps every number as a float
    return {"text": _text(document, number, "text"), "label": label}


def _row_of_chunks(document: Any, number: int) -> dict[str, Any]:
    chunks = list(document.chunks)
    if len(chunks) < 2:
        raise DataError("one chunk: a pair has two", row=number, column="chunks")
    score = document.tags.get(SCORE)
    margin = document.tags.get(MARGIN)
    if score is not None:
        names, value = ["sentence1", "sentence2"], {"score": score}
    elif margin is not None:
        names, value = ["anchor", "positive", "negative_1"], {"margin": margin}
    else:
        negatives = [f"negative_{i}" for i in range(1, len(chunks) - 1)]
        names, value = ["anchor", "positive", *negatives], {}
    if len(names) != len(chunks):
        message = f"{len(chunks)} chunks, where its tags ask for {len(names)}"
        raise DataError(message, row=number, column="chunks")
    texts = {
        name: _text(chunk, number, f"chunks ({name})")
        for name, chunk in zip(names, chunks, strict=True)
    }
    return texts | value


def _text(document: Any, number: int, column: str) -> str:
    """The document's text. docarray gives '' or b'' for what is not there."""
    if getattr(document, "modality", None) not in (None, "", "text"):
        raise _not_text(f"a document of modality '{document.modality}'", number, column)
    for name in ("blob", "tensor"):
        value = getattr(document, name, None)
        if value is not None and not (isinstance(value, bytes) and not value):
            raise _not_text(f"a document with a {name}", number, column)
    if document.text:
        return str(document.text)
    if document.uri:
        return _text_at(str(document.uri), number, column)
    raise DataError("the document has no text", row=number, column=column)


def _not_text(what: str, number: int, column: str) -> DataError:
    return DataError(
        f"{what} cannot train a text model", row=number, column=column,
        hint="give Document(text='…'); images and meshes are not supported yet",
    )  # fmt: skip


def _text_at(uri: str, number: int, column: str) -> str:
    with tempfile.TemporaryDirectory() as folder:
        path = local_file(uri if "://" in uri else str(Path(uri).absolute()), Path(folder))
        try:
            with open(path, "rb") as file:
                content = file.read(_LARGEST_TEXT + 1)
            text = content.decode("utf-8-sig")
        except UnicodeDecodeError:
            message = f"{uri} holds no UTF-8 text: this is a job for text"
            raise DataError(message, row=number, column=column) from None
        except OSError as error:
            message = f"{uri} cannot be read: {error.strerror}"
            raise DataError(message, row=number, column=column) from None
    if len(content) > _LARGEST_TEXT:
        message = f"{uri} is longer than {_LARGEST_TEXT} bytes"
        raise DataError(message, row=number, column=column)
    return text


def _row_of_fields(document: Any, number: int) -> dict[str, Any]:
    """A document class of docarray 0.30 and later has fields of its own in place of tags."""
    fields = getattr(type(document), "model_fields", None) or getattr(
        type(document), "__fields__", None
    )
    if fields is None:
        raise DataError(f"not a document: {type(document).__name__}", row=number)
    row = {}
    for name in fields:
        value = getattr(document, name)
        if name == "id" or value is None:
            continue
        if hasattr(value, "text"):
            value = value.text
        if isinstance(value, str | int | float) and not isinstance(value, bool):
            row[name] = str(value) if isinstance(value, str) else value
        else:
            raise DataError(
                f"expected a text or a number, found {type(value).__name__}",
                row=number, column=name,
                hint="images, tensors and lists cannot train a text model",
            )  # fmt: skip
    return row
