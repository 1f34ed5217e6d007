"""BM25 beside the encoder: what plain word matching gives on the same queries.

Lucene's variant with k1 = 1.5 and b = 0.75 (the defaults of bm25s; Robertson and Zaragoza
2009), over case-folded words without stop words removed or stems cut, so that it means the
same in every language.
"""

from __future__ import annotations

import re
import time
import unicodedata
from collections.abc import Iterable

import numpy as np

from luthier.errors import DataError
from luthier.evaluation.measure import Evaluation, retrieval_evaluation
from luthier.evaluation.ranking import Floats, rank
from luthier.evaluation.sets import EvaluationSet, RetrievalSet

K1, B = 1.5, 0.75
_WORD = re.compile(r"\w+")


def words(text: str) -> list[str]:
    """The words of a text: NFKC, case-folded, runs of letters, digits and underscores.

    >>> words("It's the Straße No.5")
    ['it', 's', 'the', 'strasse', 'no', '5']
    """
    return _WORD.findall(unicodedata.normalize("NFKC", text).casefold())


def bm25_evaluation(evaluation_set: EvaluationSet, *, k: int = 10) -> Evaluation:
    """BM25's retrieval metrics on a retrieval set. Raises DataError for scored pairs."""
    if not isinstance(evaluation_set, RetrievalSet):
        raise DataError("BM25 ranks documents, so it has no result for scored pairs")
    started = time.perf_counter()
    weights = _Weights(evaluation_set.index)
    texts = evaluation_set.queries

    def block(start: int, stop: int) -> tuple[Floats, Floats]:
        scores = np.stack([weights.scores(text) for text in texts[start:stop]])
        return scores, scores.max(axis=1, initial=0)

    found = rank(block, evaluation_set.relevance, len(evaluation_set.index), evaluation_set.own, k)
    seconds = time.perf_counter() - started
    return retrieval_evaluation(evaluation_set, found, k, "bm25", seconds)


class _Weights:
    """An index that bm25s made: for each word the documents that hold it, with weights."""

    def __init__(self, documents: Iterable[str]) -> None:
        import bm25s

        vocabulary: dict[str, int] = {}
        ids = [[vocabulary.setdefault(w, len(vocabulary)) for w in words(d)] for d in documents]
        self.n, self.vocabulary = len(ids), vocabulary
        self.index = None
        if vocabulary:  # bm25s cannot index texts without a single word
            self.index = bm25s.BM25(k1=K1, b=B, method="lucene")
            self.index.index((ids, vocabulary), show_progress=False)

    def scores(self, query: str) -> Floats:
        """The score of every document: float32 [n]."""
        ids = [self.vocabulary[w] for w in words(query) if w in self.vocabulary]
        if self.index is None or not ids:
            return np.zeros(self.n, dtype=np.float32)
        found: Floats = self.index.get_scores_from_ids(ids)
        return found
