"""Token classification: a tag for every word, learnt at the word's first sub-token."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from luthier.data.rows import Places, Rows
from luthier.errors import DataError
from luthier.tasks import entities
from luthier.tasks.batching import (
    TOKENIZING,
    Feature,
    Obey,
    by_length,
    go_on,
    inference,
    on_device,
)
from luthier.tasks.examples import Examples, Parser, UnfitRow, in_order, unknown_label
from luthier.tasks.scores import Array, Predictions, Scores
from luthier.tasks.task import Seeing, Task

#: What the loss leaves out: special tokens, and all of a word but its first sub-token.
IGNORED = -100
#: The tag of words that are no entity, where the labels have it.
OUTSIDE = "O"


class SeeingTags(Seeing):
    """Holds tags against words and labels."""

    def __init__(self, labels: Sequence[str] | None) -> None:
        self._labels = None if labels is None else tuple(labels)
        self._seen: set[str] = set()

    def see(self, place: int, values: dict[str, Any]) -> None:
        if "tags" not in values:
            return
        words, tags = values["tokens"], values["tags"]
        if len(words) != len(tags):
            raise UnfitRow("tags", f"{len(tags)} tags for {len(words)} words")
        for tag in tags:
            if self._labels is not None and tag not in self._labels:
                unfit = unknown_label(tag, self._labels)
                raise UnfitRow("tags", unfit.message, unfit.hint)
        self._seen.update(tags)

    def examples(
        self, rows: Rows, columns: Mapping[str, str], parsers: Mapping[str, Parser],
        supervised: bool,
    ) -> Examples:  # fmt: skip
        supervised = "tags" in columns
        if self._labels is None and supervised and len(self._seen) < 2:
            raise DataError(
                f"there is nothing to tell apart: only '{', '.join(self._seen)}'",
                file=rows.file, column=columns["tags"],
            )  # fmt: skip
        labels = self._labels if self._labels is not None else in_order(self._seen)
        return Examples(rows, columns, parsers, labels, supervised=supervised)


class TokenClassification(Task):
    """``AutoModelForTokenClassification``.

    A row that is longer than the model takes is cut for training, as everywhere; to predict, it
    is read in windows that overlap by a quarter, and each word gets its tag from the window in
    which it stands farthest from an edge. So every word is predicted and scored.
    """

    name = "token-classification"
    auto_class = "AutoModelForTokenClassification"
    needs_offsets = True

    def seeing(self, labels: Sequence[str] | None, supervised: bool) -> SeeingTags:
        return SeeingTags(labels)

    def prepare(self, model: Any, processor: Any) -> None:
        super().prepare(model, processor)
        _space_before_words(processor)

    def features(self, examples: Examples, rows: Places, processor: Any) -> list[Feature]:
        words = examples.values("tokens", rows)
        limit = self.limit(processor)
        with TOKENIZING:
            encoded = processor(
                words, is_split_into_words=True, truncation=limit is not None, max_length=limit
            )
        found = [{name: encoded[name][i] for name in encoded} for i in range(len(rows))]
        if not examples.supervised:
            return found
        codes = {label: code for code, label in enumerate(examples.labels)}
        for i, (feature, tags) in enumerate(zip(found, examples.values("tags", rows), strict=True)):
            feature["labels"] = aligned(encoded.word_ids(i), [codes[tag] for tag in tags])
        return found

    def collator(self, processor: Any, model: Any = None) -> Any:
        from transformers import DataCollatorForTokenClassification

        return DataCollatorForTokenClassification(
            processor, label_pad_token_id=IGNORED, **self.padding(processor)
        )

    def predict(
        self, model: Any, examples: Examples, processor: Any, *, batch_size: int = 32,
        generation: Mapping[str, Any] | None = None, obey: Obey = go_on,
    ) -> Predictions:  # fmt: skip
        words = examples.values("tokens")
        windows, owners, word_ids = self._windows(words, processor)
        best = _best_windows(words, owners, word_ids)
        logits = [np.zeros((len(row), len(examples.labels)), dtype=np.float64) for row in words]
        with inference(model) as device:
            for places in by_length(windows, batch_size):
                obey()
                batch = processor.pad([windows[i] for i in places], return_tensors="pt")
                shift = _left_padding(batch["attention_mask"], processor)
                found = model(**on_device(batch, device)).logits.float().cpu().numpy()
                for at, window in enumerate(places):
                    for word, token in best[window].items():
                        logits[owners[window]][word] = found[at, token + shift[at]]
        return _tagged(logits, best, owners, examples)

    def _windows(
        self, words: list[list[str]], processor: Any
    ) -> tuple[list[Feature], list[int], list[list[int | None]]]:
        """Features that cover all words, the row of each, and the word of each of its tokens."""
        limit = self.limit(processor)
        with TOKENIZING:
            encoded = processor(
                words, is_split_into_words=True, truncation=limit is not None, max_length=limit,
                stride=(limit or 0) // 4, return_overflowing_tokens=limit is not None,
            )  # fmt: skip
        count = len(encoded["input_ids"])
        owners = list(encoded.pop("overflow_to_sample_mapping", range(count)))
        features = [{name: encoded[name][i] for name in encoded} for i in range(count)]
        return features, owners, [encoded.word_ids(i) for i in range(count)]

    def score(self, predictions: Predictions, examples: Examples) -> Scores:
        if not examples.supervised:
            raise DataError("these rows have no tags to score against", file=examples.rows.file)
        return entities.score(predictions, examples.values("tags"), examples.labels)

    def resampled(self, scores: Scores, counts: Array) -> dict[str, Array]:
        return entities.resampled(scores, counts)


def aligned(word_ids: Sequence[int | None], codes: Sequence[int]) -> list[int]:
    """A label for each token: the word's at its first token, else IGNORED.

    >>> aligned([None, 0, 0, 1, None], [7, 8])
    [-100, 7, -100, 8, -100]
    """
    found, before = [], None
    for word in word_ids:
        found.append(IGNORED if word is None or word == before else codes[word])
        before = word
    return found


def _best_windows(
    words: list[list[str]], owners: list[int], word_ids: list[list[int | None]]
) -> list[dict[int, int]]:
    """For each window, the words that it decides, each with the place of its first token."""
    margin = [np.full(len(row), -1) for row in words]
    chosen = [np.full(len(row), -1) for row in words]
    firsts = [_first_tokens(ids) for ids in word_ids]
    for window, (owner, first) in enumerate(zip(owners, firsts, strict=True)):
        length = len(word_ids[window])
        for word, token in first.items():
            room = min(token, length - 1 - token)
            if room > margin[owner][word]:
                margin[owner][word], chosen[owner][word] = room, window
    return [
        {word: token for word, token in first.items() if chosen[owners[window]][word] == window}
        for window, first in enumerate(firsts)
    ]


def _first_tokens(word_ids: Sequence[int | None]) -> dict[int, int]:
    found: dict[int, int] = {}
    for token, word in enumerate(word_ids):
        if word is not None:
            found.setdefault(word, token)
    return found


def _left_padding(mask: Any, processor: Any) -> list[int]:
    """Padding tokens before each row of a batch."""
    if processor.padding_side != "left":
        return [0] * len(mask)
    return [int(mask.shape[1] - used) for used in mask.sum(1)]


def _tagged(
    logits: list[Array], best: list[dict[int, int]], owners: list[int], examples: Examples
) -> Predictions:
    """Tags for logits [words, classes] of each row. A word of which the tokenizer makes nothing
    is outside of everything. arrays: ``nll`` and ``words`` [n], where targets are known."""
    labels = examples.labels
    nothing = labels.index(OUTSIDE) if OUTSIDE in labels else 0
    read = [np.zeros(len(row), dtype=bool) for row in logits]
    for window, first in enumerate(best):
        read[owners[window]][list(first)] = True
    codes = [
        np.where(seen, row.argmax(axis=1), nothing) for row, seen in zip(logits, read, strict=True)
    ]
    values = [[labels[code] for code in row] for row in codes]
    if not examples.supervised:
        return Predictions(values)
    known = {label: code for code, label in enumerate(labels)}
    nll = np.zeros(len(values))
    for i, tags in enumerate(examples.values("tags")):
        log = logits[i] - np.logaddexp.reduce(logits[i], axis=1, keepdims=True)
        target = [known[tag] for tag in tags]
        nll[i] = -(log[np.arange(len(target)), target] * read[i]).sum()
    return Predictions(values, {"nll": nll, "words": np.array([r.sum() for r in read], float)})


def _space_before_words(processor: Any) -> None:
    """Byte-level tokenizers tell a word that follows a space from one that does not: words that
    are given one by one have to be read as if a space went before each."""
    from tokenizers.pre_tokenizers import ByteLevel

    before = processor.backend_tokenizer.pre_tokenizer
    if isinstance(before, ByteLevel) and not before.add_prefix_space:
        before.add_prefix_space = True
        processor.backend_tokenizer.pre_tokenizer = before
    if hasattr(processor, "add_prefix_space"):
        processor.add_prefix_space = True
