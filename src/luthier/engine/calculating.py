"""Calculators at work: at each evaluation of a training on rankings, on searches that the starting
model has scored once and the present one scores now."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np

from luthier.data import Dataset
from luthier.data.rankings import Rankings
from luthier.engine.control import Listener
from luthier.engine.read import Place, located
from luthier.evaluation.calculators import Floats, Layout, MetricCalculator, laid_out, made
from luthier.evaluation.reranking import similarities
from luthier.spec import CalculatorCallback, CalculatorSpec, JobSpec
from luthier.store import atomic

Encode = Callable[[Sequence[str]], np.ndarray]
#: From a model to what embeds queries and what embeds items.
Encoders = Callable[[Any], tuple[Encode, Encode]]

#: Scores of the starting model, in the folder of a run.
BEFORE = "calculated.npy"


def calculating(
    spec: JobSpec, data: Mapping[str, Dataset], place: Place, encoders: Encoders, tell: Listener
) -> Calculating | None:
    """The calculators of a job, ready to work; None where it has none."""
    callback = next((c for c in spec.callbacks if isinstance(c, CalculatorCallback)), None)
    if callback is None or not data:
        return None
    ready = [(each.name, _made(each, place)) for each in callback.calculators]
    parts = {stage: cast(Rankings, found) for stage, found in data.items()}
    return Calculating(ready, parts, callback.distance, encoders, place.folder / BEFORE, tell)


def _made(spec: CalculatorSpec, place: Place) -> MetricCalculator:
    code = None if spec.code is None else located(spec.code, place).read_text(encoding="utf-8")
    return made(spec.name, spec.attributes, code)


class Calculating:
    """What calculators say of a model. One that fails, or says what is no finite number, is told
    of and left out: then an early stopping that waits for it says so."""

    def __init__(
        self,
        calculators: Sequence[tuple[str, MetricCalculator]],
        data: Mapping[str, Rankings],
        distance: str,
        encoders: Encoders,
        record: Path,
        tell: Listener,
    ) -> None:
        self.calculators, self.distance, self.encoders = calculators, distance, encoders
        self.parts = {stage: (found, laid_out(found)) for stage, found in data.items()}
        self._record, self._tell = record, tell
        self._before: dict[str, Floats] = {}
        self._told: set[str] = set()

    def begin(self, starting: Callable[[], Any], *, writes: bool) -> None:
        """Score by the starting model: once a run, and kept beside it."""
        if self._record.exists():
            whole = np.load(self._record)
        else:
            model = starting()
            whole = np.concatenate([self._scores(model, *part) for part in self.parts.values()])
            if writes:
                buffer = io.BytesIO()
                np.save(buffer, whole)
                atomic.write_bytes(self._record, buffer.getvalue())
        ends = np.cumsum([len(layout.items) for _, layout in self.parts.values()])
        self._before = dict(zip(self.parts, np.split(whole, ends[:-1]), strict=True))

    def __call__(self, model: Any) -> dict[str, float]:
        """The values by name, ``train_…`` and ``test_…``."""
        found: dict[str, float] = {}
        for stage, (dataset, layout) in self.parts.items():
            after = self._scores(model, dataset, layout)
            scored = layout.scored(
                self._before[stage], after, is_similarity=self.distance != "euclidean"
            )
            for name, calculator in self.calculators:
                try:
                    values = {v.name: float(v.value) for v in calculator(scored, stage)}
                except Exception as error:  # somebody's own code
                    self._warn(f"{name} failed: {type(error).__name__}: {error}")
                    continue
                for metric, value in values.items():
                    if math.isfinite(value):
                        found[metric] = value
                    else:
                        self._warn(f"{name} gives {metric} = {value}")
        return found

    def _scores(self, model: Any, dataset: Rankings, layout: Layout) -> Floats:
        """Of each impression, [m]; of Euclidean distances more is farther."""
        sides = []
        for encode, numbers in zip(
            self.encoders(model), (layout.queries, layout.items), strict=True
        ):
            used, place = np.unique(numbers, return_inverse=True)
            vectors = np.asarray(encode(dataset.catalogue.texts("text", used)), np.float64)
            sides.append(vectors[place])
        found = similarities(sides[0], sides[1], self.distance)
        return -found if self.distance == "euclidean" else found

    def _warn(self, message: str) -> None:
        if message not in self._told:
            self._told.add(message)
            self._tell("log", {"level": "warning", "message": message})
