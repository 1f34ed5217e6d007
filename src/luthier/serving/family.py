"""What the models of all tasks share: batches of rows of like length, and the limits."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from luthier.errors import DataError
from luthier.tasks.loading import token_limit

Row = Mapping[str, Any]


class Answers(Protocol):
    """A model that is ready to answer."""

    def answer(self, rows: Sequence[Row], params: Mapping[str, Any]) -> list[dict[str, Any]]:
        """The output columns of each row, in order. params: ``batch_size``, and what
        generates takes the names of transformers' GenerationConfig."""


class TaskModel:
    """What all but embeddings share: batches of rows of like length, and the model's limit."""

    def __init__(
        self, model: Any, processor: Any, options: Mapping[str, Any], *, where: str
    ) -> None:
        self.model, self.processor, self.options, self.where = model, processor, options, where
        self.setup()

    def setup(self) -> None:
        """Checks and settings of one family."""

    def answer(self, rows: Sequence[Row], params: Mapping[str, Any]) -> list[dict[str, Any]]:
        found: dict[int, dict[str, Any]] = {}
        with torch.inference_mode():
            for numbers in batches(rows, int(params["batch_size"])):
                batch = [rows[number] for number in numbers]
                try:
                    answers = self.batch(batch, params)
                except DataError as error:
                    if error.row is None:
                        raise
                    row = numbers[error.row] + 1
                    raise DataError(
                        error.message, row=row, column=error.column, hint=error.hint
                    ) from error
                found |= dict(zip(numbers, answers, strict=True))
        return [found[number] for number in range(len(rows))]

    def batch(self, rows: Sequence[Row], params: Mapping[str, Any]) -> list[dict[str, Any]]:
        """The answers to one batch. A DataError's row is the place in the batch, from 0."""
        raise NotImplementedError

    @property
    def limit(self) -> int | None:
        """The most tokens of a row."""
        limit = token_limit(self.model.config, self.processor)
        asked = self.options["max_seq_length"]
        return min((n for n in (limit, asked) if n), default=None)

    def tokens(self, *texts: Any, **more: Any) -> Any:
        """Padded tensors on the model's device."""
        limit = self.limit
        words = {
            "padding": True,
            "truncation": limit is not None,
            "max_length": limit,
            "return_tensors": "pt",
        }
        return self.processor(*texts, **(words | more))

    def logits(self, features: Mapping[str, Tensor]) -> Any:
        """What the model makes of a batch."""
        return self.model(**{k: v.to(self.model.device) for k, v in features.items()})

    def label(self, code: int) -> str:
        """The name of a class."""
        return str(self.model.config.id2label[code])


def batches(rows: Sequence[Row], size: int) -> Iterator[list[int]]:
    """The numbers of the rows, long ones first, so that little is padded."""
    lengths = [sum(len(value) for value in row.values()) for row in rows]
    order = sorted(range(len(rows)), key=lambda number: -lengths[number])
    for start in range(0, len(order), max(size, 1)):
        yield order[start : start + max(size, 1)]
