"""Training inputs of sessions, beside slow plain Python, and the reference's numbers."""

import itertools
import math

import numpy as np
import pytest

from luthier.clicks.confidence import calculate_confidences, dummy_confidences
from luthier.clicks.conversion import convert, skipped_above, within_thresholds
from luthier.clicks.curriculum import ExamplesType, examples_order, phases
from luthier.clicks.rankers import RANKERS, find_ranker
from luthier.clicks.sessions import Sessions
from luthier.errors import DataError, NotFound


def _random_sessions(n=40, seed=0):
    rng = np.random.default_rng(seed)
    rows = []
    for s in range(n):
        size = int(rng.integers(1, 8))
        clicks = np.flatnonzero(rng.random(size) < 0.3).tolist() if s % 3 else []
        scores = np.sort(rng.random(size))[::-1].tolist()
        items = [f"d{i}" for i in rng.permutation(20)[:size]]
        rows.append({"session": f"s{s}", "query": f"q{s % 5}", "items": items, "scores": scores,
                     "clicks": clicks})  # fmt: skip
    return rows, Sessions.of(rows)


# --- confidences --------------------------------------------------------------------------------


def _slow_confidences(ranks, clicks, window_size):
    """The reference's loop, in plain Python."""
    n, found = len(ranks), []
    for i in range(n):
        low, high = max(0, i - window_size // 2), min(n, i + window_size // 2 + 1)
        mean = sum(ranks[low:high]) / (high - low) + 1e-9
        share = sum(clicks[low:high]) / (high - low)
        apart = abs(ranks[i] - mean) / mean
        position = math.exp(-3 * (i + 1) / n - 0.3) + 0.25
        if clicks[i]:
            found.append(((1 - apart) * share + (1 - share) * apart) * position)
        else:
            found.append(((1 - share) * (1 - apart) + share * apart) * position)
    return [(f - min(found)) / (max(found) - min(found) + 1e-9) for f in found]


#: What Embedding Studio's ``calculate_confidences`` gives, run with torch in float32.
GOLDEN = [
    ([0.9, 0.8, 0.7, 0.5, 0.2], [0, 1, 0, 0, 1], 3, [1.0, 0.0772, 0.5337, 0.3272, 0.0]),
    ([0.9, 0.8, 0.7, 0.5, 0.2], [1, 1, 0, 0, 0], 5, [1.0, 0.3953, 0.3163, 0.3498, 0.0]),
]


@pytest.mark.parametrize(("ranks", "clicks", "window", "expected"), GOLDEN)
def test_confidences_are_the_references(ranks, clicks, window, expected):
    found = calculate_confidences(
        np.array(ranks), np.array(clicks, float), window_size=window
    )  # fmt: skip
    np.testing.assert_allclose(found, expected, atol=6e-5)
    assert dummy_confidences(np.array(ranks), np.array(clicks, float)).tolist() == [1.0] * 5


@pytest.mark.parametrize("window", [2, 3, 4, 7, 30])
def test_confidences_of_many_lists_at_once(window):
    rows, sessions = _random_sessions()
    clicks = (sessions.grades() > 0).astype(float)
    found = calculate_confidences(sessions.scores, clicks, sessions.starts, window_size=window)
    for row, low, high in zip(rows, sessions.starts, sessions.starts[1:], strict=False):
        hit = [float(i in row["clicks"]) for i in range(high - low)]
        slow = _slow_confidences(row["scores"], hit, window)
        np.testing.assert_allclose(found[low:high], slow, atol=1e-9)


def test_confidences_that_cannot_be_are_refused():
    with pytest.raises(DataError, match="window_size is 1"):
        calculate_confidences(np.ones(3), np.ones(3), window_size=1)
    with pytest.raises(DataError, match="needs the score of every result"):
        calculate_confidences(np.array([1.0, np.nan]), np.ones(2))


# --- rankers ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", RANKERS)
def test_rankers_are_torchs_on_arrays_and_tensors(name):
    import torch

    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    query, items = rng.normal(size=(1, 8)), rng.normal(size=(5, 8))
    items[3] = 0.0
    q, i = torch.tensor(query), torch.tensor(items)
    expected = {
        "cosine": torch.nn.CosineSimilarity(dim=1, eps=1e-6)(q, i),
        "dot": i @ q[0],
        "euclidean": torch.cdist(q, i)[0],
    }[name].numpy()
    ranker, is_similarity = find_ranker(name)
    np.testing.assert_allclose(ranker(query, items), expected, atol=1e-12)
    np.testing.assert_allclose(ranker(query[0], items), expected, atol=1e-12)
    np.testing.assert_allclose(ranker(q, i).numpy(), expected, atol=1e-12)
    assert is_similarity is (name != "euclidean")


def test_an_unknown_ranker_is_refused():
    with pytest.raises(NotFound, match="did you mean 'cosine'"):
        find_ranker("cosin")


# --- inputs and pairs ---------------------------------------------------------------------------


@pytest.mark.parametrize("share", [1.0, 0.5, 0.2, 0.01])
def test_pairs_are_all_clicks_times_the_kept_non_clicks(share):
    rows, sessions = _random_sessions()
    inputs = convert(sessions, negative_downsampling=share, seed=3)
    found = inputs.pairs()
    expected = set()
    for row, low in zip(rows, sessions.starts, strict=False):
        clicked = {low + c for c in row["clicks"]}
        others = [j for j in range(low, low + len(row["items"])) if j not in clicked]
        kept = [j for j in others if inputs.kept[j]]
        if clicked:
            wanted = max(1, round(share * len(others))) if others else 0
            assert len(kept) == wanted
            expected |= set(itertools.product(clicked, kept))
        else:
            assert kept == []
    pairs = list(zip(found.positive.tolist(), found.negative.tolist(), strict=True))
    assert len(pairs) == len(set(pairs))
    assert set(pairs) == expected
    assert not found.of_irrelevant.any()


def test_what_is_sampled_follows_from_seed_and_epoch():
    _, sessions = _random_sessions(200)

    def kept(**more):
        return convert(sessions, negative_downsampling=0.5, **more).kept

    np.testing.assert_array_equal(kept(seed=1), kept(seed=1))
    assert (kept(seed=1) != kept(seed=2)).any()
    assert (kept(seed=1) != kept(seed=1, epoch=1)).any()


def test_items_of_sessions_without_clicks_are_negatives_when_asked():
    rows = [
        {"session": "1", "query": "a", "items": ["x", "y"], "clicks": [0]},
        {"session": "2", "query": "a", "items": ["z"]},  # goes with the first
        {"session": "3", "query": "b", "items": ["v", "w"]},  # with anyone
        {"session": "4", "query": "c", "items": ["t"], "clicks": [0], "irrelevant": True},
    ]
    sessions = Sessions.of(rows)
    inputs = convert(sessions, not_irrelevant_only=False)
    assert inputs.irrelevant.tolist() == [False, True, True, True]
    pairs = inputs.pairs()
    assert pairs.positive.tolist() == [0] * 5
    assert sorted(pairs.negative.tolist()) == [1, 2, 3, 4, 5]
    by_negative = dict(zip(pairs.negative.tolist(), pairs.of_irrelevant.tolist(), strict=True))
    assert by_negative == {1: False, 2: True, 3: True, 4: True, 5: True}
    assert convert(sessions).pairs().negative.tolist() == [1]
    assert inputs.rows(2) == {
        "session": "3", "query": "b", "items": ["v", "w"], "positions": [1, 2],
        "relevance": [0.0, 0.0], "confidence": [1.0, 1.0], "is_irrelevant": True,
    }  # fmt: skip


def test_a_session_without_clicks_goes_with_one_of_its_query():
    rows = [
        {"session": f"{i}", "query": f"q{i % 4}", "items": ["x", "y"],
         "clicks": [0] if i < 8 else []}
        for i in range(40)
    ]  # fmt: skip
    sessions = Sessions.of(rows)
    pairs = convert(sessions, not_irrelevant_only=False).pairs()
    owner, codes = sessions.owner, sessions.query_codes
    assert (codes[owner[pairs.positive]] == codes[owner[pairs.negative]]).all()
    assert len(pairs) == 8 + 32 * 2


def test_negatives_above_the_last_click():
    rows = [
        {"session": "1", "query": "a", "items": ["a", "b", "c", "d"], "clicks": [0, 2]},
        {"session": "2", "query": "a", "items": ["a", "b"]},
    ]
    sessions = Sessions.of(rows)
    clicked = sessions.grades() > 0
    assert skipped_above(sessions, clicked).tolist() == [True, True, False, False, True, True]
    assert convert(sessions, negatives="skip_above").pairs().negative.tolist() == [1, 1]


def test_a_pair_is_trusted_as_its_lesser_half_and_weights_multiply():
    _, sessions = _random_sessions()
    inputs = convert(sessions, confidence=calculate_confidences)
    pairs = inputs.pairs()
    c = inputs.confidence
    lesser = [min(c[p], c[n]) for p, n in zip(pairs.positive, pairs.negative, strict=True)]
    np.testing.assert_array_equal(pairs.confidence, lesser)
    doubled = inputs.weighted(np.full(len(c), 2.0)).pairs()
    np.testing.assert_allclose(doubled.confidence, 2 * pairs.confidence)


def test_thresholds_are_open_on_both_sides():
    import torch

    positive, negative = np.array([0.5, 0.5, 0.9, 0.2]), np.array([0.5, 0.3, 0.1, 0.9])
    assert within_thresholds(positive, negative, 0.25, 0.75).tolist() == [False, False, False, True]
    assert within_thresholds(positive, negative, 0.0, 0.5).tolist() == [False, True, False, False]
    exact = within_thresholds(np.array([0.75]), np.array([0.5]), 0.25, 1.0)
    assert not exact.any()
    tensors = within_thresholds(torch.tensor(positive), torch.tensor(negative), 0.0, 1.0)
    assert tensors.tolist() == [False, True, True, True]


def test_grades_of_types_and_dwell_times():
    row = {
        "session": "1", "query": "q", "items": ["a", "b", "c", "d"],
        "event_results": [0, 0, 1, 2, 3], "event_grades": [None, None, None, 0.25, None],
        "event_types": ["click", "purchase", "click", "click", "impression"],
        "event_dwells": [None, None, 3.0, 60.0, None],
    }  # fmt: skip
    sessions = Sessions.of([row])
    assert sessions.grades().tolist() == [3.0, 1.0, 0.25, 0.0]
    assert sessions.grades({"purchase": 9}).tolist() == [9.0, 1.0, 0.25, 0.0]
    assert sessions.grades(short_dwell_s=30).tolist() == [3.0, 0.0, 0.25, 0.0]
    assert sessions.grades(short_dwell_s=30, short_grade=0.1).tolist() == [3.0, 0.1, 0.25, 0.0]


@pytest.mark.parametrize(
    "words", [{"negative_downsampling": 0.0}, {"negative_downsampling": 1.5}, {"negatives": "x"}]
)
def test_conversions_that_cannot_be_are_refused(words):
    with pytest.raises(DataError):
        convert(_random_sessions()[1], **words)


# --- curriculum ---------------------------------------------------------------------------------


def test_phases_are_thirds_by_difference():
    _, sessions = _random_sessions(90)
    pairs = convert(sessions, not_irrelevant_only=False).pairs()
    scores = np.random.default_rng(1).normal(size=len(sessions.owner))
    apart = np.abs(pairs.differences(scores))
    order = [3, "medium_all", ExamplesType.hard_all, 6, 9, 10, 11]
    soft, medium, hard, soft_positive, soft_negative, negative, all_of = phases(
        pairs, pairs.differences(scores), order
    )
    assert apart[soft].max() <= apart[medium].min() <= apart[medium].max() <= apart[hard].min()
    assert sorted([*soft, *medium, *hard]) == all_of.tolist() == list(range(len(pairs)))
    assert sorted([*soft_positive, *soft_negative]) == soft.tolist()
    assert pairs.of_irrelevant[negative].all()
    assert len(negative) == pairs.of_irrelevant.sum() > 0


def test_a_phase_without_pairs_is_refused_with_the_reason():
    _, sessions = _random_sessions()
    pairs = convert(sessions).pairs()
    with pytest.raises(DataError, match="not_irrelevant_only=False"):
        phases(pairs, np.ones(len(pairs)), [11, 10])
    with pytest.raises(DataError, match="no type of examples is 12"):
        examples_order([12])
    assert examples_order([]) == (ExamplesType.all_examples,)
