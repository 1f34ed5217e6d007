"""Texts that a model writes: summaries, translations, continuations, replies."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from luthier.errors import DataError, ModelError
from luthier.models.mlflow_signature import generation_words
from luthier.serving.family import Row, TaskModel


class Generated(TaskModel):
    """Summaries and translations: an encoder reads, a decoder writes."""

    column = "document"

    def setup(self) -> None:
        source, target = self.options["source_lang"], self.options["target_lang"]
        if source and hasattr(self.processor, "src_lang"):
            self.processor.src_lang = source
        self.words: dict[str, Any] = {}
        if target and hasattr(self.processor, "src_lang"):  # mBART, M2M, NLLB
            code = self.processor.convert_tokens_to_ids(target)
            if code is None or code == self.processor.unk_token_id:
                raise ModelError(f"knows no language '{target}'", where=self.where)
            self.words["forced_bos_token_id"] = code

    def batch(self, rows: Sequence[Row], params: Mapping[str, Any]) -> list[dict[str, Any]]:
        prefix = self.options["source_prefix"]
        features = self.tokens([prefix + row[self.column] for row in rows])
        features.pop("token_type_ids", None)
        return self.decoded(self.generate(features, params))

    def generate(self, features: Mapping[str, Tensor], params: Mapping[str, Any]) -> Tensor:
        """Token ids [n, length]."""
        made: Tensor = self.model.generate(
            **{k: v.to(self.model.device) for k, v in features.items()},
            **self.words,
            **generation_words(params),
        )
        return made

    def decoded(self, made: Tensor) -> list[dict[str, Any]]:
        """Texts without special tokens."""
        texts = self.processor.batch_decode(made, skip_special_tokens=True)
        return [{"prediction": text.strip()} for text in texts]


class Translated(Generated):
    """The same, of another column."""

    column = "source"


class Continued(Generated):
    """How a text goes on; the text itself is not repeated."""

    def setup(self) -> None:
        self.words = {}
        self.processor.padding_side = self.processor.truncation_side = "left"

    def prompts(self, rows: Sequence[Row]) -> dict[str, Any]:
        """The texts, and how they are to be tokenized."""
        return {"text": [row["text"] for row in rows]}

    def batch(self, rows: Sequence[Row], params: Mapping[str, Any]) -> list[dict[str, Any]]:
        features = self.tokens(**self.prompts(rows))
        features.pop("token_type_ids", None)
        made = self.generate(features, params)
        return self.decoded(made[:, features["input_ids"].shape[1] :])

    @property
    def limit(self) -> int | None:
        """Room is left for a quarter of what the model can take: a prompt that filled it all
        could not go on."""
        limit = super().limit
        return None if limit is None else max(limit - limit // 4, 1)


class Chats(Continued):
    """What the assistant says next."""

    def setup(self) -> None:
        super().setup()
        if not self.processor.chat_template:
            raise ModelError("its tokenizer has no chat template", where=self.where)

    def prompts(self, rows: Sequence[Row]) -> dict[str, Any]:
        texts = [
            self.processor.apply_chat_template(
                _messages(row["messages"], number), tokenize=False, add_generation_prompt=True
            )
            for number, row in enumerate(rows)
        ]
        return {"text": texts, "add_special_tokens": False}  # the template has written them


def _messages(text: str, number: int) -> list[dict[str, str]]:
    if not text.lstrip().startswith("["):
        return [{"role": "user", "content": text}]
    try:
        messages = json.loads(text)
    except ValueError:
        return [{"role": "user", "content": text}]
    if not messages or not all(
        isinstance(m, dict) and isinstance(m.get("role"), str) and isinstance(m.get("content"), str)
        for m in messages
    ):
        hint = '[{"role": "user", "content": "…"}]'
        raise DataError("is no list of messages", row=number, column="messages", hint=hint)
    return list(messages)
