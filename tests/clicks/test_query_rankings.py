"""Sessions of a query as one ranking, against slow loops."""

from __future__ import annotations

import numpy as np
import pytest

from luthier.clicks.click_models import PositionBased
from luthier.clicks.query_rankings import known_by_query, relevance_by_query, to_query_rankings
from luthier.clicks.simulate import Collection, simulate
from luthier.data import load_dataset
from luthier.errors import DataError
from luthier.spec import CSVOptions

PAIRS = [(f"word{i} word{i % 7}", f"text {i} of word{i} and word{i % 3}") for i in range(30)]


@pytest.fixture(scope="module")
def log():
    people = PositionBased.eta_decay(5)
    return simulate(Collection.of_pairs(PAIRS), people, sessions=3000, results=5, noise=1.0)


@pytest.mark.parametrize("strength", [0.0, 5.0])
def test_clicks_over_looks(log, strength):
    p = looks(log)
    found = relevance_by_query(log.sessions, log.clicked, p, strength=strength)
    s = log.sessions
    of_query = s.query_codes[s.owner]
    for q, item, value, error in list(zip(*fields(found), strict=True))[::17]:
        own = [i for i in range(len(s.owner)) if of_query[i] == q]
        at = [i for i in own if s.item_codes[i] == item]
        usual = sum(log.clicked[i] for i in own) / sum(p[i] for i in own)
        looked = sum(p[i] for i in at) + strength
        expected = (sum(log.clicked[i] for i in at) + strength * usual) / looked
        assert value == pytest.approx(expected)
        assert error == pytest.approx((expected / looked) ** 0.5)


def test_inverse_propensities_find_what_positions_hide(log):
    truth = known_by_query(log.sessions, log.attraction).relevance
    weighted = relevance_by_query(log.sessions, log.clicked, looks(log), strength=0).relevance
    naive = relevance_by_query(log.sessions, log.clicked, strength=0).relevance
    assert abs((weighted - truth).mean()) < 0.02  # right in the mean, whatever stood where
    assert (naive - truth).mean() < -0.05
    assert (naive - truth)[truth > 0.5].mean() < -0.1 < (weighted - truth)[truth > 0.5].mean()


def test_what_is_known_is_the_mean_and_sure(log):
    known = known_by_query(log.sessions, log.attraction)
    apart = np.minimum(abs(known.relevance - 0.1), abs(known.relevance - 0.9))
    assert apart.max() < 1e-9
    assert not known.error.any()


def test_certainty_leaves_out_what_chance_clicked():
    people = PositionBased.eta_decay(5)
    log = simulate(Collection.of_pairs(PAIRS), people, sessions=20_000, results=5, noise=1.0)
    found = relevance_by_query(log.sessions, log.clicked, looks(log))
    relevant = known_by_query(log.sessions, log.attraction).relevance > 0.5

    def right(certainty: float) -> float:
        """The share of what is taken for relevant that is."""
        values = found.above_mean(certainty)
        return float(values[relevant].sum() / values.sum())

    assert right(0.0) < right(2.0)
    assert right(2.0) > 0.95
    assert (found.above_mean(2.0)[relevant] > 0).mean() > 0.9


def looks(log):
    people = PositionBased.eta_decay(5)
    return np.array(people.examination)[log.sessions.positions - 1]


def fields(found):
    return found.queries, found.items, found.relevance, found.error


def test_a_row_a_query(log, tmp_path):
    by_query = relevance_by_query(log.sessions, log.clicked)
    items = {f"d{i}": text for i, (_, text) in enumerate(PAIRS)}
    file = to_query_rankings(log.sessions, by_query, items, tmp_path / "q.arrow")
    found = load_dataset(file, CSVOptions(), tmp_path / "cache")
    queries = found.texts("query", range(len(found)))
    assert len(set(queries)) == len(queries) <= 30
    shown = found.shown([0])
    code = log.sessions.query_texts.index(queries[0])
    np.testing.assert_allclose(shown.relevance, by_query.above_mean(2.0)[by_query.queries == code])
    mine = by_query.relevance[by_query.queries == code]
    np.testing.assert_allclose(
        by_query.above_mean()[by_query.queries == code], np.maximum(mine - mine.mean(), 0)
    )
    with pytest.raises(DataError, match="items have no text"):
        to_query_rankings(log.sessions, by_query, {}, tmp_path / "no.arrow")
