"""Image classification: one label an image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from luthier.data.rows import Places, Rows
from luthier.errors import ModelError
from luthier.tasks import classes
from luthier.tasks.batching import Feature, Obey, go_on, inference, on_device
from luthier.tasks.examples import Examples, Parser
from luthier.tasks.images import image
from luthier.tasks.scores import Array, Predictions, Scores
from luthier.tasks.task import Task, all_rows


class ImageClassification(Task):
    """``AutoModelForImageClassification``. Images are resized and normalized by the model's own
    processor; they are not augmented. Every image is decoded when the rows are read, and again
    when its features are asked for: pixels are never kept."""

    name = "image-classification"
    auto_class = "AutoModelForImageClassification"
    of_images = True

    def parser(self, role: str, rows: Rows, supervised: bool) -> Parser:
        if role != "image":
            return super().parser(role, rows, supervised)
        return lambda value: image(value, rows.folder)

    def seeing(self, labels: Sequence[str] | None, supervised: bool) -> classes.SeeingClasses:
        return classes.SeeingClasses("label", labels, several=False)

    def config(self, labels: Sequence[str]) -> dict[str, Any]:
        return {"problem_type": "single_label_classification"}

    def prepare(self, model: Any, processor: Any) -> None:
        if getattr(model, "main_input_name", None) != "pixel_values":
            raise ModelError(f"{type(model).__name__} reads no images")

    def features(self, examples: Examples, rows: Places, processor: Any) -> list[Feature]:
        pixels = processor(images=examples.values("image", rows), return_tensors="np")
        found: list[Feature] = [{"pixel_values": values} for values in pixels["pixel_values"]]
        if examples.codes is not None:
            for feature, code in zip(found, examples.codes[rows].tolist(), strict=True):
                feature["labels"] = code
        return found

    def collator(self, processor: Any, model: Any = None) -> Any:
        from transformers import DefaultDataCollator

        return DefaultDataCollator()

    def predict(
        self, model: Any, examples: Examples, processor: Any, *, batch_size: int = 32,
        generation: Mapping[str, Any] | None = None, obey: Obey = go_on,
    ) -> Predictions:  # fmt: skip
        collate = self.collator(processor, model)
        places = all_rows(examples)
        logits: Array = np.zeros((len(places), len(examples.labels)), dtype=np.float32)
        with inference(model) as device:
            for start in range(0, len(places), batch_size):
                obey()
                part = places[start : start + batch_size]
                batch = on_device(collate(self.features(examples, part, processor)), device)
                batch.pop("labels", None)
                logits[part] = model(**batch).logits.float().cpu().numpy()
        return classes.predictions_of(logits, examples, several=False)

    def score(self, predictions: Predictions, examples: Examples) -> Scores:
        return classes.score_single(predictions, examples)

    def resampled(self, scores: Scores, counts: Array) -> dict[str, Array]:
        return classes.resampled_single(scores, counts)
