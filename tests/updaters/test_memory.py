"""Which rows a memory keeps, how likely, and that it can be saved and read again."""

import numpy as np
import pytest
import torch
from scipy.stats import chisquare

from luthier.updaters.memory import (
    MEMORIES,
    GreedyBalanced,
    Herding,
    Infinite,
    Reservoir,
    SlidingWindow,
    herded,
)


def of(kind: str, size: int, seed: int = 0):
    return MEMORIES[kind](size, seed)


def offer_in_pieces(memory, rows, labels=None, pieces=(1, 7, 3, 20)):
    start = 0
    while start < len(rows):
        for piece in pieces:
            part = slice(start, start + piece)
            memory.offer(rows[part], None if labels is None else labels[part])
            start += piece


def test_every_row_is_as_likely_in_a_reservoir() -> None:
    counts = np.zeros(30)
    repeats = 4000
    for seed in range(repeats):
        memory = Reservoir(6, seed)
        offer_in_pieces(memory, np.arange(30))
        counts[memory.rows] += 1
    assert counts.sum() == 6 * repeats
    assert chisquare(counts).pvalue > 1e-4


def test_pairs_of_rows_are_as_likely_in_a_reservoir() -> None:
    """Not only each row: a reservoir that kept neighbours together would pass the test above."""
    counts = np.zeros((8, 8))
    for seed in range(6000):
        memory = Reservoir(2, seed)
        memory.offer(np.arange(8))
        one, other = sorted(memory.rows)
        counts[one, other] += 1
    assert chisquare(counts[np.triu_indices(8, 1)]).pvalue > 1e-4


def test_the_first_row_that_overflows_is_admitted_with_probability_size_over_n() -> None:
    admitted = 0
    for seed in range(4000):
        memory = Reservoir(4, seed)
        memory.offer(np.arange(4))
        slots, _ = memory.offer(np.array([4]))
        admitted += len(slots)
    assert admitted / 4000 == pytest.approx(4 / 5, abs=0.03)


@pytest.mark.parametrize("kind", ["reservoir", "sliding_window", "infinite"])
def test_pieces_do_not_matter(kind) -> None:
    rows = np.arange(100)
    whole, parts = of(kind, 9), of(kind, 9)
    whole.offer(rows)
    offer_in_pieces(parts, rows)
    assert sorted(whole.rows) == sorted(parts.rows)


@pytest.mark.parametrize("kind", sorted(MEMORIES))
def test_a_saved_memory_goes_on_as_if_nothing_had_happened(kind) -> None:
    labels = np.arange(200) % 7
    one = of(kind, 20, seed=3)
    one.offer(np.arange(100), labels[:100])
    one.note("scores", np.arange(len(one)), torch.arange(len(one))[:, None].float())
    two = of(kind, 20, seed=99)
    two.restore(one.state())
    for memory in (one, two):
        memory.offer(np.arange(100, 200), labels[100:])
    assert dict(zip(one.rows.tolist(), one.labels.tolist(), strict=True)) == dict(
        zip(two.rows.tolist(), two.labels.tolist(), strict=True)
    )
    assert one.seen == two.seen == 200


@pytest.mark.parametrize("kind", sorted(MEMORIES))
def test_what_was_noted_stays_with_its_row(kind) -> None:
    memory = of(kind, 15)
    rng = np.random.default_rng(0)
    for start in range(0, 300, 10):
        rows = np.arange(start, start + 10)
        slots, places = memory.offer(rows, rows % 3)
        values = torch.from_numpy(rows[places])[:, None].float() * 2
        memory.note("twice", slots, values)
        drawn = memory.draw(5, start)
        assert torch.equal(
            memory.noted("twice", drawn)[:, 0], torch.from_numpy(memory.rows[drawn]).float() * 2
        )
        if rng.random() < 0.2:
            saved = memory.state()
            memory = of(kind, 15)
            memory.restore(saved)


def test_the_window_has_the_last_rows_whatever_its_size_was() -> None:
    memory = SlidingWindow(5)
    offer_in_pieces(memory, np.arange(13))
    smaller, larger = SlidingWindow(3), SlidingWindow(8)
    smaller.restore(memory.state())
    assert sorted(smaller.rows) == [10, 11, 12]
    larger.restore(memory.state())
    larger.offer(np.arange(13, 18))
    assert sorted(larger.rows) == list(range(10, 18))


def test_greedy_balance_with_few_of_a_class() -> None:
    memory = GreedyBalanced(10)
    labels = np.array([0] * 50 + [1] * 3 + [2] * 50)
    offer_in_pieces(memory, np.arange(len(labels)), labels)
    assert np.bincount(memory.labels).tolist() in ([4, 3, 3], [3, 3, 4])


def test_rows_without_classes_are_balanced_as_by_a_reservoir() -> None:
    one, other = GreedyBalanced(5, seed=4), Reservoir(5, seed=4)
    for memory in (one, other):
        memory.offer(np.arange(60))
    assert one.rows.tolist() == other.rows.tolist()


def test_infinite_keeps_all() -> None:
    memory = Infinite()
    offer_in_pieces(memory, np.arange(77))
    assert memory.rows.tolist() == list(range(77))


def test_no_room_no_rows() -> None:
    for kind in ("reservoir", "sliding_window", "greedy_balanced", "herding"):
        memory = of(kind, 0)
        assert len(memory.offer(np.arange(10), np.zeros(10, dtype=int))[0]) == 0
        assert memory.draw(4, 0).size == 0


@pytest.mark.parametrize("size", [40, 1000])
def test_a_draw_is_without_repeats_and_its_key_decides(size) -> None:
    memory = Reservoir(size)
    memory.offer(np.arange(size))
    drawn = [memory.draw(16, step) for step in range(300)]
    assert all(len(set(d.tolist())) == 16 for d in drawn)
    assert memory.draw(16, 5).tolist() == drawn[5].tolist() != drawn[6].tolist()
    if size == 40:
        assert chisquare(np.bincount(np.concatenate(drawn), minlength=40)).pvalue > 1e-4


def test_herding_against_a_slow_oracle() -> None:
    features = torch.randn(12, 4, generator=torch.Generator().manual_seed(1)).double()
    normed = [f / f.norm() for f in features]
    mean = sum(normed) / 12
    mean = mean / mean.norm()
    chosen: list[int] = []
    for k in range(1, 6):
        gaps = {
            i: float(
                (mean - (sum((normed[j] for j in chosen), normed[i] * 0) + normed[i]) / k).norm()
            )
            for i in range(12)
            if i not in chosen
        }
        chosen.append(min(gaps, key=gaps.__getitem__))
    assert herded(features, 5).tolist() == chosen


def test_herding_shares_the_room_between_classes() -> None:
    memory = Herding(6)
    labels = np.array([0] * 10 + [1] * 2)
    memory.choose(np.arange(100, 112), labels, torch.randn(12, 3))
    assert np.bincount(memory.labels).tolist() == [3, 2]
    assert set(memory.rows[memory.labels == 1]) == {110, 111}


def test_a_memory_of_less_than_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="-1"):
        Reservoir(-1)
