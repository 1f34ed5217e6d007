"""Text classification: one label a text or pair of texts, or any number of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from luthier.data.rows import Places, Rows
from luthier.tasks import classes
from luthier.tasks.batching import (
    TOKENIZING,
    Feature,
    Obey,
    by_length,
    go_on,
    inference,
    on_device,
    without,
)
from luthier.tasks.examples import Examples, Parser
from luthier.tasks.roles import Metric
from luthier.tasks.scores import Array, Predictions, Scores
from luthier.tasks.task import Task, all_rows
from luthier.tasks.values import labels as several_labels


class TextClassification(Task):
    """``AutoModelForSequenceClassification``. With ``multi_label`` the loss is binary cross
    entropy, a class is predicted above one half, and rows may have no label at all."""

    name = "text-classification"
    auto_class = "AutoModelForSequenceClassification"

    @property
    def several(self) -> bool:
        """Whether a text may have any number of labels."""
        return self.processing.multi_label

    @property
    def metrics(self) -> tuple[Metric, ...]:
        found: tuple[Metric, ...] = self.card.facts[
            "multi_label_metrics" if self.several else "metrics"
        ]
        return found

    def parser(self, role: str, rows: Rows, supervised: bool) -> Parser:
        if role == "label" and self.several:
            return several_labels
        return super().parser(role, rows, supervised)

    def seeing(self, labels: Sequence[str] | None, supervised: bool) -> classes.SeeingClasses:
        return classes.SeeingClasses("label", labels, several=self.several)

    def config(self, labels: Sequence[str]) -> dict[str, Any]:
        kind = "multi_label_classification" if self.several else "single_label_classification"
        return {"problem_type": kind}

    def features(self, examples: Examples, rows: Places, processor: Any) -> list[Feature]:
        texts = [examples.values("sentence1", rows)]
        if "sentence2" in examples.columns:
            texts.append(examples.values("sentence2", rows))
        with TOKENIZING:
            encoded = processor(*texts, truncation=True, max_length=self.limit(processor))
        found = [{name: encoded[name][i] for name in encoded} for i in range(len(rows))]
        if examples.codes is not None:
            for feature, code in zip(found, examples.codes[rows].tolist(), strict=True):
                feature["labels"] = code
        return found

    def collator(self, processor: Any, model: Any = None) -> Any:
        from transformers import DataCollatorWithPadding

        return DataCollatorWithPadding(processor, **self.padding(processor))

    def predict(
        self, model: Any, examples: Examples, processor: Any, *, batch_size: int = 32,
        generation: Mapping[str, Any] | None = None, obey: Obey = go_on,
    ) -> Predictions:  # fmt: skip
        features = without(self.features(examples, all_rows(examples), processor), "labels")
        collate = self.collator(processor, model)
        logits: Array = np.zeros((len(features), len(examples.labels)), dtype=np.float32)
        with inference(model) as device:
            for places in by_length(features, batch_size):
                obey()
                batch = on_device(collate([features[i] for i in places]), device)
                logits[places] = model(**batch).logits.float().cpu().numpy()
        return classes.predictions_of(logits, examples, several=self.several)

    def score(self, predictions: Predictions, examples: Examples) -> Scores:
        score = classes.score_several if self.several else classes.score_single
        return score(predictions, examples)

    def resampled(self, scores: Scores, counts: Array) -> dict[str, Array]:
        resample = classes.resampled_several if self.several else classes.resampled_single
        return resample(scores, counts)
