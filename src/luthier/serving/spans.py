"""Answers to questions: spans of a context, which is read in windows."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from luthier.errors import DataError
from luthier.serving.family import Row, TaskModel


@dataclass(frozen=True)
class _Span:
    """start, end: in characters of the context. logit: of the first token plus the last's."""

    logit: float
    start: int
    end: int


class Spans(TaskModel):
    """The likeliest span of a context over all windows, and its share among the n best.

    With ``unanswerable`` the answer is "" where the special token at a window's start is
    likelier than any span, in the window where it is least so (SQuAD 2.0).
    """

    def batch(self, rows: Sequence[Row], params: Mapping[str, Any]) -> list[dict[str, Any]]:
        features = self.windows(rows)
        of = features.pop("overflow_to_sample_mapping").tolist()
        offsets = features.pop("offset_mapping").tolist()
        logits = self.logits(features)
        starts, ends = logits.start_logits.float().cpu(), logits.end_logits.float().cpu()
        spans: list[list[_Span]] = [[] for _ in rows]
        nulls: list[float] = [float("inf")] * len(rows)
        for window, row in enumerate(of):
            inside = torch.tensor([part == 1 for part in features.sequence_ids(window)])
            spans[row] += self.spans(starts[window], ends[window], inside, offsets[window])
            first = int(features["attention_mask"][window].argmax())  # padding may come first
            null = float(starts[window, first] + ends[window, first])
            nulls[row] = min(nulls[row], null)
        return [self.best(row, s, n) for row, s, n in zip(rows, spans, nulls, strict=True)]

    def windows(self, rows: Sequence[Row]) -> Any:
        """Tokens of question and context, several windows a row where it is long."""
        questions = [row["question"].strip() for row in rows]
        limit = self.limit
        longest = max(len(ids) for ids in self.processor(questions).input_ids)
        special = self.processor.num_special_tokens_to_add(pair=True)
        room = None if limit is None else limit - longest - special
        if room is not None and room < 1:
            lengths = [len(ids) for ids in self.processor(questions).input_ids]
            message = f"fills the {limit} tokens of the model; none is left for the context"
            raise DataError(message, row=lengths.index(longest), column="question")
        stride = self.options["doc_stride"]
        return self.tokens(
            questions,
            [row["context"] for row in rows],
            truncation="only_second" if room is not None else False,
            stride=stride if room is None else min(stride, room // 2),
            return_overflowing_tokens=True,
            return_offsets_mapping=True,
        )

    def spans(
        self, starts: Tensor, ends: Tensor, inside: Tensor, offsets: list[list[int]]
    ) -> list[_Span]:
        """The n likeliest spans of one window. starts, ends: logits [tokens]."""
        length = min(self.options["max_answer_length"], len(offsets))
        n = len(offsets)
        outside = torch.full((n,), float("-inf")).masked_fill(inside, 0.0)
        sums = (starts + outside)[:, None] + (ends + outside)[None, :]
        band = torch.ones(n, n, dtype=torch.bool).triu().tril(length - 1)
        sums = sums.masked_fill(~band, float("-inf")).flatten()
        best, places = sums.topk(min(self.options["n_best_size"], n))
        return [
            _Span(float(logit), offsets[place // n][0], offsets[place % n][1])
            for logit, place in zip(best, places.tolist(), strict=True)
            if logit > float("-inf")
        ]

    def best(self, row: Row, spans: list[_Span], null: float) -> dict[str, Any]:
        """The output columns of one row."""
        likeliest: dict[tuple[int, int], _Span] = {}  # one span may be seen in several windows
        for span in sorted(spans, key=lambda span: -span.logit):
            likeliest.setdefault((span.start, span.end), span)
        ranked = list(likeliest.values())[: self.options["n_best_size"]]
        logits = [span.logit for span in ranked]
        if self.options["unanswerable"] or not ranked:
            logits.append(null)
        shares = torch.tensor(logits).softmax(0).tolist()
        winner = max(range(len(logits)), key=logits.__getitem__)
        if winner == len(ranked):
            details = {"score": shares[winner], "start": None, "end": None}
            return {"prediction": "", "scores": json.dumps(details)}
        span = ranked[winner]
        details = {"score": shares[winner], "start": span.start, "end": span.end}
        text = row["context"][span.start : span.end]
        return {"prediction": text, "scores": json.dumps(details)}
