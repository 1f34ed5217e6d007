"""Evaluation above a fixed encoder: what it makes of the texts is computed once, not at each
evaluation and in each trial.

Only where training itself starts from stored vectors (``prefix.py``), which has shown there that
they are those of the whole model, and only for a head: its texts have one vector each, so the
files are small. Evaluations have files of their own beside those of training, by the same key.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from luthier.engine.control import Listener
from luthier.engine.distinct_texts import DistinctTexts
from luthier.engine.prefix import Store, StoredPrefix
from luthier.engine.ranking_learner import sides
from luthier.errors import DiskFull
from luthier.models.freezing import NotResumable, embed_above, fixed_part
from luthier.models.text import TextModel, evaluating
from luthier.models.tokens import Tokens

if TYPE_CHECKING:
    from luthier.engine.learner import EmbeddingLearner, Texts
    from luthier.engine.setup import Setup

#: Texts whose tokens and vectors are in memory at once.
_TOGETHER = 16_384


class Above:
    """The fixed vectors of the texts that a run is evaluated on."""

    def __init__(self, setup: Setup, tell: Listener, obey: Callable[[], None]) -> None:
        self._setup, self._tell, self._obey = setup, tell, obey
        prefix = setup.model.prefix
        self._used = (
            prefix is not None and prefix.part == "backbone" and setup.device.precision == "fp32"
        )
        self._weights = prefix.weights if isinstance(prefix, StoredPrefix) else None
        self._known: dict[str, StoredPrefix] = {}  # of the model that trains: digest → vectors
        self._held_out: StoredPrefix | None = None

    def encode(self, model: TextModel, texts: Sequence[str]) -> np.ndarray | None:
        """Vectors [n, dim] of texts, not normalized; None where the encoder has to run."""
        found = []
        for start in range(0, len(texts), _TOGETHER):
            self._obey()
            tokens = model.tokens(texts[start : start + _TOGETHER])
            rows = np.arange(len(tokens))
            distinct = DistinctTexts.of(_reading(tokens), ("text",), rows)
            prefix = self._stored(model, distinct)
            if prefix is None:
                return None
            with evaluating(model), torch.no_grad():
                numbered = replace(tokens, stored=distinct.numbers["text"])
                found.append(embed_above(model, numbered, prefix).cpu().numpy())
            model.calls["prefix"] += 1
        return np.concatenate(found) if found else None

    @contextmanager
    def held_out(self, learner: EmbeddingLearner) -> Iterator[None]:
        """While it lasts, a learner on held-out rows reads their vectors."""
        model: TextModel = learner.model
        if self._held_out is None and self._used:
            rows = np.arange(len(learner.reads))
            distinct = DistinctTexts.of(learner.texts, learner.reads.roles, rows)
            self._held_out = self._stored(sides(model)[1], distinct)  # of both: they began alike
            if self._held_out is not None:
                learner.texts = distinct.numbered(learner.texts)
        trained = model.prefix
        model.prefix = self._held_out or trained
        try:
            yield
        finally:
            model.prefix = trained

    def _stored(self, model: TextModel, texts: DistinctTexts) -> StoredPrefix | None:
        """The file of these texts, made where there is none."""
        if not self._used or fixed_part(model) != "backbone":
            return None
        mine = (
            model is sides(self._setup.model)[1]
        )  # whose fixed weights stay; others are compared by hash
        if mine and texts.digest in self._known:
            return self._known[texts.digest]
        folder = self._setup.place.cache / "prefix"
        try:
            weights = self._weights if mine else None
            store = Store(model, texts, "backbone", self._setup.device, folder, weights)
            reason = store.fill(self._tell)
        except (NotResumable, DiskFull) as error:
            reason = str(error)
        if reason:
            message = f"evaluation runs the whole encoder: {reason}"
            self._tell("log", {"level": "info", "message": message})
            self._used = False
            return None
        found = store.open()
        if mine:
            self._known[texts.digest] = found
        return found


def _reading(tokens: Tokens) -> Texts:
    """Texts of one role, whose tokens are there."""

    def take(_: str, rows: np.ndarray) -> Tokens:
        return tokens.take(rows)

    return take
