"""Dealing and separating, alone."""

from __future__ import annotations

from collections import Counter

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.batches.dealing import deal
from luthier.batches.repair import separate

CHECKS = settings(max_examples=200, deadline=None, derandomize=True)


def kinds_of(sizes: list[int]) -> np.ndarray:
    return np.repeat(np.arange(len(sizes)), sizes)


@CHECKS
@given(st.integers(2, 9), st.integers(1, 6), st.data())
def test_a_kind_gets_a_batch_once(batches: int, layers: int, data: st.DataObject) -> None:
    sizes = data.draw(st.lists(st.integers(1, batches), min_size=1, max_size=40))
    kinds = kinds_of(sizes)[: batches * layers]
    dealt = deal(kinds, [batches] * layers, (1,))
    assert len(set(zip(kinds.tolist(), dealt.tolist(), strict=True))) == len(kinds)
    assert set(dealt.tolist()) <= set(range(batches))
    sizes_dealt = Counter(dealt.tolist()).values()
    assert max(sizes_dealt) - min([*sizes_dealt, *[0] * (batches > len(kinds))]) <= 1


@CHECKS
@given(st.integers(1, 6), st.integers(1, 5), st.integers(0, 4), st.data())
def test_a_smaller_last_batch(full: int, wide: int, narrow: int, data: st.DataObject) -> None:
    """The first layers have one batch more, as where the rows do not fill the last batch."""
    layers = [full + 1] * wide + [full] * narrow
    sizes = data.draw(st.lists(st.integers(1, full), min_size=1, max_size=40))
    kinds = kinds_of(sizes)[: sum(layers)]
    dealt = deal(kinds, layers, (2,))
    placed = [(k, b) for k, b in zip(kinds.tolist(), dealt.tolist(), strict=True) if b >= 0]
    assert len(set(placed)) == len(placed) == len(kinds)


def test_what_finds_no_batch_is_left_out() -> None:
    dealt = deal(np.zeros(5, dtype=np.int64), [3, 3], (3,))
    assert sorted(dealt.tolist()) == [-1, -1, 0, 1, 2]


@CHECKS
@given(st.lists(st.tuples(st.integers(-1, 9), st.integers(-1, 9)), min_size=4, max_size=60))
def test_separating_keeps_rows_and_sizes(pairs: list[tuple[int, int]]) -> None:
    codes = np.array([(a, b if b != a else -1) for a, b in pairs], dtype=np.int32)
    n = len(codes)
    batch, order = np.arange(n) % max(2, n // 4), np.arange(n)
    before = batch.copy()
    separate(batch, codes, order, 5)
    assert sorted(order.tolist()) == list(range(n))
    assert (batch[batch >= 0] == before[batch >= 0]).all()
    for number in range(max(2, n // 4)):
        held = codes[order[batch == number]]
        shared = held[held >= 0].tolist()
        assert len(shared) == len(set(shared))


def test_separating_finds_the_only_way() -> None:
    """Two batches, two rows that clash: one must go to the other batch."""
    codes = np.array([[0, 5], [1, 5], [2, -1], [3, -1]], dtype=np.int32)
    batch, order = np.array([0, 0, 1, 1]), np.arange(4)
    separate(batch, codes, order, 1)
    assert (batch == [0, 0, 1, 1]).all()
    assert {0, 1} != set(order[:2].tolist()) != {2, 3}
