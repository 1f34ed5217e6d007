"""The model of a folder, ready to answer for a task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from luthier.serving.classes import ImageClasses, TextClasses, WordTags
from luthier.serving.family import Answers, Row, TaskModel
from luthier.serving.spans import Spans
from luthier.serving.texts import Chats, Continued, Generated, Translated
from luthier.tasks.loading import load_pretrained

#: Task → the class of transformers that holds its model, and ours that asks it.
_KINDS: dict[str, tuple[str, type[TaskModel]]] = {
    "text-classification": ("AutoModelForSequenceClassification", TextClasses),
    "token-classification": ("AutoModelForTokenClassification", WordTags),
    "question-answering": ("AutoModelForQuestionAnswering", Spans),
    "summarization": ("AutoModelForSeq2SeqLM", Generated),
    "translation": ("AutoModelForSeq2SeqLM", Translated),
    "text-generation": ("AutoModelForCausalLM", Continued),
    "chat-completion": ("AutoModelForCausalLM", Chats),
    "image-classification": ("AutoModelForImageClassification", ImageClasses),
}


def open_model(folder: Path, task: str, options: Mapping[str, Any]) -> Answers:
    """Load a folder for a task. Raises ModelError: it holds no model for that."""
    device = str(options["device"])
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if task == "embedding":
        return Embeddings(folder, options, device)
    auto_class, kind = _KINDS[task]
    image = kind is ImageClasses
    model, processor = load_pretrained(
        auto_class, str(folder), options={}, config={}, new_parts=False, image=image
    )
    model.to(device).eval()
    return kind(model, processor, options, where=str(folder))


class Embeddings:
    """A vector a text."""

    def __init__(self, folder: Path, options: Mapping[str, Any], device: str) -> None:
        from luthier.models.loading import open_text_model

        self._model = open_text_model(folder, device=device)
        self._normalize = bool(options["normalize"])

    def answer(self, rows: Sequence[Row], params: Mapping[str, Any]) -> list[dict[str, Any]]:
        """One column, ``embedding``: a list of floats."""
        texts = [row["text"] for row in rows]
        size = int(params["batch_size"])
        vectors = self._model.encode(texts, batch_size=size, normalize=self._normalize)
        return [{"embedding": vector.tolist()} for vector in vectors]
