"""Equal texts have equal numbers, whatever they are and however Arrow holds them."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.batches.arithmetic import numbers, permutation
from luthier.batches.text_codes import repeated_codes, text_hashes

words = st.lists(st.text(max_size=40) | st.sampled_from(["", "a", "a" * 8, "a" * 9]), max_size=50)


@settings(derandomize=True, deadline=None)
@given(words)
def test_hashes_tell_texts_apart(texts: list[str]) -> None:
    found = text_hashes([pa.array(texts, pa.string())], len(texts))
    for text, value in zip(texts, found, strict=True):
        assert [v for t, v in zip(texts, found, strict=True) if t == text] == (
            [value] * texts.count(text)
        )
    assert len(set(found.tolist())) == len(set(texts))


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.string_view()])
def test_the_layout_does_not_matter(kind: pa.DataType) -> None:
    texts = ["", "a", "ab", "naïve café", "x" * 7, "x" * 8, "x" * 9, "y" * 1000, "a"]
    plain = text_hashes([pa.array(texts, pa.string())], 9)
    cut = pa.array(["gone", *texts], kind).slice(1)
    assert (text_hashes([cut.slice(0, 4), cut.slice(4)], 9) == plain).all()


def test_prefixes_and_zeros_differ() -> None:
    texts = ["a", "a\0", "a\0\0", "a" * 8, "a" * 8 + "\0", "\0", ""]
    assert len(set(text_hashes([pa.array(texts)], len(texts)).tolist())) == len(texts)


@settings(derandomize=True, deadline=None)
@given(st.lists(st.tuples(*[st.sampled_from("abcdefgh")] * 3), min_size=1, max_size=30))
def test_codes_are_of_texts_that_several_rows_have(rows: list[tuple[str, str, str]]) -> None:
    columns = [[pa.array(column)] for column in zip(*rows, strict=True)]
    codes = repeated_codes(columns, len(rows))
    name: dict[int, str] = {}
    for i, row in enumerate(rows):
        for j, text in enumerate(row):
            others = any(text in other for k, other in enumerate(rows) if k != i)
            if text in row[:j]:
                assert codes[i, j] == -1
            elif others:
                assert name.setdefault(int(codes[i, j]), text) == text
                assert codes[i, j] >= 0
            else:
                assert codes[i, j] == -1


def test_random_numbers_look_random() -> None:
    bits = np.unpackbits(numbers(7, 4096).view(np.uint8)).reshape(4096, 64)
    assert abs(bits.mean(axis=0) - 0.5).max() < 0.05
    lag = np.corrcoef(numbers(7, 4096)[:-1].astype(float), numbers(7, 4096)[1:].astype(float))
    assert abs(lag[0, 1]) < 0.05


def test_permutations_are_uniform() -> None:
    """Chi-squared of the 24 orders of 4 over 4800 keys: 99.9% below 49.7."""
    orders = [tuple(permutation(key * 7919, 4).tolist()) for key in range(4800)]
    counts = np.array([orders.count(order) for order in set(orders)])
    assert len(counts) == 24
    assert ((counts - 200) ** 2 / 200).sum() < 49.7
