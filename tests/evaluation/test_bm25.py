"""BM25 against the formula, written out."""

from __future__ import annotations

import math

import numpy as np
import pytest

from luthier.errors import DataError
from luthier.evaluation.bm25 import _Weights, bm25_evaluation, words
from luthier.evaluation.ranking import Relevance
from luthier.evaluation.sets import RetrievalSet, ScoredSet


def oracle(query, documents):
    """Robertson and Zaragoza 2009, with Lucene's idf."""
    bags = [words(document) for document in documents]
    mean = sum(map(len, bags)) / len(bags)
    scores = []
    for bag in bags:
        score = 0.0
        for word in words(query):
            df = sum(word in other for other in bags)
            if not df:
                continue
            idf = math.log(1 + (len(bags) - df + 0.5) / (df + 0.5))
            tf = bag.count(word)
            score += idf * tf / (tf + 1.5 * (1 - 0.75 + 0.75 * len(bag) / mean))
        scores.append(score)
    return scores


def retrieval_set(queries, documents, relevant):
    own = np.full(len(queries), -1)
    return RetrievalSet(tuple(queries), tuple(documents), Relevance.of_lists(relevant), own)


def test_scores_equal_the_formula():
    rng = np.random.default_rng(0)
    vocabulary = [f"w{i}" for i in range(30)]
    documents = [" ".join(rng.choice(vocabulary, rng.integers(1, 12))) for _ in range(40)]
    weights = _Weights(documents)
    for _ in range(30):
        query = " ".join(rng.choice([*vocabulary, "unknown"], 4))
        np.testing.assert_allclose(weights.scores(query), oracle(query, documents), rtol=1e-5)


def test_it_finds_words_and_nothing_else():
    documents = ["the cat sat", "a dog ran", "the Zürich CAT"]
    found = bm25_evaluation(
        retrieval_set(["zürich", "dog", "bird"], documents, [[2], [1], [0]]), k=2
    )
    assert found.per_query["reciprocal_rank"].tolist() == [1.0, 1.0, 1 / 3]
    assert found.top[0, 0] == 2


def test_documents_without_words():
    found = bm25_evaluation(retrieval_set(["a"], ["!!!", "???"], [[0]]))
    assert found.per_query["reciprocal_rank"].tolist() == [0.5]


def test_twice_the_same():
    rng = np.random.default_rng(1)
    documents = [" ".join(rng.choice(list("abcdefgh"), 5)) for _ in range(50)]
    queries = [" ".join(rng.choice(list("abcdefgh"), 3)) for _ in range(20)]
    one, two = (
        bm25_evaluation(retrieval_set(queries, documents, [[i] for i in range(20)]))
        for _ in range(2)
    )
    np.testing.assert_array_equal(one.top, two.top)
    assert one.metrics == two.metrics


def test_scored_pairs_are_refused():
    with pytest.raises(DataError, match="BM25"):
        bm25_evaluation(ScoredSet(("a",), ("b",), np.zeros(1)))
