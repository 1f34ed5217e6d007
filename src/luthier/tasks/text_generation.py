"""Causal language models: texts as they go on, or completions of prompts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from luthier.data.problems import Problems
from luthier.data.rows import Places
from luthier.tasks.batching import TOKENIZING, Feature, Obey, by_length, go_on, inference, on_device
from luthier.tasks.examples import Examples
from luthier.tasks.generating import generate, generation_options
from luthier.tasks.scores import Array, Predictions, Scores
from luthier.tasks.task import Task, all_rows

#: What the loss leaves out.
IGNORED = -100


class CausalLanguage(Task):
    """What text generation and chat share: ``AutoModelForCausalLM``, the loss of the tokens
    that are learnt, perplexity, and generation from prompts."""

    auto_class = "AutoModelForCausalLM"
    new_head = False
    needs_offsets = True

    def collator(self, processor: Any, model: Any = None) -> Any:
        from transformers import DataCollatorForSeq2Seq

        # it pads labels with -100, and leaves an end token that serves as padding to be learnt
        return DataCollatorForSeq2Seq(processor, model=None, **self.padding(processor))

    def features(self, examples: Examples, rows: Places, processor: Any) -> list[Feature]:
        return [feature for _, feature in self.owned_features(examples, rows, processor)]

    def owned_features(
        self, examples: Examples, rows: Places, processor: Any
    ) -> list[tuple[int, Feature]]:
        """The features, each with the place in ``rows`` of the row that it is of."""
        raise NotImplementedError

    def prompts(self, examples: Examples, processor: Any) -> list[Feature]:
        """What is to be gone on from, for each row."""
        raise NotImplementedError

    def predict(
        self, model: Any, examples: Examples, processor: Any, *, batch_size: int = 32,
        generation: Mapping[str, Any] | None = None, obey: Obey = go_on,
    ) -> Predictions:  # fmt: skip
        """arrays: ``nll`` and ``tokens`` [n] for rows to learn from. values: what the model
        writes after each prompt, where ``generation`` is given ({} will do) or the rows are to
        be predicted on; else []."""
        arrays: dict[str, Array] = {}
        if examples.supervised:
            owned = self.owned_features(examples, all_rows(examples), processor)
            nll, tokens = np.zeros(len(examples)), np.zeros(len(examples))
            owners = np.array([owner for owner, _ in owned])
            features = [feature for _, feature in owned]
            collate = self.collator(processor)
            with inference(model) as device:
                for places in by_length(features, batch_size):
                    obey()
                    batch = on_device(collate([features[i] for i in places]), device)
                    found = token_losses(model, batch)
                    np.add.at(nll, owners[places], found[0])
                    np.add.at(tokens, owners[places], found[1])
            arrays = {"nll": nll, "tokens": tokens}
        if generation is None and examples.supervised:
            return Predictions([], arrays)
        options = generation_options(self.processing, generation)
        prompts = self.prompts(examples, processor)
        texts = generate(model, prompts, processor, options, batch_size=batch_size, obey=obey)
        return Predictions(list(texts), arrays)

    def score(self, predictions: Predictions, examples: Examples) -> Scores:
        """loss: nats a token, over all tokens of all rows; perplexity: its exponential."""
        rows = {name: predictions.arrays[name] for name in ("nll", "tokens")}
        loss = float(rows["nll"].sum() / max(rows["tokens"].sum(), 1))
        return Scores({"loss": loss, "perplexity": float(np.exp(loss))}, rows)

    def resampled(self, scores: Scores, counts: Array) -> dict[str, Array]:
        tokens = np.maximum(counts @ scores.per_row["tokens"], 1)
        loss = counts @ scores.per_row["nll"] / tokens
        return {"loss": loss, "perplexity": np.exp(loss)}


class TextGeneration(CausalLanguage):
    """``text`` alone is learnt whole: a text longer than the model takes gives several features,
    each beginning with the last token of the one before, so that every token but the first is
    predicted once. With ``ground_truth`` the text is a prompt, which is masked, and what follows
    is learnt; where both are too long, the prompt loses its beginning first."""

    name = "text-generation"

    def owned_features(
        self, examples: Examples, rows: Places, processor: Any
    ) -> list[tuple[int, Feature]]:
        texts = examples.values("text", rows)
        limit = self.limit(processor)
        if "ground_truth" in examples.columns:
            answers = examples.values("ground_truth", rows)
            with TOKENIZING:
                return [
                    (i, _completion(prompt, answer, processor, limit))
                    for i, (prompt, answer) in enumerate(zip(texts, answers, strict=True))
                ]
        with TOKENIZING:
            encoded = processor(texts, verbose=False)["input_ids"]
        return [
            (i, feature(chunk, chunk))
            for i, ids in enumerate(encoded)
            for chunk in _chunks(_ended(ids, processor), limit)
        ]

    def prompts(self, examples: Examples, processor: Any) -> list[Feature]:
        limit = self.limit(processor)
        with TOKENIZING:
            encoded = processor(examples.values("text"), verbose=False)["input_ids"]
        bare = [_without_end(ids, processor) for ids in encoded]
        # room for what is to be written
        room = None if limit is None else max(1, limit // 2)
        return [prompt(ids if room is None else ids[-room:]) for ids in bare]


def token_losses(model: Any, batch: dict[str, torch.Tensor]) -> tuple[Array, Array]:
    """For each feature the sum of the losses of its learnt tokens, in nats, and their number."""
    labels = batch.pop("labels")
    logits = model(**batch).logits[:, :-1].float()
    wanted = labels[:, 1:]
    each = functional.cross_entropy(
        logits.transpose(1, 2), wanted, ignore_index=IGNORED, reduction="none"
    )
    counted = (wanted != IGNORED).sum(dim=1)
    # on the CPU, because not every device has float64
    return each.cpu().double().sum(dim=1).numpy(), counted.cpu().double().numpy()


def feature(ids: Sequence[int], labels: Sequence[int]) -> Feature:
    """A feature of tokens without padding."""
    return {"input_ids": list(ids), "attention_mask": [1] * len(ids), "labels": list(labels)}


def prompt(ids: Sequence[int]) -> Feature:
    """A feature to go on from."""
    return {"input_ids": list(ids), "attention_mask": [1] * len(ids)}


def refuse_unlearnable(
    owned: Sequence[tuple[int, Feature]], rows: Places, examples: Examples, role: str, why: str
) -> None:
    """Raise DataError for rows of which nothing is left to learn."""
    found = Problems(examples.rows.file)
    for owner, made in owned:
        if all(label == IGNORED for label in made["labels"][1:]):
            line = examples.rows.line(int(rows[owner]))
            found.add(why, row=line, column=examples.columns[role],
                      hint="raise max_seq_length, or shorten these rows")  # fmt: skip
    found.check()


def _completion(text: str, answer: str, processor: Any, limit: int | None) -> Feature:
    """Both are tokenized as one text, as the model meets them; a token that has characters of
    both counts as the answer's."""
    encoded = processor(text + answer, return_offsets_mapping=True, verbose=False)
    ids, spans = list(encoded["input_ids"]), encoded["offset_mapping"]
    special = encoded.encodings[0].special_tokens_mask if encoded.encodings else [0] * len(ids)
    first = next(
        i for i, (span, mark) in enumerate(zip(spans, special, strict=True))
        if not mark and span[1] > len(text)
    )  # fmt: skip
    ended = _ended(ids, processor)
    before, after = ended[:first], ended[first:]
    if limit is not None:
        after = after[: limit - 1]
        room = limit - len(after)
        before = before[len(before) - room :] if len(before) > room else before
    return feature(before + after, [IGNORED] * len(before) + after)


def _ended(ids: list[int], processor: Any) -> list[int]:
    """With the end token, so that the model learns where to stop."""
    end = processor.eos_token_id
    return ids if end is None or (ids and ids[-1] == end) else [*ids, end]


def _without_end(ids: list[int], processor: Any) -> list[int]:
    """A prompt is not at its end, though some tokenizers say so."""
    return ids[:-1] if len(ids) > 1 and ids[-1] == processor.eos_token_id else ids


def _chunks(ids: list[int], limit: int | None) -> list[list[int]]:
    """Pieces of at most ``limit`` tokens, each beginning with the last of the one before.

    >>> _chunks([1, 2, 3, 4, 5], 3)
    [[1, 2, 3], [3, 4, 5]]
    """
    if limit is None or len(ids) <= limit:
        return [ids]
    return [ids[start : start + limit] for start in range(0, len(ids) - 1, limit - 1)]
