"""How much of a text another one has: ROUGE (rouge-score), BLEU and chrF (sacrebleu).

ROUGE is the F-measure, 0 to 1, with Porter's stemmer; words are those of rouge-score in English
text, and in other scripts the letters and digits of Unicode, which rouge-score would drop. For
rougeLsum sentences end at . ! ? or a line's end: no model is downloaded to find them.
BLEU (13a tokens, exponential smoothing) and chrF (6-grams, β = 2) are of the whole corpus, in
percent, with sacrebleu's defaults.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from luthier.errors import MissingExtra
from luthier.tasks.scores import Array, Scores

ROUGE = ("rougeL", "rouge1", "rouge2", "rougeLsum")
_WORD = re.compile(r"[^\W_]+")
_SENTENCE = re.compile(r"(?<=[.!?])\s+")


class _Words:
    """The tokenizer that rouge-score is given."""

    def __init__(self) -> None:
        from nltk.stem.porter import PorterStemmer  # type: ignore[import-untyped]

        self._stemmer = PorterStemmer()

    def tokenize(self, text: str) -> list[str]:
        words = _WORD.findall(text.lower())
        return [
            self._stemmer.stem(word) if len(word) > 3 and word.isascii() else word for word in words
        ]


def rouge(given: Sequence[str], wanted: Sequence[str]) -> Scores:
    """rougeL, rouge1, rouge2, rougeLsum: means over the rows; per_row has each, float64 [n]."""
    try:
        from rouge_score import rouge_scorer  # type: ignore[import-untyped]
    except ImportError as error:
        raise MissingExtra("scoring summaries", "tasks") from error
    scorer = rouge_scorer.RougeScorer(list(ROUGE), tokenizer=_Words())
    found = [
        scorer.score(_sentences(ours), _sentences(theirs))
        for theirs, ours in zip(given, wanted, strict=True)
    ]
    rows = {name: np.array([row[name].fmeasure for row in found]) for name in ROUGE}
    return Scores({name: float(values.mean()) for name, values in rows.items()}, rows)


def resampled_rouge(scores: Scores, counts: Array) -> dict[str, Array]:
    """The metrics of resamples ``counts`` [b, n], each [b]."""
    total = counts.sum(axis=1)
    return {name: counts @ scores.per_row[name] / total for name in ROUGE}


def translation(given: Sequence[str], wanted: Sequence[str]) -> Scores:
    """bleu and chrf; per_row has the counts that both are made of, float64 [n, …]."""
    rows = {}
    for name, metric in _metrics().items():
        statistics = metric._extract_corpus_statistics(list(given), [list(wanted)])
        rows[name] = np.array(statistics, dtype=np.float64)
    found = {name: _of_sums(name, values.sum(axis=0)) for name, values in rows.items()}
    return Scores(found, rows)


def resampled_translation(scores: Scores, counts: Array) -> dict[str, Array]:
    """The metrics of resamples ``counts`` [b, n], each [b]."""
    return {
        name: np.array([_of_sums(name, row) for row in counts @ scores.per_row[name]])
        for name in ("bleu", "chrf")
    }


def _of_sums(name: str, sums: Array) -> float:
    """A metric from the counts of all rows together."""
    metric = _metrics()[name]
    return float(metric._compute_score_from_stats([round(value) for value in sums]).score)


def _metrics() -> dict[str, Any]:
    """sacrebleu's metrics. Their statistics are what its own bootstrap sums up; the methods
    have no public name, so the tests hold them against ``corpus_score``."""
    if not _MADE:
        try:
            from sacrebleu.metrics.bleu import BLEU
            from sacrebleu.metrics.chrf import CHRF
        except ImportError as error:
            raise MissingExtra("scoring translations", "tasks") from error
        _MADE.update(bleu=BLEU(), chrf=CHRF())
    return _MADE


_MADE: dict[str, Any] = {}


def _sentences(text: str) -> str:
    """One sentence a line, as rougeLsum reads them."""
    return "\n".join(_SENTENCE.split(text.strip()))
