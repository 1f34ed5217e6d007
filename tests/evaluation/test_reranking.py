"""nDCG and reciprocal ranks of searches against slow loops, and what is measured at all."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from luthier.data import load_dataset
from luthier.errors import DataError
from luthier.evaluation.measure import Evaluation, evaluate
from luthier.evaluation.reranking import metrics
from luthier.evaluation.sets import evaluation_set
from luthier.evaluation.significance import compare
from luthier.spec import CSVOptions


def slowly(relevance, scores, k):
    order = sorted(range(len(scores)), key=lambda i: (-scores[i], relevance[i]))
    dcg = sum((2 ** relevance[i] - 1) / math.log2(r + 1) for r, i in enumerate(order[:k], 1))
    best = sorted(relevance, reverse=True)
    ideal = sum((2**y - 1) / math.log2(r + 1) for r, y in enumerate(best[:k], 1))
    first = next(r for r, i in enumerate(order, 1) if relevance[i] > 0)
    return dcg / ideal, 1 / first


@pytest.mark.parametrize("k", [1, 3, 10])
def test_against_loops(k):
    g = np.random.default_rng(k)
    sizes = g.integers(2, 14, 30)
    rows = np.repeat(np.arange(30), sizes)
    relevance = g.integers(0, 4, len(rows)).astype(float)
    relevance[np.searchsorted(rows, np.arange(30))] = 1.0
    scores = np.round(g.random(len(rows)), 1)  # with ties
    found = metrics(rows, relevance, scores, 30, k)
    for row in range(30):
        at = rows == row
        ndcg, reciprocal = slowly(relevance[at].tolist(), scores[at].tolist(), k)
        assert found["ndcg_at_k"][row] == pytest.approx(ndcg)
        assert found["reciprocal_rank"][row] == pytest.approx(reciprocal)


def searches(tmp_path, rows):
    file = tmp_path / "searches.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    return load_dataset(file, CSVOptions(), tmp_path / "cache")


def one_hot(texts):
    """The first letter decides: a query finds what begins alike."""
    return np.eye(26)[[ord(text[0]) - 97 for text in texts]]


ROWS = [
    {"query": f"{c} query", "items": ["z other", f"{c} item"], "relevance": [y, 1 - y]}
    for i, c in enumerate("abcdefghijklmnopqrstuvwx")
    for y in [float(i % 4 == 0)]
]


def test_both_sides_have_their_encoder(tmp_path):
    found = evaluation_set(searches(tmp_path, ROWS))
    assert len(found) == 24
    good = evaluate(one_hot, found)
    assert good.metrics["reciprocal_rank"] == pytest.approx((18 + 6 / 2) / 24)
    other = evaluate(one_hot, found, encode_index=lambda texts: np.ones((len(texts), 26)))
    assert other.metrics["reciprocal_rank"] == pytest.approx(0.5)  # ties count against the model
    same = Evaluation.from_dict(json.loads(json.dumps(good.to_dict())))
    assert same.metrics == good.metrics
    said = compare(other, good)
    assert said.main == "ndcg_at_k"
    assert said.verdict == "better"
    assert said.counts.wins == 18


def test_searches_that_tell_nothing_are_left_out(tmp_path):
    alike = {"query": "a", "items": ["b", "c"], "relevance": [1.0, 1.0]}
    nothing = {"query": "a", "items": ["b", "c"], "relevance": [0.0, 0.0]}
    found = evaluation_set(searches(tmp_path, [*ROWS, alike, nothing]))
    assert len(found) == 24
    assert "2 of 26 searches cannot tell rankings apart" in found.notes[0]
    sample = evaluation_set(searches(tmp_path, ROWS), max_queries=5)
    assert len(sample) == 5
    with pytest.raises(DataError, match="no search of the evaluation data"):
        evaluation_set(searches(tmp_path, [alike, nothing]))
