"""Items in parts, as texts, and in other spellings."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.clicks.augmentation import (
    AugmentationsComposition,
    ChangeCases,
    Misspellings,
    augment_items,
    misspelt,
)
from luthier.clicks.preprocessing import DatasetFieldsNormalizer, line_from_dict
from luthier.clicks.splitters import (
    DummySentenceSplitter,
    NoSplitter,
    SeparatorSplitter,
    TokenGroupTextSplitter,
    aggregate,
    split_items,
)
from luthier.errors import DataError


class Letters:
    """A tokenizer whose tokens are pairs of letters within words."""

    model_max_length = 10

    def tokenize(self, text):
        return [word[i : i + 2] for word in text.split() for i in range(0, len(word), 2)]

    def num_special_tokens_to_add(self):
        return 2


@settings(max_examples=60, deadline=None)
@given(st.text(alphabet="abc. \n", max_size=80), st.integers(1, 9))
def test_no_part_is_too_long_and_no_letter_is_lost(text, most):
    splitter = TokenGroupTextSplitter(Letters(), DummySentenceSplitter(), most)
    parts = splitter(text)
    assert parts
    assert all(len(Letters().tokenize(part)) <= most for part in parts)
    assert "".join("".join(parts).split()) == "".join(text.split())


def test_parts_are_as_long_as_may_be():
    splitter = TokenGroupTextSplitter(Letters(), SeparatorSplitter(), 3)
    assert splitter("aa;bb;cc;dd;ee ff gg hh;i") == ["aa bb cc", "dd", "ee ff gg", "hh i"]
    assert TokenGroupTextSplitter(Letters(), NoSplitter()).max_tokens == 8
    whole = TokenGroupTextSplitter(Letters(), SeparatorSplitter(), 2, split_sentences=False)
    assert whole("aa bb cc;d") == ["aa bb cc", "d"]


def test_sentences_code_and_lists():
    text = 'One. Two! "Three?" Four\n1. first. item\n```py\nx = 1. y\n```\nEnd 3.5 kg.'
    assert DummySentenceSplitter()(text) == [
        "One.", "Two!", '"Three?', "Four", "1. first. item", "```py\nx = 1. y\n```", "End 3.5 kg.",
    ]  # fmt: skip


@pytest.mark.parametrize("how", ["mean", "max", "min"])
def test_what_parts_earned_goes_to_their_items(how):
    parts = split_items(["a;b;c", "d", "e;f"], SeparatorSplitter())
    assert parts.owner.tolist() == [0, 0, 0, 1, 2, 2]
    values = np.array([1.0, 2.0, 6.0, 4.0, 5.0, 0.0])
    expected = {"mean": [3, 4, 2.5], "max": [6, 4, 5], "min": [1, 4, 0]}[how]
    assert aggregate(values, parts, how).tolist() == expected
    vectors = np.stack([values, -values], axis=1)
    sign = {"mean": "mean", "max": "min", "min": "max"}[how]
    np.testing.assert_array_equal(
        aggregate(vectors, parts, how)[:, 1], -aggregate(values, parts, sign)
    )


def test_aggregations_that_cannot_be():
    parts = split_items(["a"], NoSplitter())
    with pytest.raises(DataError, match="mean, max or min"):
        aggregate(np.ones(1), parts, "sum")
    with pytest.raises(DataError, match="2 values of 1 parts"):
        aggregate(np.ones(2), parts)


def test_dicts_as_lines():
    item = {"b": 1, "a": "x", "c": None}
    assert line_from_dict(item) == "a: x b: 1"
    assert line_from_dict(item, ", ", ascending=False) == "b: 1, a: x"
    assert line_from_dict(item, order_fields=["b", "z"], field_names={"b": "B"}) == "B: 1"
    assert line_from_dict(item, order_fields=False) == "b: 1 a: x"
    with pytest.raises(DataError, match="column z"):
        line_from_dict(item, order_fields=["z"], ignore_missed=False)
    with pytest.raises(DataError, match="no name in field_names"):
        line_from_dict(item, field_names={"a": "A"}, ignore_missed=False)


def test_a_catalogue_by_id():
    normalizer = DatasetFieldsNormalizer("item", "item_id")
    assert normalizer([{"item": "x", "item_id": 1}, {"item": "x", "item_id": 1}]) == {"1": "x"}
    with pytest.raises(DataError, match="row 2, column item_id"):
        normalizer([{"item": "x", "item_id": 1}, {"item": "y", "item_id": "1"}])
    with pytest.raises(DataError, match=r"row 1, column item_id: the field lacks"):
        normalizer([{"item": "x"}])


def test_augmentations_follow_from_seed_and_text():
    spell = Misspellings(5, seed=1)
    text = "The quick brown fox jumps over the lazy dog"
    made = spell.transform(text)
    assert made[0] == text
    assert len(made) == 3
    assert (
        made == Misspellings(5, seed=1).transform(text) != Misspellings(5, seed=2).transform(text)
    )
    assert ChangeCases(0.4).transform("Ab cd") == ChangeCases(0.4).transform("Ab cd")
    assert len(ChangeCases(0.4).transform("Ab")) == 1
    assert len(ChangeCases(2).transform("Ab")) == 2
    both = AugmentationsComposition([ChangeCases(5), Misspellings(5)]).transform(text)
    assert len(both) == 9
    assert text.upper() in both


@pytest.mark.parametrize("rate", [0.02, 0.1, 0.2])
def test_so_many_letters_are_mistyped(rate):
    """A word of ten letters is spared with probability (1 - rate)^10."""
    typed = [misspelt("abcdefghij", rate, seed) for seed in range(3000)]
    spared, expected = typed.count("abcdefghij") / 3000, (1 - rate) ** 10
    assert abs(spared - expected) < 4 * (expected * (1 - expected) / 3000) ** 0.5
    assert {len(word) for word in typed} >= {9, 10, 11}
    assert misspelt("abcdefghij", 0.0) == "abcdefghij"


def test_a_text_is_never_lost():
    assert misspelt("a", 1.0, seed=0)
    parts = augment_items(["A b", "c"], ChangeCases())
    assert parts.texts == ["A b", "a b", "A B", "c", "C"]
    assert parts.owner.tolist() == [0, 0, 0, 1, 1]
    for words in ({"selection_size": 0}, {"error_rates": [1.5]}, {"error_rates": []}):
        with pytest.raises(DataError):
            Misspellings(**words)
