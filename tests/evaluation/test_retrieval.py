"""Ranks and metrics against slow plain-Python oracles that share no code with them."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.errors import TrainingError
from luthier.evaluation import ranking
from luthier.evaluation.ranking import Relevance, search
from luthier.evaluation.retrieval import METRICS, metrics

# --- oracles -----------------------------------------------------------------------------------


def order_of(query, index, relevant, own, distance):
    """Rows best first: score, then not relevant before relevant, then the lower row."""

    def score(row):
        item = index[row]
        dot = math.fsum(a * b for a, b in zip(query, item, strict=True))
        if distance == "dot":
            return dot
        if distance == "euclidean":
            return -math.fsum((a - b) ** 2 for a, b in zip(query, item, strict=True))
        sizes = math.sqrt(math.fsum(a * a for a in query) * math.fsum(b * b for b in item))
        return dot / sizes if sizes else 0.0

    rows = [row for row in range(len(index)) if row != own]
    return sorted(rows, key=lambda row: (-round(score(row), 9), row in relevant, row))


def metrics_of(order, relevant, k):
    """From a ranked list and a set, as the textbooks say it."""
    gains = [1 if row in relevant else 0 for row in order]
    found, precisions, reciprocal = 0, [], 0.0
    for place, gain in enumerate(gains, 1):
        if gain:
            found += 1
            precisions.append(found / place)
            reciprocal = reciprocal or 1 / place
    top = gains[:k]
    precision, recall = sum(top) / k, sum(top) / len(relevant)
    dcg = sum(gain / math.log2(place + 1) for place, gain in enumerate(top, 1))
    ideal = sum(1 / math.log2(place + 1) for place in range(1, min(k, len(relevant)) + 1))
    return {
        "average_precision": sum(precisions) / len(relevant),
        "dcg_at_k": dcg,
        "f1_score_at_k": 2 * precision * recall / (precision + recall) if sum(top) else 0.0,
        "hit_at_k": 1.0 if any(top) else 0.0,
        "ndcg_at_k": dcg / ideal,
        "precision_at_k": precision,
        "r_precision": sum(gains[: len(relevant)]) / len(relevant),
        "recall_at_k": recall,
        "reciprocal_rank": reciprocal,
    }


# --- properties --------------------------------------------------------------------------------


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_ranks_and_metrics_equal_the_oracle(data):
    """Small whole-number vectors make ties certain; their scores are exact in float32."""
    seed = data.draw(st.integers(0, 2**32 - 1))
    distance = data.draw(st.sampled_from(["cosine", "dot", "euclidean"]))
    k = data.draw(st.integers(1, 12))
    rng = np.random.default_rng(seed)
    q, n, d = int(rng.integers(1, 6)), int(rng.integers(2, 40)), int(rng.integers(1, 4))
    queries = rng.integers(-2, 3, (q, d)).astype(np.float64)
    index = rng.integers(-2, 3, (n, d)).astype(np.float64)
    own = np.where(rng.random(q) < 0.5, rng.integers(0, n, q), -1)
    lists = []
    for i in range(q):
        others = [row for row in range(n) if row != own[i]]
        lists.append(rng.choice(others, int(rng.integers(1, len(others) + 1)), False).tolist())
    relevance = Relevance.of_lists(lists)

    found = search(queries, index, relevance, own=own, k=k, distance=distance)
    per_query = metrics(found.ranks, relevance, k)

    assert set(per_query) == set(METRICS)
    for i in range(q):
        order = order_of(queries[i].tolist(), index.tolist(), set(lists[i]), own[i], distance)
        ranks = [place for place, row in enumerate(order, 1) if row in lists[i]]
        cut = slice(relevance.indptr[i], relevance.indptr[i + 1])
        assert found.ranks[cut].tolist() == ranks
        assert [row for row in found.top[i].tolist() if row >= 0] == order[:k]
        for name, value in metrics_of(order, set(lists[i]), k).items():
            assert per_query[name][i] == pytest.approx(value, abs=1e-12), name


@pytest.mark.parametrize("distance", ["cosine", "dot", "euclidean"])
def test_the_result_does_not_depend_on_the_blocks(distance, monkeypatch):
    rng = np.random.default_rng(1)
    queries = rng.normal(size=(50, 8)).astype(np.float32)
    index = rng.normal(size=(300, 8)).astype(np.float32)
    relevance = Relevance.of_lists([rng.choice(300, 40, False).tolist() for _ in range(50)])
    whole = search(queries, index, relevance, distance=distance)
    for size in (1, 7 * 8 * 300):
        monkeypatch.setattr(ranking, "BLOCK_BYTES", size)
        cut = search(queries, index, relevance, distance=distance)
        np.testing.assert_array_equal(cut.ranks, whole.ranks)
        np.testing.assert_array_equal(cut.top, whole.top)


def test_counting_and_sorting_agree(monkeypatch):
    rng = np.random.default_rng(2)
    queries, index = rng.normal(size=(9, 4)), rng.normal(size=(80, 4))
    relevance = Relevance.of_lists([rng.choice(80, 20, False).tolist() for _ in range(9)])
    monkeypatch.setattr(ranking, "COUNT_UP_TO", 0)
    sorted_ = search(queries, index, relevance).ranks
    monkeypatch.setattr(ranking, "COUNT_UP_TO", 80)
    np.testing.assert_array_equal(search(queries, index, relevance).ranks, sorted_)


# --- cases that matter -------------------------------------------------------------------------


def test_a_collapsed_model_ranks_what_is_relevant_last():
    """All texts on one point, but for the noise of float32: nothing is found."""
    rng = np.random.default_rng(0)
    point = rng.normal(size=384)
    noise = 1 + 1e-7 * rng.normal(size=(100, 384))
    index = (point * noise).astype(np.float32)
    relevance = Relevance.of_lists([[i] for i in range(20)])
    for distance in ("cosine", "dot", "euclidean"):
        found = search(point[None].repeat(20, 0), index, relevance, distance=distance)
        assert found.ranks.tolist() == [100] * 20, distance


def test_a_known_ranking():
    """Relevant at places 1, 3 and 6 of 6, cut at 5."""
    relevance = Relevance.of_lists([[0, 2, 5]])
    found = metrics(np.array([1, 3, 6]), relevance, 5)
    ideal = 1 + 1 / math.log2(3) + 0.5
    assert found["ndcg_at_k"][0] == pytest.approx(1.5 / ideal)
    assert found["average_precision"][0] == pytest.approx((1 + 2 / 3 + 3 / 6) / 3)
    assert found["r_precision"][0] == pytest.approx(2 / 3)
    assert found["precision_at_k"][0] == pytest.approx(0.4)


@pytest.mark.parametrize(
    ("distance", "expected"), [("cosine", 0.6), ("dot", 6.0), ("euclidean", math.sqrt(89))]
)
def test_shown_scores_are_the_distance_asked_for(distance, expected):
    found = search(np.array([[1.0, 0]]), np.array([[6.0, 8.0]]), Relevance.of_lists([[0]]), k=3,
                   distance=distance)  # fmt: skip
    assert found.scores[0, 0] == pytest.approx(expected)
    assert found.top.tolist() == [[0, -1, -1]]
    assert np.isnan(found.scores[0, 1:]).all()


def test_a_zero_vector_is_like_nothing():
    found = search(np.zeros((1, 2)), np.eye(2), Relevance.of_lists([[0]]))
    assert found.scores[0, :2].tolist() == [0.0, 0.0]
    assert found.ranks.tolist() == [2]


def test_vectors_that_are_not_finite_are_refused():
    index = np.ones((3, 2))
    index[1, 0] = np.nan
    with pytest.raises(TrainingError, match="1 of 3 texts") as caught:
        search(np.ones((1, 2)), index, Relevance.of_lists([[0]]))
    assert "learning_rate" in str(caught.value)


def test_memory_stays_far_below_the_whole_matrix():
    """2,000 queries x 20,000 items: 320 MB of keys and 160 MB of scores, were it whole."""
    import tracemalloc

    rng = np.random.default_rng(0)
    queries = rng.normal(size=(2_000, 4)).astype(np.float32)
    index = rng.normal(size=(20_000, 4)).astype(np.float32)
    relevance = Relevance.of_lists([[i] for i in range(2_000)])
    tracemalloc.start()
    search(queries, index, relevance)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 200e6
