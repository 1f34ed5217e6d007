"""Clicks as rankings, and hard negatives mined for them, against slow loops."""

from __future__ import annotations

import numpy as np
import pytest

from luthier.clicks.conversion import convert
from luthier.clicks.mining import mine
from luthier.clicks.rankings import to_rankings
from luthier.clicks.sessions import Sessions
from luthier.data import load_dataset
from luthier.errors import DataError
from luthier.spec import CSVOptions

ITEMS = {name: f"text of {name}" for name in "abcdefgh"}


def sessions():
    return Sessions.of(
        [
            {"session": "1", "query": "red", "items": ["a", "b", "c"], "clicks": [1]},
            {"session": "2", "query": "blue", "items": ["c", "d"], "clicks": []},
            {"session": "3", "query": "blue", "items": ["d", "e", "a"], "clicks": [0, 2]},
            {"session": "4", "query": "green", "items": ["f", "a"], "clicks": [0]},
        ]
    )


def read(file, folder):
    return load_dataset(file, CSVOptions(), folder / "cache")


def lists_of(dataset):
    found = []
    for row in range(len(dataset)):
        shown = dataset.shown([row])
        names = [t.removeprefix("text of ") for t in dataset.catalogue.texts("text", shown.items)]
        found.append((dataset.texts("query", [row])[0], names, shown.relevance.tolist()))
    return found


def test_a_row_a_session_with_a_click(tmp_path):
    file = to_rankings(convert(sessions()), ITEMS, tmp_path / "r.arrow")
    found = read(file, tmp_path)
    assert lists_of(found) == [
        ("red", ["a", "b", "c"], [0, 1, 0]),
        ("blue", ["d", "e", "a"], [1, 0, 1]),
        ("green", ["f", "a"], [1, 0]),
    ]
    assert set(found.mapping) == {"query", "items", "relevance"}


def test_sessions_without_a_click_stand_with_one_of_their_query(tmp_path):
    inputs = convert(sessions(), not_irrelevant_only=False)
    found = read(to_rankings(inputs, ITEMS, tmp_path / "r.arrow"), tmp_path)
    assert len(found) == 3
    shown = found.shown([1])
    names = [t.removeprefix("text of ") for t in found.catalogue.texts("text", shown.items)]
    assert dict(zip(names, shown.relevance, strict=True)) == {"d": 1, "e": 0, "a": 1, "c": 0}
    flagged = [n for n, f in zip(names, shown.irrelevant, strict=True) if f]
    assert flagged == ["c"]  # d is there as well, clicked: once, as relevant as at its best
    pairs = inputs.pairs()
    expected = {(int(p), int(n)) for p, n in zip(pairs.positive, pairs.negative, strict=True)}
    assert len(expected) == 2 + 2 * 1 + 2 * 2 + 1


def test_weights_and_scores_and_grades_pass_through(tmp_path):
    log = sessions()
    weights = np.arange(1.0, len(log.owner) + 1)
    scores = np.linspace(0, 1, len(log.owner))
    graded = convert(log, grades={"click": 2.5}).weighted(weights)
    found = read(to_rankings(graded, ITEMS, tmp_path / "r.arrow", scores=scores), tmp_path)
    shown = found.shown(np.arange(3))
    kept = np.flatnonzero(graded.kept)
    np.testing.assert_array_equal(shown.weight, weights[kept])
    np.testing.assert_allclose(shown.score, scores[kept])
    assert set(shown.relevance) == {0.0, 2.5}


def test_short_dwell_is_worth_less(tmp_path):
    rows = [{"session": "1", "query": "q", "items": ["a", "b"], "clicks": [0, 1],
             "event_dwells": [5.0, 60.0]}]  # fmt: skip
    inputs = convert(Sessions.of(rows), short_dwell_s=30.0)
    found = read(to_rankings(inputs, ITEMS, tmp_path / "r.arrow"), tmp_path)
    assert lists_of(found) == [("q", ["a", "b"], [0, 1])]


def test_what_is_missing_is_told(tmp_path):
    with pytest.raises(DataError, match="1 items have no text, such as 'f'"):
        to_rankings(convert(sessions()), {**ITEMS, "f": ""}, tmp_path / "r.arrow")
    nothing = Sessions.of([{"session": "1", "query": "q", "items": ["a"], "clicks": []}])
    with pytest.raises(DataError, match="no session has anything relevant"):
        to_rankings(convert(nothing), ITEMS, tmp_path / "r.arrow")
    assert not (tmp_path / "r.arrow").exists()


def test_many_sessions_are_written_in_parts(tmp_path, monkeypatch):
    monkeypatch.setattr("luthier.clicks.rankings._TOGETHER", 2)
    whole = lists_of(read(to_rankings(convert(sessions()), ITEMS, tmp_path / "r.arrow"), tmp_path))
    assert len(whole) == 3


# --- hard negatives ----------------------------------------------------------------------------


def mined_slowly(inputs, queries, names, items, count, margin):
    log, found = inputs.sessions, []
    for q in range(len(log.query_texts)):
        clicked = {
            log.item_names[log.item_codes[i]]
            for i in range(len(log.owner))
            if inputs.relevance[i] > 0 and log.query_codes[log.owner[i]] == q
        }
        near = {
            name: float(np.dot(queries[q], v) / np.linalg.norm(queries[q]) / np.linalg.norm(v))
            for name, v in zip(names, items, strict=True)
        }
        if not clicked & set(names):
            found.append([])
            continue
        limit = max(near[name] for name in clicked if name in near) - margin
        left = [n for n in names if n not in clicked and near[n] <= limit]
        found.append(sorted(left, key=lambda n: -near[n])[:count])
    return found


@pytest.mark.parametrize(("count", "margin"), [(1, 0.0), (3, 0.2), (5, 0.8), (20, 0.0)])
def test_mining_against_loops(count, margin):
    inputs, g = convert(sessions(), not_irrelevant_only=False), np.random.default_rng(count)
    queries = g.normal(size=(3, 4))
    items = g.normal(size=(len(ITEMS), 4))
    mined = mine(inputs, queries, list(ITEMS), items, count=count, margin=margin)
    places, _ = mined.of(np.arange(3))
    names = [[mined.names[p] for p in row] for row in places]
    assert names == mined_slowly(inputs, queries, list(ITEMS), items, count, margin)


def test_mined_items_are_appended_once(tmp_path):
    inputs, g = convert(sessions()), np.random.default_rng(0)
    log = inputs.sessions
    queries, items = g.normal(size=(3, 4)), g.normal(size=(len(ITEMS), 4))
    mined = mine(inputs, queries, list(ITEMS), items, count=4, margin=0.0)
    scores = np.zeros(len(log.owner))
    file = to_rankings(inputs, ITEMS, tmp_path / "r.arrow", scores=scores, mined=mined)
    found = read(file, tmp_path)
    plain = lists_of(read(to_rankings(inputs, ITEMS, tmp_path / "p.arrow"), tmp_path))
    slow = mined_slowly(inputs, queries, list(ITEMS), items, 4, 0.0)
    grown = 0
    for (query, names, relevance), (_, before, y) in zip(lists_of(found), plain, strict=True):
        more = [n for n in slow[log.query_texts.index(query)] if n not in before]
        assert names == before + more
        assert relevance == y + [0.0] * len(more)
        grown += len(more)
    assert grown > 0
    near = found.shown(np.arange(3)).score
    assert (near != 0).sum() == grown
