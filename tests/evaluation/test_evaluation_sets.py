"""What is asked, what is searched and what is relevant, for every form of data."""

from __future__ import annotations

import json

import numpy as np
import pytest

from luthier.errors import DataError, TrainingError
from luthier.evaluation.measure import Evaluation, evaluate, middle_ranks
from luthier.evaluation.sets import RetrievalSet, ScoredSet, evaluation_set


def answers(found: RetrievalSet) -> dict[str, list[str]]:
    return {
        query: [found.index[row] for row in found.relevance.of(i)]
        for i, query in enumerate(found.queries)
    }


def vectors(table):
    """An encoder that looks each text up."""
    return lambda texts: np.array([table[text] for text in texts], dtype=np.float32)


# --- retrieval ---------------------------------------------------------------------------------


def test_pairs_collapse_duplicates_and_gather_all_positives(dataset):
    found = evaluation_set(
        dataset(
            [
                {"anchor": "q1", "positive": "a"},
                {"anchor": "q2", "positive": "b"},
                {"anchor": "q1", "positive": "c"},
                {"anchor": "q1", "positive": "a"},
                {"anchor": "q3", "positive": "a"},
            ]
        )
    )
    assert found.queries == ("q1", "q2", "q3")
    assert found.index == ("a", "b", "c")
    assert answers(found) == {"q1": ["a", "c"], "q2": ["b"], "q3": ["a"]}
    assert found.own.tolist() == [-1, -1, -1]


def test_triplets_add_their_negatives_to_the_index(dataset):
    rows = [
        {"anchor": "q1", "positive": "a", "negative_1": "x", "negative_2": "b"},
        {"anchor": "q2", "positive": "b", "negative_1": "y", "negative_2": "x"},
    ]
    found = evaluation_set(dataset(rows))
    assert sorted(found.index) == ["a", "b", "x", "y"]
    assert answers(found) == {"q1": ["a"], "q2": ["b"]}


def test_more_texts_to_search(dataset):
    pairs = dataset([{"anchor": "q", "positive": "a"}, {"anchor": "r", "positive": "b"}])
    more = dataset([{"anchor": "-", "positive": "c"}, {"anchor": "--", "positive": "a"}])
    assert evaluation_set(pairs, index=more).index == ("a", "b", "c")


def test_a_query_that_is_in_the_index_does_not_find_itself(dataset):
    """A chain: each text is the positive of the one before."""
    rows = [{"anchor": a, "positive": b} for a, b in ("ab", "bc", "cd")]
    chain = dataset(rows)
    assert evaluation_set(chain).own.tolist() == [-1, 0, 1]
    assert evaluation_set(chain, exclude_self=False).own.tolist() == [-1, -1, -1]
    table = {"a": [1, 0], "b": [1, 0.1], "c": [1, 0.2], "d": [1, 0.3]}
    assert evaluate(vectors(table), evaluation_set(chain)).metrics["reciprocal_rank"] == 1.0
    alone = evaluate(vectors(table), evaluation_set(chain, exclude_self=False))
    assert alone.per_query["reciprocal_rank"].tolist() == [1.0, 0.5, 0.5]


def test_a_pair_of_one_text_twice_asks_nothing(dataset):
    rows = [{"anchor": "a", "positive": "a"}, {"anchor": "q", "positive": "b"}]
    found = evaluation_set(dataset(rows))
    assert found.queries == ("q",)
    assert found.notes == ("1 of 2 queries have nothing relevant and are left out",)
    with pytest.raises(DataError, match="no query has anything"):
        evaluation_set(dataset(rows[:1]))


def test_labelled_texts_find_their_label_and_not_themselves(dataset):
    rows = [("a1", "A"), ("b1", "B"), ("a2", "A"), ("b2", "B"), ("a3", "A"), ("alone", "C")]
    found = evaluation_set(dataset([{"text": t, "label": label} for t, label in rows]))
    assert answers(found) == {
        "a1": ["a2", "a3"], "a2": ["a1", "a3"], "a3": ["a1", "a2"], "b1": ["b2"], "b2": ["b1"],
    }  # fmt: skip
    assert "alone" in found.index
    assert [found.index[row] for row in found.own] == list(found.queries)


def test_labelled_index_data_is_matched_by_the_labels_names(dataset):
    """The codes of two files differ; the names are what counts."""
    queries = dataset([{"text": "q1", "label": "zebra"}, {"text": "q2", "label": "ant"}])
    index = dataset([{"text": "d1", "label": "ant"}, {"text": "d2", "label": "zebra"}])
    assert answers(evaluation_set(queries, index=index)) == {"q1": ["d2"], "q2": ["d1"]}
    pairs = dataset([{"anchor": "q", "positive": "a"}])
    with pytest.raises(DataError, match="labelled, but index_data is pairs"):
        evaluation_set(queries, index=pairs)


def test_a_sample_keeps_what_is_relevant_and_says_so(dataset):
    data = dataset([{"anchor": f"q{i}", "positive": f"d{i}"} for i in range(200)])
    found = evaluation_set(data, max_queries=20, max_index=50, seed=3)
    assert len(found.queries) == 20
    assert len(found.index) == 50
    assert all(found == [query.replace("q", "d")] for query, found in answers(found).items())
    assert found.notes == (
        "measured on a sample of 20 of 200 queries",
        "searched in a sample of 50 of 200 items: easier than all",
    )
    assert evaluation_set(data, max_queries=20, max_index=50, seed=3).id == found.id
    assert evaluation_set(data, max_queries=20, max_index=50, seed=4).id != found.id


def test_ids_tell_contents_apart(dataset):
    def set_of(*pairs):
        return evaluation_set(dataset([{"anchor": a, "positive": p} for a, p in pairs]))

    assert set_of(("q", "a"), ("r", "b")).id == set_of(("q", "a"), ("r", "b")).id
    assert set_of(("q", "a"), ("r", "b")).id != set_of(("q", "b"), ("r", "a")).id
    assert set_of(("q", "ab")).id != set_of(("qa", "b")).id


# --- scores and margins ------------------------------------------------------------------------


def test_scored_pairs_by_hand(dataset):
    rows = [
        {"sentence1": "x", "sentence2": "near", "score": 0.9},
        {"sentence1": "x", "sentence2": "far", "score": 0.1},
        {"sentence1": "x", "sentence2": "middle", "score": 0.5},
    ]
    found = evaluation_set(dataset(rows))
    assert isinstance(found, ScoredSet)
    table = {"x": [1, 0], "near": [2, 0], "far": [0, 3], "middle": [1, 1]}
    result = evaluate(vectors(table), found)
    assert result.per_query["similarity"] == pytest.approx([1, 0, 0.5**0.5])
    assert result.metrics["spearman"] == pytest.approx(1.0)
    assert result.metrics["pearson"] == pytest.approx(
        np.corrcoef([1, 0, 0.5**0.5], [0.9, 0.1, 0.5])[0, 1]
    )
    constant = evaluate(vectors({text: [1.0, 1.0] for text in table}), found)
    assert constant.metrics["spearman"] == pytest.approx(0.0, abs=1e-9)


def test_margins_by_hand(dataset):
    rows = [
        {"anchor": "x", "positive": "p", "negative": "n", "margin": 4.0},
        {"anchor": "x", "positive": "n", "negative": "p", "margin": -4.5},
    ]
    found = evaluation_set(dataset(rows))
    assert found.kind == "margin"
    result = evaluate(vectors({"x": [1, 2], "p": [3, 2], "n": [2, 1]}), found, distance="dot")
    assert result.per_query["similarity"].tolist() == [3.0, -3.0]
    assert result.metrics["mse"] == pytest.approx((1**2 + 1.5**2) / 2)


def test_scored_pairs_have_nothing_to_search(dataset):
    scored = dataset([{"sentence1": "a", "sentence2": "b", "score": 0.5}])
    with pytest.raises(DataError, match="index_data has no meaning"):
        evaluation_set(scored, index=scored)


def test_middle_ranks_equal_scipys():
    from scipy.stats import rankdata, spearmanr

    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 9, 60).astype(float), rng.integers(0, 5, 60).astype(float)
    np.testing.assert_array_equal(middle_ranks(x), rankdata(x))
    mine = np.corrcoef(middle_ranks(x), middle_ranks(y))[0, 1]
    assert mine == pytest.approx(spearmanr(x, y).statistic)


# --- the evaluation as data --------------------------------------------------------------------


def test_each_text_is_encoded_once(dataset):
    asked: list[str] = []

    def encode(texts):
        asked.extend(texts)
        return np.random.default_rng(0).normal(size=(len(texts), 4))

    rows = [{"anchor": "q", "positive": "a"}, {"anchor": "a", "positive": "q"}]
    evaluate(encode, evaluation_set(dataset(rows)))
    assert sorted(asked) == ["a", "q"]


def test_json_gives_back_the_same_numbers(dataset):
    data = dataset([{"anchor": f"q{i}", "positive": f"d{i % 7}"} for i in range(40)])
    rng = np.random.default_rng(0)
    result = evaluate(lambda texts: rng.normal(size=(len(texts), 3)), evaluation_set(data), k=9)
    again = Evaluation.from_dict(json.loads(json.dumps(result.to_dict(), allow_nan=False)))
    assert again.metrics == result.metrics
    for name, values in result.per_query.items():
        np.testing.assert_array_equal(again.per_query[name], values)
    np.testing.assert_array_equal(again.top, result.top)
    np.testing.assert_allclose(again.scores, result.scores, atol=1e-6)
    assert (again.set_id, again.k, again.distance) == (result.set_id, 9, "cosine")
    with pytest.raises(DataError, match="format 99"):
        Evaluation.from_dict({**result.to_dict(), "format": 99})


def test_an_encoder_of_the_wrong_shape_is_named(dataset):
    data = evaluation_set(dataset([{"anchor": "q", "positive": "a"}]))
    with pytest.raises(TrainingError, match=r"\(1, 3\) for 2 texts"):
        evaluate(lambda texts: np.ones((1, 3)), data)
