"""Extractive question answering: the span of a context that answers a question, or none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from luthier.data.rows import Places, Rows
from luthier.errors import DataError, Problem, SpecError
from luthier.tasks import squad
from luthier.tasks.batching import (
    TOKENIZING,
    Feature,
    Obey,
    by_length,
    go_on,
    inference,
    on_device,
)
from luthier.tasks.examples import Examples, Parser, UnfitRow, find_columns
from luthier.tasks.roles import plain
from luthier.tasks.scores import Array, Predictions, Scores
from luthier.tasks.task import Seeing, Task, all_rows
from luthier.tasks.values import Unfit, mapping, numbers, texts

#: An answer: where it begins in the context, in characters, and its text.
Answer = tuple[int, str]
_TEXT, _START = ("text", "answer_text", "texts"), ("answer_start", "start", "answer_starts")
#: The least room for the context in a window, in tokens.
_LEAST_ROOM = 4


@dataclass(frozen=True)
class Window:
    """Part of a context with the whole question. spans: for each token the characters of the
    context that it covers, None for tokens of the question and special ones."""

    row: int
    inputs: Feature
    spans: list[tuple[int, int] | None]


class SeeingAnswers(Seeing):
    """Checks that every answer stands in its context where it is said to."""

    def __init__(self) -> None:
        self._unanswerable = False

    def see(self, place: int, values: dict[str, Any]) -> None:
        if "answers" in values:
            role, found = "answers", values["answers"]
        elif "answer_text" in values:
            role = "answer_text"
            listed, starts = values["answer_text"], values["answer_start"]
            if len(listed) != len(starts):
                raise UnfitRow("answer_start", f"{len(starts)} starts for {len(listed)} answers")
            found = list(zip(starts, listed, strict=True))
        else:
            return
        for start, text in found:
            _check_answer(role, start, text, values["context"])
        self._unanswerable |= not found

    def examples(
        self, rows: Rows, columns: Mapping[str, str], parsers: Mapping[str, Parser],
        supervised: bool,
    ) -> Examples:  # fmt: skip
        supervised = "answers" in columns or "answer_text" in columns
        facts = {"unanswerable": self._unanswerable}
        return Examples(rows, columns, parsers, supervised=supervised, facts=facts)


class QuestionAnswering(Task):
    """``AutoModelForQuestionAnswering``.

    Answers are in one column, ``{"text": […], "answer_start": […]}``, or in two; in the first
    case ``columns["answer_text"]`` and ``["answer_start"]`` name its fields. A row without
    answers is unanswerable (SQuAD v2.0), and then the model may answer nothing: where any row
    of the examples is so. A context is read in windows, one feature each, that share
    ``doc_stride`` tokens, at most half of the room that the question leaves; a question of more
    than half the limit is cut. A window that lacks the answer is to point at its first special
    token.
    """

    name = "question-answering"
    auto_class = "AutoModelForQuestionAnswering"
    needs_offsets = True

    def columns(self, rows: Rows, supervised: bool) -> dict[str, str]:
        chosen = dict(self.processing.columns)
        roles = {role.name: role for role in self.roles}
        known = {plain(column) for column in rows.columns}
        if "answers" in chosen or known.intersection(roles["answers"].names):
            wanted = ["question", "context", "answers"]
        else:
            wanted = ["question", "context", "answer_start", "answer_text"]
        needed = [replace(roles[name], required=True) for name in wanted]
        chosen = {role: column for role, column in chosen.items() if role in wanted}
        if not supervised:
            needed, chosen = needed[:2], {r: c for r, c in chosen.items() if r in wanted[:2]}
        return find_columns(needed, rows, chosen, supervised=supervised)

    def parser(self, role: str, rows: Rows, supervised: bool) -> Parser:
        if role != "answers":
            return super().parser(role, rows, supervised)
        chosen = self.processing.columns
        text = (chosen["answer_text"],) if "answer_text" in chosen else _TEXT
        start = (chosen["answer_start"],) if "answer_start" in chosen else _START
        return lambda value: _answers(value, text, start)

    def seeing(self, labels: Sequence[str] | None, supervised: bool) -> SeeingAnswers:
        return SeeingAnswers()

    def prepare(self, model: Any, processor: Any) -> None:
        super().prepare(model, processor)
        least = 2 * (processor.num_special_tokens_to_add(pair=True) + _LEAST_ROOM)
        limit = self.limit(processor)
        if limit is not None and limit < least:
            raise SpecError([Problem(
                "processing.max_seq_length", f"{limit} tokens hold no question with a context",
                f"at least {least}",
            )])  # fmt: skip

    def answers(self, examples: Examples, rows: Places | None = None) -> list[list[Answer]]:
        """The right answers of each row, [] where there is none."""
        if "answers" in examples.columns:
            return examples.values("answers", rows)
        starts = examples.values("answer_start", rows)
        return [
            list(zip(start, text, strict=True))
            for start, text in zip(starts, examples.values("answer_text", rows), strict=True)
        ]

    def features(self, examples: Examples, rows: Places, processor: Any) -> list[Feature]:
        windows = self.windows(examples, rows, processor)
        if not examples.supervised:
            return [window.inputs for window in windows]
        answers = self.answers(examples, rows)
        found = []
        for window in windows:
            nowhere = _special_token(window.inputs, processor)
            first = answers[window.row][0] if answers[window.row] else None
            start, end = tokens_of(first, window.spans) or (nowhere, nowhere)
            found.append(window.inputs | {"start_positions": start, "end_positions": end})
        return found

    def windows(self, examples: Examples, rows: Places, processor: Any) -> list[Window]:
        """All windows of these rows, in order; ``row`` counts within ``rows``."""
        contexts = examples.values("context", rows)
        questions = [text.lstrip() for text in examples.values("question", rows)]
        limit = self.limit(processor)
        with TOKENIZING:
            strides = self._strides(questions, processor, limit)
            found: list[list[Window]] = [[] for _ in questions]
            for stride in set(strides):
                group = [i for i, other in enumerate(strides) if other == stride]
                for window in _encoded(group, questions, contexts, processor, limit, stride):
                    found[window.row].append(window)
        return [window for listed in found for window in listed]

    def _strides(self, questions: list[str], processor: Any, limit: int | None) -> list[int]:
        """The overlap of each row's windows; questions that are too long are cut in place."""
        if limit is None:
            return [0] * len(questions)
        special = processor.num_special_tokens_to_add(pair=True)
        encoded = processor(
            questions, add_special_tokens=False, return_offsets_mapping=True, verbose=False
        )
        most = limit // 2 - special
        strides = []
        for i, offsets in enumerate(encoded["offset_mapping"]):
            length = len(offsets)
            if length > most:
                questions[i] = questions[i][: offsets[most - 1][1]]
                length = most
            # one token less: a question that was cut may be one longer when it is read again
            room = limit - special - length - 1
            strides.append(min(self.processing.doc_stride, room // 2))
        return strides

    def collator(self, processor: Any, model: Any = None) -> Any:
        from transformers import DataCollatorWithPadding

        return DataCollatorWithPadding(processor, **self.padding(processor))

    def predict(
        self, model: Any, examples: Examples, processor: Any, *, batch_size: int = 32,
        generation: Mapping[str, Any] | None = None, obey: Obey = go_on,
    ) -> Predictions:  # fmt: skip
        windows = self.windows(examples, all_rows(examples), processor)
        features = [window.inputs for window in windows]
        contexts = examples.values("context")
        best = [(-np.inf, "")] * len(examples)
        nothing = np.full(len(examples), np.inf)
        with inference(model) as device:
            for places in by_length(features, batch_size):
                obey()
                batch = processor.pad([features[i] for i in places], return_tensors="pt")
                outputs = model(**on_device(batch, device))
                logits = [outputs.start_logits, outputs.end_logits]
                start, end = (found.float().cpu().numpy() for found in logits)
                for at, place in enumerate(places):
                    window = windows[place]
                    size = len(window.spans)
                    shift = start.shape[1] - size if processor.padding_side == "left" else 0
                    s, e = start[at, shift : shift + size], end[at, shift : shift + size]
                    special = _special_token(window.inputs, processor)
                    nothing[window.row] = min(nothing[window.row], s[special] + e[special])
                    found = self._best(s, e, window.spans, contexts[window.row])
                    best[window.row] = max(best[window.row], found, key=lambda pair: pair[0])
        scores = np.array([score for score, _ in best])
        values = [text for _, text in best]
        if examples.facts.get("unanswerable"):
            values = [
                "" if none > score else text
                for text, none, score in zip(values, nothing, scores, strict=True)
            ]
        return Predictions(values, {"score": scores, "no_answer_score": nothing})

    def _best(
        self, start: Array, end: Array, spans: list[tuple[int, int] | None], context: str
    ) -> tuple[float, str]:
        """The best span of a window: its score, the sum of its two logits, and its text."""
        inside = np.array([i for i, span in enumerate(spans) if span is not None], dtype=np.int64)
        size = self.processing.n_best_size
        starts = inside[np.argsort(-start[inside], kind="stable")[:size]]
        ends = inside[np.argsort(-end[inside], kind="stable")[:size]]
        length = ends[None, :] - starts[:, None] + 1
        fits = (length >= 1) & (length <= self.processing.max_answer_length)
        score = np.where(fits, start[starts][:, None] + end[ends][None, :], -np.inf)
        if not fits.any():
            return -np.inf, ""
        i, j = np.unravel_index(int(score.argmax()), score.shape)
        first, last = spans[starts[i]], spans[ends[j]]
        assert first is not None
        assert last is not None
        return float(score[i, j]), context[first[0] : last[1]].strip()

    def score(self, predictions: Predictions, examples: Examples) -> Scores:
        if not examples.supervised:
            raise DataError("these rows have no answers to score against", file=examples.rows.file)
        right = [[text for _, text in answers] for answers in self.answers(examples)]
        pairs = list(zip(predictions.values, right, strict=True))
        rows = {
            "f1": np.array([squad.f1(given, wanted) for given, wanted in pairs]),
            "exact": np.array([squad.exact(given, wanted) for given, wanted in pairs]),
        }
        return Scores({name: float(values.mean()) for name, values in rows.items()}, rows)

    def resampled(self, scores: Scores, counts: Array) -> dict[str, Array]:
        total = counts.sum(axis=1)
        return {name: counts @ values / total for name, values in scores.per_row.items()}


def tokens_of(
    answer: Answer | None, spans: Sequence[tuple[int, int] | None]
) -> tuple[int, int] | None:
    """The first and last token of an answer; None where the window does not hold all of it.

    >>> tokens_of((4, "is it"), [None, (0, 3), (4, 6), (7, 9), None])
    (2, 3)
    """
    if answer is None:
        return None
    text = answer[1]
    begin = answer[0] + len(text) - len(text.lstrip())  # no token is of a space alone
    stop = answer[0] + len(text.rstrip())
    inside = [(i, span) for i, span in enumerate(spans) if span is not None]
    if not inside or inside[0][1][0] > begin or inside[-1][1][1] < stop:
        return None
    covered = [i for i, (first, last) in inside if last > begin and first < stop]
    return (covered[0], covered[-1]) if covered else None


def _encoded(
    group: list[int], questions: list[str], contexts: list[str], processor: Any,
    limit: int | None, stride: int,
) -> list[Window]:  # fmt: skip
    encoded = processor(
        [questions[i] for i in group], [contexts[i] for i in group],
        truncation="only_second" if limit is not None else False, max_length=limit, stride=stride,
        return_overflowing_tokens=limit is not None, return_offsets_mapping=True,
    )  # fmt: skip
    offsets = encoded.pop("offset_mapping")
    owners = encoded.pop("overflow_to_sample_mapping", range(len(group)))
    found = []
    for i, owner in enumerate(owners):
        parts = encoded.sequence_ids(i)
        spans = [
            (int(span[0]), int(span[1])) if part == 1 else None
            for part, span in zip(parts, offsets[i], strict=True)
        ]
        inputs = {name: encoded[name][i] for name in encoded}
        found.append(Window(group[owner], inputs, spans))
    return found


def _special_token(inputs: Feature, processor: Any) -> int:
    """Where a window points that has no answer: at the model's first special token."""
    for token in (processor.cls_token_id, processor.bos_token_id):
        if token is not None and token in inputs["input_ids"]:
            return int(inputs["input_ids"].index(token))
    return 0


def _answers(value: Any, text: Sequence[str], start: Sequence[str]) -> list[Answer]:
    """Answers from ``{"text": […], "answer_start": […]}`` or a list of such with one each."""
    if isinstance(value, list):
        return [answer for item in value for answer in _answers(item, text, start)]
    fields = mapping(value)
    listed, starts = texts(_field(fields, text)), numbers(_field(fields, start))
    if len(listed) != len(starts):
        raise Unfit(f"{len(starts)} starts for {len(listed)} answers")
    return list(zip(starts, listed, strict=True))


def _field(fields: Mapping[str, Any], names: Sequence[str]) -> Any:
    for name in names:
        if name in fields:
            return fields[name]
    raise Unfit(
        f"the answers lack the field '{names[0]}'",
        f"they have {', '.join(fields) or 'none'}; columns names them",
    )


def _check_answer(role: str, start: int, text: str, context: str) -> None:
    if not text.strip():
        raise UnfitRow(role, "an answer is empty", "a question without answers has none: []")
    there = context[start : start + len(text)] if start >= 0 else ""
    if there == text:
        return
    place = context.find(text)
    hint = f"it begins at {place}" if place >= 0 else "the context does not have it"
    if place >= 0 and len(context[:place].encode()) == start:
        hint += "; answer_start counts characters, not bytes"
    raise UnfitRow(
        role, f"the answer {text!r:.60} is not in the context at {start}: there is {there!r:.60}",
        hint,
    )  # fmt: skip
