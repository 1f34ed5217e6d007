"""A task: what rows mean to it, what a model gets of them, and how good its answers are.

    rows  --read-->  Examples  --features-->  what a collator takes  -->  the model
                                --predict-->  Predictions  --score-->  Scores

One file a task; its card (``cards.py``) says which columns and options it has. A new task is a
subclass of ``Task``: its name, ``parsers`` and ``see_row`` for what rows hold, ``features``,
``predict`` and ``measure``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from luthier.data.problems import Problems
from luthier.data.rows import Places, Rows
from luthier.errors import DataError, Problem, SpecError
from luthier.registry import find
from luthier.spec.processing import ProcessingSpec
from luthier.tasks.batching import Feature, Obey, go_on
from luthier.tasks.cards import processing_problems
from luthier.tasks.examples import Examples, Parser, check_values, find_columns
from luthier.tasks.loading import load_pretrained, token_limit
from luthier.tasks.roles import Metric, Role
from luthier.tasks.scores import Array, Predictions, Scores
from luthier.tasks.values import PARSERS


class Task(ABC):
    """A task with its options. Raises SpecError for options that mean nothing to it."""

    #: The name of its card.
    name: ClassVar[str]
    #: The class of transformers that has its head.
    auto_class: ClassVar[str]
    #: Whether the head may be made up: those of classes and spans; never one that writes text.
    new_head: ClassVar[bool] = True
    #: Whether the model's input is prepared by an image processor, not a tokenizer.
    of_images: ClassVar[bool] = False
    #: Whether it must know which characters a token is of, as only fast tokenizers do.
    needs_offsets: ClassVar[bool] = False

    def __init__(self, processing: ProcessingSpec | None = None) -> None:
        self.processing = processing or ProcessingSpec()
        self.card = find("task", self.name)
        problems = processing_problems(self.name, self.processing)
        if problems:
            raise SpecError(problems)

    @property
    def roles(self) -> tuple[Role, ...]:
        """The columns that it reads."""
        roles: tuple[Role, ...] = self.card.facts["roles"]
        return roles

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """What ``score`` gives, the main metric first."""
        metrics: tuple[Metric, ...] = self.card.facts["metrics"]
        return metrics

    @property
    def best(self) -> Metric:
        """What a better model has less (or more) of, unless the job says otherwise."""
        best: Metric = self.card.facts["best"]
        return best

    # rows

    def read(
        self, rows: Rows, labels: Sequence[str] | None = None, *, supervised: bool = True
    ) -> Examples:
        """Find the columns and check every row.

        labels: those learnt from the training rows; None learns them from these rows.
        supervised: False for rows to predict on, which need no targets.
        Raises DataError that lists what is wrong with file, row and column.
        """
        columns = self.columns(rows, supervised)
        parsers = {role: self.parser(role, rows, supervised) for role in columns}
        found = Problems(rows.file)
        seen = self.seeing(labels, supervised)
        check_values(rows, columns, parsers, found, seen.see)
        found.check()
        if not len(rows):
            raise DataError("no rows", file=rows.file)
        return seen.examples(rows, columns, parsers, supervised)

    def columns(self, rows: Rows, supervised: bool) -> dict[str, str]:
        """Role → column. Targets are left out where they are not asked for."""
        found = find_columns(self.roles, rows, self.processing.columns, supervised=supervised)
        targets = {role.name for role in self.roles if role.target}
        return found if supervised else {r: c for r, c in found.items() if r not in targets}

    def parser(self, role: str, rows: Rows, supervised: bool) -> Parser:
        """How the values of a role are read."""
        return PARSERS[next(r.kind for r in self.roles if r.name == role)]

    def seeing(self, labels: Sequence[str] | None, supervised: bool) -> Seeing:
        """What looks at rows as a whole, once each, in order."""
        return Seeing()

    # models

    def load(
        self, name: str, labels: Sequence[str] = (), *,
        options: Mapping[str, Any] | None = None, random_head_ok: bool = True,
    ) -> tuple[Any, Any]:  # fmt: skip
        """(model, processor): the model with this task's head, in float32 on the CPU, and its
        tokenizer or image processor.

        random_head_ok: False refuses a model whose head was never trained.
        Raises ModelError, and SpecError for options that do not fit the model.
        """
        model, processor = load_pretrained(
            self.auto_class, str(name), options=options or {},
            config=self.config(labels), labels=tuple(labels),
            new_parts=self.new_head and random_head_ok, image=self.of_images,
            offsets=self.needs_offsets,
        )  # fmt: skip
        self.prepare(model, processor)
        return model, processor

    def config(self, labels: Sequence[str]) -> dict[str, Any]:
        """Fields of the model's configuration that this task sets."""
        return {}

    def prepare(self, model: Any, processor: Any) -> None:
        """Check a loaded model against the options, and set what both share."""
        limit = token_limit(model.config, processor)
        wanted = self.processing.max_seq_length
        problems = []
        if wanted is not None and limit is not None and wanted > limit:
            problems.append(Problem(
                "processing.max_seq_length", f"{wanted} tokens, where the model takes {limit}",
                f"leave it out for {limit}",
            ))  # fmt: skip
        if self.processing.pad_to_max_length and self.limit(processor) is None:
            problems.append(Problem(
                "processing.pad_to_max_length", "the model has no limit of its own to pad to",
                "give max_seq_length",
            ))  # fmt: skip
        if problems:
            raise SpecError(problems)

    def limit(self, processor: Any) -> int | None:
        """The most tokens a feature has; None when nothing limits it."""
        wanted = self.processing.max_seq_length
        own = int(processor.model_max_length)
        if wanted is not None:
            return min(wanted, own)
        return own if own < 10**9 else None

    @abstractmethod
    def features(self, examples: Examples, rows: Places, processor: Any) -> list[Feature]:
        """What the collator takes, for these rows, in order; a row may give several (windows).

        Labels are there when the examples are supervised.
        """

    @abstractmethod
    def collator(self, processor: Any, model: Any = None) -> Any:
        """transformers' own collator for the features."""

    def padding(self, processor: Any) -> dict[str, Any]:
        """How a collator pads: to the longest of a batch, or to the limit."""
        if self.processing.pad_to_max_length:
            return {"padding": "max_length", "max_length": self.limit(processor)}
        return {"padding": True}

    # answers

    @abstractmethod
    def predict(
        self, model: Any, examples: Examples, processor: Any, *, batch_size: int = 32,
        generation: Mapping[str, Any] | None = None, obey: Obey = go_on,
    ) -> Predictions:  # fmt: skip
        """What the model answers for every row, on the device where it is.

        Batches are of rows of like length. generation: options over those of
        ``processing.generation``. obey: called between batches; what it raises ends the work.
        """

    @abstractmethod
    def score(self, predictions: Predictions, examples: Examples) -> Scores:
        """Compare with what the rows say. MissingExtra where the metric's package is absent."""

    @abstractmethod
    def resampled(self, scores: Scores, counts: Array) -> dict[str, Array]:
        """Every metric of resamples: ``counts`` float64 [b, n] says how often each row was
        drawn; each metric is [b]. With all ones it is ``scores.metrics``."""


class Seeing:
    """Looks at rows as a whole while they are read, and makes the examples of them."""

    def see(self, place: int, values: dict[str, Any]) -> None:
        """Look at a row; raises UnfitRow."""

    def examples(
        self, rows: Rows, columns: Mapping[str, str], parsers: Mapping[str, Parser],
        supervised: bool,
    ) -> Examples:  # fmt: skip
        """What was read."""
        return Examples(rows, columns, parsers, supervised=supervised)


def all_rows(examples: Examples) -> Places:
    """The places of all rows, int64 [n]."""
    return np.arange(len(examples), dtype=np.int64)
