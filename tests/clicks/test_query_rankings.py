"""Sessions of a query as one ranking, against slow loops."""

from __future__ import annotations

import numpy as np
import pytest

from luthier.clicks.click_models import PositionBased
from luthier.clicks.query_rankings import relevance_by_query, to_query_rankings
from luthier.clicks.simulate import Collection, simulate
from luthier.data import load_dataset
from luthier.errors import DataError
from luthier.spec import CSVOptions

PAIRS = [(f"word{i} word{i % 7}", f"text {i} of word{i} and word{i % 3}") for i in range(30)]


@pytest.fixture(scope="module")
def log():
    people = PositionBased.eta_decay(5)
    return simulate(Collection.of_pairs(PAIRS), people, sessions=3000, results=5, noise=1.0)


@pytest.mark.parametrize("strength", [0.0, 2.0])
def test_clicks_over_looks(log, strength):
    people = PositionBased.eta_decay(5)
    p = np.array(people.examination)[log.sessions.positions - 1]
    queries, items, found = relevance_by_query(log.sessions, log.clicked, p, strength=strength)
    usual = log.clicked.sum() / p.sum()
    s = log.sessions
    for q, item, value in list(zip(queries, items, found, strict=True))[::17]:
        at = [i for i in range(len(s.owner))
              if s.query_codes[s.owner[i]] == q and s.item_codes[i] == item]  # fmt: skip
        expected = (sum(log.clicked[i] for i in at) + strength * usual) / (
            sum(p[i] for i in at) + strength
        )
        assert value == pytest.approx(expected)


def test_inverse_propensities_find_what_positions_hide(log):
    people = PositionBased.eta_decay(5)
    p = np.array(people.examination)[log.sessions.positions - 1]
    truth = relevance_by_query(log.sessions, log.attraction)[2]
    weighted = relevance_by_query(log.sessions, log.clicked, p)[2]
    naive = relevance_by_query(log.sessions, log.clicked)[2]
    assert abs((weighted - truth).mean()) < 0.02  # right in the mean, whatever stood where
    assert (naive - truth).mean() < -0.05
    assert (naive - truth)[truth > 0.5].mean() < -0.1 < (weighted - truth)[truth > 0.5].mean()


def test_a_row_a_query(log, tmp_path):
    by_query = relevance_by_query(log.sessions, log.clicked)
    items = {f"d{i}": text for i, (_, text) in enumerate(PAIRS)}
    file = to_query_rankings(log.sessions, by_query, items, tmp_path / "q.arrow")
    found = load_dataset(file, CSVOptions(), tmp_path / "cache")
    queries = found.texts("query", range(len(found)))
    assert len(set(queries)) == len(queries) <= 30
    shown = found.shown([0])
    code = log.sessions.query_texts.index(queries[0])
    mine = by_query[2][by_query[0] == code]
    np.testing.assert_allclose(shown.relevance, np.maximum(mine - mine.mean(), 0))
    with pytest.raises(DataError, match="items have no text"):
        to_query_rankings(log.sessions, by_query, {}, tmp_path / "no.arrow")
