"""The model of a folder, ready to answer for a task.

What it answers is what ``luthier.tasks`` predicts: the very code that measured the model.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import torch

from luthier.data.rows import Rows
from luthier.errors import DataError
from luthier.models.mlflow_signature import generation_words, processing_words
from luthier.registry import find
from luthier.spec.processing import ProcessingSpec
from luthier.tasks.scores import Predictions
from luthier.tasks.task import Task

Row = Mapping[str, Any]

#: What messages call the rows that were asked about.
REQUEST = "request"


class Answers(Protocol):
    """A model that is ready to answer."""

    def answer(self, rows: Sequence[Row], params: Mapping[str, Any]) -> list[dict[str, Any]]:
        """The output columns of each row, in order. params: ``batch_size``, and where texts are
        written the names of transformers' GenerationConfig. Raises DataError by row."""


def open_model(folder: Path, task: str, options: Mapping[str, Any]) -> Answers:
    """Load a folder for a task. Raises ModelError: it holds no model for that; SpecError: the
    options do not fit the model."""
    device = str(options["device"])
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if task == "embedding":
        return Embeddings(folder, device, normalize=bool(options["normalize"]))
    return TaskModel(folder, task, options, device)


class TaskModel:
    """A model with the head of a task."""

    def __init__(self, folder: Path, task: str, options: Mapping[str, Any], device: str) -> None:
        # what is generated is said by each call, so that one option can switch another off
        words = {k: v for k, v in processing_words(options).items() if k != "generation"}
        self._task: Task = find("task", task).load()(ProcessingSpec(**words))
        self._model, self._processor = self._task.load(str(folder), random_head_ok=False)
        self._model.to(device)
        names = self._model.config.id2label or {}
        self._labels = tuple(str(names[code]) for code in sorted(names))
        self._facts = {"unanswerable": bool(options.get("unanswerable"))}

    def answer(self, rows: Sequence[Row], params: Mapping[str, Any]) -> list[dict[str, Any]]:
        table = {name: [_READ.get(name, _as_is)(row.get(name), number)
                        for number, row in enumerate(rows, 1)]
                 for name in _columns(rows)}  # fmt: skip
        examples = self._task.read(
            Rows(REQUEST, pa.table(table)), self._labels or None, supervised=False
        )
        examples = replace(examples, facts={**examples.facts, **self._facts})
        predictions = self._task.predict(
            self._model, examples, self._processor,
            batch_size=int(params["batch_size"]), generation=generation_words(params),
        )  # fmt: skip
        return [
            {"prediction": value if isinstance(value, str) else json.dumps(value), "scores": said}
            for value, said in zip(predictions.values, self._scores(predictions), strict=True)
        ]

    def _scores(self, predictions: Predictions) -> list[str]:
        """What the model said of each row, as JSON."""
        if "probabilities" in predictions.arrays:
            shares = predictions.arrays["probabilities"].tolist()
            return [json.dumps(dict(zip(self._labels, row, strict=True))) for row in shares]
        listed = {name: array.tolist() for name, array in predictions.arrays.items()}
        return [
            json.dumps({name: _finite(values[i]) for name, values in listed.items()})
            for i in range(len(predictions))
        ]


class Embeddings:
    """A vector a text."""

    def __init__(self, folder: Path, device: str, *, normalize: bool) -> None:
        from luthier.models.loading import open_text_model

        self._model = open_text_model(folder, device=device)
        self._normalize = normalize

    def answer(self, rows: Sequence[Row], params: Mapping[str, Any]) -> list[dict[str, Any]]:
        """One column, ``embedding``: a list of floats."""
        texts = [row["text"] for row in rows]
        size = int(params["batch_size"])
        vectors = self._model.encode(texts, batch_size=size, normalize=self._normalize)
        return [{"embedding": vector.tolist()} for vector in vectors]


def _finite(value: float) -> float | None:
    """JSON has no infinity."""
    return value if np.isfinite(value) else None


def _columns(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(name for row in rows for name in row))


def _as_is(value: Any, number: int) -> Any:
    return value


def _image(value: Any, number: int) -> bytes:
    """Bytes, base64 or a data: URL as bytes. Never a path: whoever asks is not to name files."""
    if not isinstance(value, str):
        return bytes(value)
    text = value.partition(",")[2] if value.startswith("data:") else value
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except binascii.Error as error:
        message = f"is no base64 ({error})"
        raise DataError(message, file=REQUEST, row=number, column="image") from error


def _messages(value: Any, number: int) -> str:
    """A JSON list of messages, or what the user says."""
    try:
        if isinstance(json.loads(value), list):
            return str(value)
    except ValueError:
        pass
    return json.dumps([{"role": "user", "content": value}])


_READ: dict[str, Callable[[Any, int], Any]] = {"image": _image, "messages": _messages}
