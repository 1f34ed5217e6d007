"""Texts from texts: summarization and translation, by models with an encoder and a decoder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np

from luthier.data.rows import Places, Rows
from luthier.errors import DataError, Problem, SpecError
from luthier.tasks import overlap
from luthier.tasks.batching import TOKENIZING, Feature, Obey, go_on
from luthier.tasks.examples import Examples, Parser, find_columns
from luthier.tasks.generating import generate, generation_options
from luthier.tasks.languages import is_multilingual, set_languages
from luthier.tasks.roles import Role, plain
from luthier.tasks.scores import Array, Predictions, Scores
from luthier.tasks.task import Task, all_rows
from luthier.tasks.values import Unfit, mapping, text


class SequenceToSequence(Task):
    """``AutoModelForSeq2SeqLM``. A source is cut at ``max_seq_length``, a target at
    ``max_target_length``; ``source_prefix`` goes before every source."""

    auto_class = "AutoModelForSeq2SeqLM"
    new_head = False
    source: ClassVar[str]
    target: ClassVar[str]

    def prepare(self, model: Any, processor: Any) -> None:
        super().prepare(model, processor)
        own, wanted = int(processor.model_max_length), self.processing.max_target_length
        limit = self.limit(processor)
        if wanted is not None and wanted > own:
            raise SpecError([Problem(
                "processing.max_target_length", f"{wanted} tokens, where the model takes {own}",
            )])  # fmt: skip
        if self.processing.pad_to_max_length and wanted is not None and wanted > (limit or wanted):
            raise SpecError([Problem(
                "processing.max_target_length",
                f"{wanted} tokens, where pad_to_max_length pads to {limit}",
                "raise max_seq_length, or leave pad_to_max_length out",
            )])  # fmt: skip

    def target_limit(self, processor: Any) -> int | None:
        """The most tokens of a target."""
        return self.processing.max_target_length or self.limit(processor)

    def sources(self, examples: Examples, rows: Places | None = None) -> list[str]:
        """What is read, with the prefix."""
        prefix = self.processing.source_prefix
        return [prefix + value for value in examples.values(self.source, rows)]

    def targets(self, examples: Examples, rows: Places | None = None) -> list[str]:
        """What is to be written."""
        return examples.values(self.target, rows)

    def features(self, examples: Examples, rows: Places, processor: Any) -> list[Feature]:
        limit, most = self.limit(processor), self.target_limit(processor)
        with TOKENIZING:
            encoded = processor(
                self.sources(examples, rows), truncation=limit is not None, max_length=limit
            )
            found = [{name: encoded[name][i] for name in encoded} for i in range(len(rows))]
            if not examples.supervised:
                return found
            targets = processor(
                text_target=self.targets(examples, rows), truncation=most is not None,
                max_length=most,
            )["input_ids"]  # fmt: skip
        for feature, ids in zip(found, targets, strict=True):
            feature["labels"] = ids
        return found

    def collator(self, processor: Any, model: Any = None) -> Any:
        from transformers import DataCollatorForSeq2Seq

        return DataCollatorForSeq2Seq(processor, model=model, **self.padding(processor))

    def predict(
        self, model: Any, examples: Examples, processor: Any, *, batch_size: int = 32,
        generation: Mapping[str, Any] | None = None, obey: Obey = go_on,
    ) -> Predictions:  # fmt: skip
        options = generation_options(self.processing, generation)
        bare = replace(examples, supervised=False)
        features = self.features(bare, all_rows(examples), processor)
        texts = generate(model, features, processor, options, batch_size=batch_size, obey=obey)
        return Predictions(list(texts))

    def wanted(self, examples: Examples) -> list[str]:
        """The targets, to score against."""
        if not examples.supervised:
            what = f"no {self.target} to score against"
            raise DataError(f"these rows have {what}", file=examples.rows.file)
        return self.targets(examples)


class Summarization(SequenceToSequence):
    """A short text for a long one, scored by ROUGE."""

    name = "summarization"
    source, target = "document", "summary"

    def score(self, predictions: Predictions, examples: Examples) -> Scores:
        return overlap.rouge(predictions.values, self.wanted(examples))

    def resampled(self, scores: Scores, counts: Array) -> dict[str, Array]:
        return overlap.resampled_rouge(scores, counts)


class Translation(SequenceToSequence):
    """A text in another language, scored by BLEU and chrF.

    The texts are in two columns, called ``source`` and ``target`` or by their languages, or in
    one, ``translation``, which has a field a language. Multilingual models (mBART, M2M100, NLLB)
    are told ``source_lang`` and ``target_lang``, by their own codes or the beginning of one.
    """

    name = "translation"
    source, target = "source", "target"

    def columns(self, rows: Rows, supervised: bool) -> dict[str, str]:
        spec = self.processing
        chosen, known = dict(spec.columns), {plain(column) for column in rows.columns}
        roles = {role.name: role for role in self.roles}
        both = {
            "source": replace(roles["source"], required=True,
                              names=(*_names(spec.source_lang), *roles["source"].names)),
            "target": replace(roles["target"], required=True,
                              names=(*_names(spec.target_lang), *roles["target"].names)),
        }  # fmt: skip
        nested = "translation" in chosen or (
            "translation" in known and not {"source", "target"} & set(chosen)
            and not known.intersection(both["source"].names)
        )  # fmt: skip
        wanted: list[Role] = [roles["translation"]] if nested else list(both.values())
        names = {role.name for role in wanted if supervised or not role.target}
        chosen = {role: column for role, column in chosen.items() if role in names}
        found = find_columns(wanted, rows, chosen, supervised=supervised)
        return {role: column for role, column in found.items() if role in names}

    def parser(self, role: str, rows: Rows, supervised: bool) -> Parser:
        if role != "translation":
            return super().parser(role, rows, supervised)
        source, target = self.processing.source_lang, self.processing.target_lang
        if source is None or (supervised and target is None):
            raise SpecError([Problem(
                "processing.source_lang" if source is None else "processing.target_lang",
                "is needed: the rows have a field a language",
            )])  # fmt: skip
        wanted = (source, target) if supervised else (source,)
        return lambda value: [_field(mapping(value), name) for name in wanted if name]

    def sources(self, examples: Examples, rows: Places | None = None) -> list[str]:
        if "translation" not in examples.columns:
            return super().sources(examples, rows)
        prefix = self.processing.source_prefix
        return [prefix + pair[0] for pair in examples.values("translation", rows)]

    def targets(self, examples: Examples, rows: Places | None = None) -> list[str]:
        if "translation" not in examples.columns:
            return super().targets(examples, rows)
        return [pair[1] for pair in examples.values("translation", rows)]

    def prepare(self, model: Any, processor: Any) -> None:
        super().prepare(model, processor)
        if is_multilingual(processor):
            spec = self.processing
            set_languages(model, processor, spec.source_lang, spec.target_lang)

    def score(self, predictions: Predictions, examples: Examples) -> Scores:
        return overlap.translation(predictions.values, self.wanted(examples))

    def resampled(self, scores: Scores, counts: Array) -> dict[str, Array]:
        return overlap.resampled_translation(scores, np.asarray(counts))


def _names(language: str | None) -> tuple[str, ...]:
    """The columns that a language may be called: "en_XX" and "en"."""
    return () if language is None else tuple(dict.fromkeys([plain(language), _short(language)]))


def _short(language: str) -> str:
    return plain(language).split("_")[0]


def _field(pair: Mapping[str, Any], language: str) -> str:
    for name in (language, _short(language)):
        if name in pair:
            return text(pair[name])
    raise Unfit(f"there is no text in '{language}'", f"languages: {', '.join(pair)}")
