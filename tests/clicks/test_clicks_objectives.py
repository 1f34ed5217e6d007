"""What the objectives make of clicks, from the log to the loss: weights, doubly robust relevance,
and a split by query that keeps what is measured apart from what trains."""

import math
from collections import defaultdict

import numpy as np
import pyarrow as pa
import pytest

from luthier.clicks import FineTuningSettings
from luthier.clicks.builder import ranking_data
from luthier.clicks.click_models import PositionBased
from luthier.clicks.confidence import calculate_confidences
from luthier.clicks.conversion import convert
from luthier.clicks.items_sets import TextItemSetManager
from luthier.clicks.preparing import estimate, prepare
from luthier.clicks.proof import _retrieval_set
from luthier.clicks.query_rankings import relevance_by_query
from luthier.clicks.simulate import Collection, simulate
from luthier.clicks.splits import split_sessions
from luthier.clicks.weights import doubly_robust
from luthier.errors import SpecError
from luthier.runs.connection import Home

CLIP = 0.3
VARIANT = (True, 1.0)


@pytest.fixture(scope="module")
def log():
    pairs = [(f"word{i} word{i % 7}", f"text {i} of word{i}") for i in range(40)]
    collection = Collection.of_pairs(pairs)
    made = simulate(collection, PositionBased.eta_decay(5), sessions=900, results=5, noise=2.0)
    return made, dict(zip(collection.names, collection.documents, strict=True))


@pytest.fixture
def home(tmp_path):
    found = Home(f"sqlite:///{tmp_path}/luthier.db", store=str(tmp_path / "store"))
    yield found
    found.close()


def _prepared(log, home, objective, by="query", variant=VARIANT, **settings):
    made, catalogue = log
    data = ranking_data(split_sessions(made.sessions, by=by), catalogue, TextItemSetManager())
    debiasing = estimate(data.train, objective, CLIP)
    settings = FineTuningSettings(loss_func="ListwiseSoftmaxLoss", **settings)
    found = prepare(data, [variant], settings, debiasing, home, validation=0.1, seed=1)
    return data, debiasing, found


def _rows(home, source):
    with pa.memory_map(str(home.store.blob(source.sha256))) as file:
        return pa.ipc.open_file(file).read_all().to_pylist()


def _estimated(inputs, propensities, clip):
    """The doubly robust relevance by loops: query and item → value."""
    sessions, cells = inputs.sessions, defaultdict(list)
    for m in range(len(sessions.item_codes)):
        key = sessions.query_codes[sessions.owner[m]], sessions.item_codes[m]
        p = propensities.values[sessions.positions[m] - 1]
        cells[key].append((inputs.relevance[m], p))
    of_query = defaultdict(lambda: [0.0, 0.0])
    for (query, _), seen in cells.items():
        of_query[query][0] += sum(c for c, _ in seen)
        of_query[query][1] += sum(p for _, p in seen)
    found = {}
    for (query, item), seen in cells.items():
        usual = of_query[query][0] / of_query[query][1]
        r = (sum(c for c, _ in seen) + 5 * usual) / (sum(p for _, p in seen) + 5)
        found[query, item] = np.mean([r + (c - p * r) / max(p, clip) for c, p in seen])
    return found


def test_doubly_robust_relevance_is_its_definition(log):
    sessions = log[0].sessions
    propensities = estimate(sessions, "dr", CLIP).propensities
    inputs = convert(sessions, not_irrelevant_only=False)
    expected = _estimated(inputs, propensities, CLIP)
    found = doubly_robust(inputs, propensities, CLIP)
    for m in range(len(found.relevance)):
        owner = sessions.owner[m]
        value = max(0.0, expected[sessions.query_codes[owner], sessions.item_codes[m]])
        assert found.relevance[m] == pytest.approx(0.0 if inputs.irrelevant[owner] else value)
    # nearer to the truth than clicks, which are the positions' as well
    known = ~inputs.irrelevant[sessions.owner]
    truth, clicks = log[0].attraction[known], log[0].clicked[known]
    first, last = (sessions.positions[known] == k for k in (1, 5))
    bias = found.relevance[known] - truth
    assert abs(bias[last].mean() - bias[first].mean()) < abs(
        (clicks[last].mean() - truth[last].mean()) - (clicks[first].mean() - truth[first].mean())
    )


def _loss(rows):
    """Of these rows with random vectors: the card's loss, and the same by loops."""
    import torch

    from luthier.objectives.lists import Lists
    from luthier.objectives.objective import Embedded
    from luthier.registry import find

    rng = np.random.default_rng(5)
    names = sorted({item for row in rows for item in row["items"]})
    items = rng.standard_normal((len(names), 6))
    queries = rng.standard_normal((len(rows), 6))
    for row in rows:
        row.setdefault("weight", [1.0] * len(row["items"]))
    lists = ("items", "relevance", "weight")
    flat = [
        (n, names.index(item), y, w)
        for n, row in enumerate(rows)
        for item, y, w in zip(*(row[name] for name in lists), strict=True)
    ]
    owner, code, relevance, weight = (torch.tensor(column) for column in zip(*flat, strict=True))
    lists = Lists(owner, code, relevance, weight, torch.arange(len(rows)))
    loss = find("loss", "ListwiseSoftmaxLoss").load()(in_batch_negatives=False, similarity="dot")
    ours = loss(Embedded((torch.tensor(queries), torch.tensor(items)), lists=lists)).item()
    slow = 0.0
    for n, row in enumerate(rows):
        scores = [items[names.index(i)] @ queries[n] / 0.05 for i in row["items"]]
        most = max(scores)
        whole = most + math.log(sum(math.exp(s - most) for s in scores))
        for s, y, w in zip(scores, row["relevance"], row["weight"], strict=True):
            slow += y * w * (whole - s)
    return ours, slow / len(rows)


def test_what_an_objective_makes_of_clicks_reaches_the_loss(log, home):
    losses = {}
    for objective in ("naive", "ips", "dr"):
        data, debiasing, found = _prepared(log, home, objective)
        rows = _rows(home, found.data.parts[VARIANT].train)
        if objective == "naive":
            assert all("weight" not in row for row in rows)
        if objective == "ips":
            weights = {w for row in rows for w in row["weight"]}
            expected = 1 / np.maximum(debiasing.propensities.values, CLIP)
            assert sorted(weights) == pytest.approx(sorted(set(expected.round(12))), abs=1e-9)
        if objective == "dr":
            inputs = convert(found.train, not_irrelevant_only=False)
            values = _estimated(inputs, debiasing.propensities, CLIP)
            names, texts = inputs.sessions.item_names, data.catalogue
            of_text = {
                (inputs.sessions.query_texts[q], texts[names[i]]): v for (q, i), v in values.items()
            }
            for row in rows[:50]:
                told = [max(0.0, of_text[row["query"], item]) for item in row["items"]]
                assert row["relevance"] == pytest.approx(told)
            assert debiasing.to_dict()["doubly_robust"] is True
        rows = [row for row in rows if max(row["relevance"]) > 0][:20]
        ours, slow = _loss(rows)
        assert ours == pytest.approx(slow, rel=1e-5)
        losses[objective] = ours
    assert len({round(value, 3) for value in losses.values()}) == 3


def test_a_list_of_all_sessions_of_a_query(log, home):
    data, debiasing, found = _prepared(log, home, "ips", rows="queries", certainty=0.5)
    rows = _rows(home, found.data.parts[VARIANT].train)
    assert {key for row in rows for key in row} == {"query", "items", "relevance"}
    train = found.train
    looked = debiasing.propensities.at(train.positions)
    relevance = relevance_by_query(train, train.grades(), looked)
    texts = data.catalogue
    expected = {}
    for q, i, value in zip(
        relevance.queries, relevance.items, relevance.above_mean(0.5), strict=True
    ):
        expected.setdefault(train.query_texts[q], {})[texts[train.item_names[i]]] = value
    expected = {q: items for q, items in expected.items() if max(items.values()) > 0}
    told = {row["query"]: dict(zip(row["items"], row["relevance"], strict=True)) for row in rows}
    assert told.keys() == expected.keys()
    assert len(rows) == len(told) > 20
    for query, items in told.items():
        assert items == pytest.approx(expected[query])


def test_items_that_the_catalogue_lacks_are_in_no_list_of_a_query(log, home):
    made, catalogue = log
    few = {name: text for name, text in catalogue.items() if name != "d3"}
    found = _prepared((made, few), home, "naive", rows="queries")[2]
    rows = _rows(home, found.data.parts[VARIANT].train)
    assert rows
    assert all(catalogue["d3"] not in row["items"] for row in rows)


@pytest.mark.parametrize(
    ("objective", "variant", "said"),
    [("dr", VARIANT, "dr is of single sessions"), ("ips", (True, 0.5), "every impression"),
     ("ips", (False, 1.0), "every impression")],
)  # fmt: skip
def test_lists_of_queries_take_nothing_that_is_of_single_sessions(
    log, home, objective, variant, said
):
    with pytest.raises(SpecError, match=said):
        _prepared(log, home, objective, variant=variant, rows="queries")


@pytest.mark.parametrize(
    "words",
    [{"negatives": "skip_above"}, {"mined_negatives": 3},
     {"confidence_calculator": calculate_confidences}],
)  # fmt: skip
def test_settings_of_single_sessions_are_refused_for_queries(words):
    with pytest.raises(SpecError, match="rows"):
        FineTuningSettings(loss_func="ListwiseSoftmaxLoss", rows="queries", **words)
    with pytest.raises(SpecError, match="certainty is of rows='queries'"):
        FineTuningSettings(loss_func="ListwiseSoftmaxLoss", certainty=1.0)


def test_an_objective_that_there_is_not(log):
    with pytest.raises(SpecError, match="is ips, dr or naive, not 'ipss'"):
        estimate(log[0].sessions, "ipss", CLIP)


def test_a_split_by_query_keeps_the_queries_apart_to_the_end(log, home):
    """What is measured, what validates and what trains have no query in common, and the overlap
    of items is told; a split by time shares queries, and says so."""
    data, _, found = _prepared(log, home, "naive")
    told = data.overlap.to_dict()
    assert (data.by, told["queries"]["known"]) == ("query", 0)
    assert told["items"]["known"] > 0
    measured, _ = _retrieval_set(data, 1, [])
    trains = {row["query"] for row in _rows(home, found.data.parts[VARIANT].train)}
    validates = {row["query"] for row in _rows(home, found.data.eval)}
    asked = {row["anchor"] for row in _rows(home, found.data.queries)}
    assert validates == asked
    assert not set(measured.queries) & (trains | validates)
    assert not trains & validates
    assert min(map(len, (trains, validates, measured.queries))) > 0
    data, _, _ = _prepared(log, home, "naive", by="time")
    told = data.overlap.to_dict()["queries"]
    shared = set(data.train.query_texts) & set(data.test.query_texts)
    assert told["known"] == len(shared) > 0
