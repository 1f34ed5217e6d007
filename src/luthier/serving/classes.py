"""Labels: of texts, of images, of the words of a text."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from luthier.errors import DataError
from luthier.serving.family import Row, TaskModel


class TextClasses(TaskModel):
    """A label a text, or any number of them; with the probability of every label."""

    def batch(self, rows: Sequence[Row], params: Mapping[str, Any]) -> list[dict[str, Any]]:
        first, second = [row["sentence1"] for row in rows], [row.get("sentence2") for row in rows]
        if any(text is not None for text in second):
            pair = self.tokens(first, [text or "" for text in second])
        else:
            pair = self.tokens(first)
        return self.classes(self.logits(pair).logits)

    def classes(self, logits: Tensor) -> list[dict[str, Any]]:
        """The columns of logits [n, classes]."""
        several = self.options["multi_label"]
        shares = (logits.sigmoid() if several else logits.softmax(-1)).float().tolist()
        answers = []
        for row in shares:
            scores = {self.label(code): share for code, share in enumerate(row)}
            if several:
                chosen = json.dumps(
                    [n for n, s in scores.items() if s >= self.options["threshold"]]
                )
            else:
                chosen = max(scores, key=scores.__getitem__)
            answers.append({"prediction": chosen, "scores": json.dumps(scores)})
        return answers


class ImageClasses(TextClasses):
    """A label an image."""

    def batch(self, rows: Sequence[Row], params: Mapping[str, Any]) -> list[dict[str, Any]]:
        images = [_image(row["image"], number) for number, row in enumerate(rows)]
        return self.classes(self.logits(self.processor(images, return_tensors="pt")).logits)


def _image(value: str | bytes, number: int) -> Any:
    """An RGB image of bytes, base64 or a data: URL."""
    import base64
    import binascii
    import io

    from PIL import Image, UnidentifiedImageError

    data = value
    if isinstance(data, str):
        text = data.partition(",")[2] if data.startswith("data:") else data
        try:
            data = base64.b64decode("".join(text.split()), validate=True)
        except binascii.Error as error:
            raise DataError(f"is no base64 ({error})", row=number, column="image") from error
    try:
        return Image.open(io.BytesIO(data)).convert("RGB")
    except (UnidentifiedImageError, OSError) as error:
        raise DataError("is no image that can be read", row=number, column="image") from error


class WordTags(TaskModel):
    """A tag for every word; a text longer than the model's limit is read in windows."""

    def batch(self, rows: Sequence[Row], params: Mapping[str, Any]) -> list[dict[str, Any]]:
        words = [_words(row["tokens"], number) for number, row in enumerate(rows)]
        features = self.tokens(
            words, is_split_into_words=True, return_overflowing_tokens=True, stride=0
        )
        of = features.pop("overflow_to_sample_mapping").tolist()
        shares = self.logits(features).logits.softmax(-1).float()
        best, codes = shares.max(-1)
        tags: list[dict[int, tuple[str, float]]] = [{} for _ in rows]
        for window, row in enumerate(of):
            for place, word in enumerate(features.word_ids(window)):
                if word is not None and word not in tags[row]:  # a word's first token speaks
                    tag = self.label(int(codes[window, place]))
                    tags[row][word] = (tag, float(best[window, place]))
        answers = []
        for mine, theirs in zip(words, tags, strict=True):
            # a word of which the tokenizer makes nothing (a space of its own) has no tag
            all_tags = [theirs.get(place, ("O", 0.0)) for place in range(len(mine))]
            answers.append(
                {
                    "prediction": json.dumps([tag for tag, _ in all_tags]),
                    "scores": json.dumps([share for _, share in all_tags]),
                }
            )
        return answers


def _words(text: str, number: int) -> list[str]:
    if not text.lstrip().startswith("["):
        return text.split()
    try:
        words = json.loads(text)
    except ValueError:
        return text.split()
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        raise DataError("is no list of words", row=number, column="tokens")
    return words
