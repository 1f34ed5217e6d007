"""Vectors from a tuned model: ``get_model``, ``build_model``, ``encode``, ``cos_sim``."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from luthier.errors import DataError, ModelError, SpecError

if TYPE_CHECKING:
    from luthier.runs.client import Run
    from luthier.runs.connection import Home

#: As luthier.runs.aliases says, which is not loaded before it is needed.
PREFIX = "alias:"
_ARTIFACT = re.compile(r"[0-9a-f]{4,64}\Z")


class _Encodes(Protocol):
    """TextModel and OnnxTextModel."""

    @property
    def dim(self) -> int: ...

    def encode(
        self, texts: Sequence[str], batch_size: int = 32, normalize: bool = True
    ) -> np.ndarray: ...


@dataclass(frozen=True)
class Encoder:
    """A model that is ready to encode, with the batch size that it was asked for.

    source: the folder it was loaded from, or its name.
    """

    model: _Encodes
    batch_size: int
    source: str

    @property
    def dim(self) -> int:
        """Width of the vectors."""
        return self.model.dim

    def encode(
        self, texts: Sequence[str], batch_size: int | None = None, normalize: bool = False
    ) -> np.ndarray:
        """Vectors of texts: float32 [n, dim]; ``normalize`` scales each to length 1."""
        size = self.batch_size if batch_size is None else batch_size
        with self._quickest(len(texts)):
            return self.model.encode(texts, batch_size=size, normalize=normalize)

    def _quickest(self, texts: int) -> AbstractContextManager[None]:
        device = getattr(self.model, "device", None)
        if device is None:  # of ONNX Runtime, which multiplies by itself
            return nullcontext()
        from luthier.models.matmul import quickest_products

        return quickest_products(device, texts)


def get_model(
    artifact: str | os.PathLike[str] | Run,
    batch_size: int = 32,
    select_model: str | None = None,
    device: str | None = None,
    is_onnx: bool = False,
) -> Encoder:
    """Open a tuned model.

    Args:
        artifact: an artifact's id or the first four or more digits of it, ``alias:NAME``, a
            folder that ``save_artifact`` wrote, or a finished Run.
        batch_size: texts at a time.
        select_model: ``clip-text`` or ``clip-vision``; only CLIP models have two encoders.
        device: a torch device; None takes a GPU where there is one.
        is_onnx: run the ONNX graph that ``to_onnx=True`` exported.

    Raises:
        NotFound: no such artifact. IllegalTransition: the Run has none yet.
        CorruptBundle: its bytes are not those that were written.
        ModelError: the folder holds no model that can be opened so.
    """
    _check_batch_size(batch_size)
    if select_model is not None:
        raise ModelError(
            f"select_model={select_model!r} is for CLIP models, which have two encoders",
            hint="leave it out: a text model has one",
        )
    folder = _folder(artifact)
    if is_onnx:
        from luthier.models.onnx import OnnxTextModel

        return Encoder(OnnxTextModel(folder, device or "auto"), batch_size, str(folder))
    from luthier.models.loading import open_text_model

    return Encoder(open_text_model(folder, device=device or "auto"), batch_size, str(folder))


@dataclass(frozen=True)
class ModelPlace:
    """Where a model is. kind: "artifact", "folder", or "pretrained". name: what opens it: the
    whole id, the whole path, or the name."""

    kind: str
    name: str

    def open(self, batch_size: int = 32, device: str | None = None, onnx: bool = False) -> Encoder:
        """Load it. Raises as ``get_model`` and ``build_model``."""
        if self.kind == "pretrained":
            return build_model(self.name, batch_size=batch_size, device=device, is_onnx=onnx)
        return get_model(self.name, batch_size=batch_size, device=device, is_onnx=onnx)

    def folder(self) -> Path | None:
        """Where its files are; None for a model that is to be fetched."""
        if self.kind == "artifact":
            return _stored(self.name)
        from luthier.models.catalog import resolve

        return resolve(self.name).path

    def identity(self) -> str:
        """What tells its bytes from those of any other: the artifact's id, or a hash of all
        files; of a model of the hub that was fetched, its commit."""
        if self.kind == "artifact":
            return self.name
        from luthier.models.catalog import resolve

        located = resolve(self.name)
        if located.path is not None:
            return folder_id(located.path)
        from huggingface_hub import try_to_load_from_cache

        file = try_to_load_from_cache(str(located.hub_id), "config.json")
        commit = Path(file).parent.name if isinstance(file, str) else "not fetched"
        return f"{located.hub_id}@{commit}"


def find_model(name: str, home: Home | None = None) -> ModelPlace:
    """The model of a name: a folder, a model of ``luthier models``, ``alias:NAME``, a run, an
    artifact, or a hub id, in this order. Loads nothing.

    Raises NotFound, ModelError, and IllegalTransition for a run that has no artifact.
    """
    from luthier.models import catalog
    from luthier.runs.connection import current

    home = home or current()
    path = Path(name).expanduser()
    if path.is_dir():
        return ModelPlace("folder", str(path.resolve()))
    if name in catalog.list_models():
        return ModelPlace("pretrained", name)
    if "/" in name:
        catalog.resolve(name)
        return ModelPlace("pretrained", name)
    return ModelPlace("artifact", home.artifact_of(name))


def folder_id(folder: Path) -> str:
    """sha256 of the names and contents of a folder's files; a bundle's own id."""
    from luthier.store.bundle import MANIFEST, open_bundle, sha256_of

    if (folder / MANIFEST).is_file():
        return open_bundle(folder).id
    files = sorted(p for p in folder.rglob("*") if p.is_file() and not p.name.startswith("."))
    listed = "".join(f"{p.relative_to(folder).as_posix()} {sha256_of(p)}\n" for p in files)
    return hashlib.sha256(listed.encode()).hexdigest()


def build_model(
    name: str,
    batch_size: int = 32,
    select_model: str | None = None,
    device: str | None = None,
    is_onnx: bool = False,
    model_options: dict[str, Any] | None = None,
) -> Encoder:
    """Open an untuned model by catalog name, hub id or folder: what tuning starts from.

    Raises SpecError for unknown options, and ModelError as ``get_model`` does.
    """
    _check_batch_size(batch_size)
    if select_model is not None:
        raise ModelError(
            f"select_model={select_model!r} is for CLIP models, which have two encoders",
            hint="leave it out: a text model has one",
        )
    if is_onnx:
        raise ModelError(
            "an untuned model has no ONNX graph",
            hint="tune it with to_onnx=True, then get_model(…, is_onnx=True)",
        )
    from luthier.models.catalog import problems, resolve
    from luthier.spec import ModelSpec

    spec = ModelSpec(name=name, options=model_options or {})
    located = resolve(name)  # its own error names the file; a spec's problems name the field
    found = problems(spec)
    if found:
        raise SpecError(found)
    from luthier.models.loading import load_text_model

    model = load_text_model(spec, artifact=None, device=device or "auto")
    return Encoder(model, batch_size, str(located))


def encode(
    model: Encoder | _Encodes, data: Any, batch_size: int | None = None, normalize: bool = False
) -> Any:
    """Encode texts, or the documents of a DocumentArray.

    Args:
        model: what ``get_model`` or ``build_model`` gave.
        data: a list of strings; or documents, of which ``text`` (or a string ``content``) is
            encoded.
        batch_size: texts at a time; None takes the model's own (32 unless told otherwise).
        normalize: scale each vector to length 1.

    Returns:
        float32 [n, dim] for a list of strings. For documents, the same container with
        ``embedding`` set on each.

    Raises:
        DataError: an item is neither a string nor a document with a text; names its row.
    """
    if isinstance(model, str):
        hint = "luthier.build_model(name) opens a pretrained one, get_model(artifact) a tuned one"
        raise ModelError("encode takes an open model, not a name", where=model, hint=hint)
    size = batch_size if batch_size is not None else getattr(model, "batch_size", 32)
    _check_batch_size(size)
    if isinstance(data, str):
        raise DataError("a list of texts is needed, not one text", hint="encode(model, [text])")
    if isinstance(data, np.ndarray):
        data = data.tolist()
    items = data if hasattr(data, "__len__") and hasattr(data, "__getitem__") else list(data)
    if not len(items) or isinstance(items[0], str):
        return model.encode(list(items), batch_size=size, normalize=normalize)
    vectors = model.encode(
        [_text(item, row) for row, item in enumerate(items, start=1)],
        batch_size=size,
        normalize=normalize,
    )
    for item, vector in zip(items, vectors, strict=True):
        item.embedding = vector
    return data


def cos_sim(a: Any, b: Any) -> Any:
    """Cosine similarity of two vectors (a float), or of each row of ``a`` with each of ``b``.

    Shapes: [d], [d] → float; [n, d], [m, d] → float32 [n, m]; a vector beside a matrix counts
    as one row. A vector of zeros has similarity 0 to everything.

    >>> cos_sim([1.0, 0.0], [1.0, 1.0])
    0.7071067811865475
    """
    left, right = _matrix(a, "a"), _matrix(b, "b")
    if left.shape[-1] != right.shape[-1]:
        raise DataError(
            f"vectors of width {left.shape[-1]} and {right.shape[-1]} cannot be compared",
            hint="encode both with the same model",
        )
    similarity = _unit(np.atleast_2d(left)) @ _unit(np.atleast_2d(right)).T
    if left.ndim == right.ndim == 1:
        return float(similarity[0, 0])
    return similarity.astype(np.float32)


def _folder(artifact: Any) -> Path:
    if hasattr(artifact, "artifact_id"):  # a Run refuses, with the reason, until it is FINISHED
        return _stored(artifact.artifact_id)
    name = os.fspath(artifact)
    path = Path(name).expanduser()
    if path.is_dir():
        return _verified(path)
    if _ARTIFACT.match(name) or name.startswith(PREFIX):
        return _stored(name)
    raise ModelError(
        "no such folder, and not the id of an artifact",
        where=name,
        hint="run.artifact_id, its first four digits, alias:NAME, or what save_artifact wrote",
    )


def _stored(artifact_id: str) -> Path:
    from luthier.runs.connection import current

    home = current()
    return home.store.artifact(home.find_artifact(artifact_id))


def _verified(path: Path) -> Path:
    """A folder of ours must hold what was written into it; other folders promise nothing."""
    if (path / "luthier" / "manifest.json").is_file():
        from luthier.store.bundle import open_bundle

        open_bundle(path)
    return path.resolve()


def _text(item: Any, row: int) -> str:
    for name in ("text", "content"):
        text = getattr(item, name, None)
        if isinstance(text, str):
            return text
    kind = type(item).__name__
    raise DataError(f"is neither a text nor a document with a text, but {kind}", row=row)


def _check_batch_size(size: Any) -> None:
    if isinstance(size, bool) or not isinstance(size, int) or size < 1:
        raise DataError(f"batch_size must be a whole number of at least 1, not {size!r}")


def _matrix(values: Any, name: str) -> np.ndarray:
    try:
        found = np.asarray(values, dtype=np.float64)
    except (ValueError, TypeError) as error:
        raise DataError(f"{name} is not an array of numbers ({error})") from None
    if found.ndim not in (1, 2) or not found.size:
        raise DataError(f"{name} must be a vector or a matrix, not of shape {found.shape}")
    return found


def _unit(vectors: np.ndarray) -> np.ndarray:
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.where(lengths > 0, lengths, 1.0)
