"""The flags against the spec and against fit(): nothing is missing, nothing is misread."""

import inspect

import pytest

from luthier.cli.words import BY_NAME, RUN_WORDS, WORDS, given_words, read_options
from luthier.doors import fit as door
from luthier.errors import SpecError
from luthier.spec import JobSpec, leaves


def test_every_leaf_of_the_spec_has_a_word():
    missing = set(leaves().values()) - {word.leaf for word in WORDS}
    # run_training_job says what is of programs
    assert not [leaf for leaf in missing if not leaf.startswith("program.")]


def test_no_leaf_has_two_words_and_no_flag_two_meanings():
    assert len({word.leaf for word in WORDS}) == len(WORDS)
    flags = [flag for word in WORDS for flag in word.flags]
    assert len(flags) == len(set(flags))


def test_every_word_of_fit_has_a_flag():
    known = {*BY_NAME, *RUN_WORDS, "wait", "update"} | {word.field for word in WORDS}
    assert set(door.WORDS) - known == set()


def test_every_word_is_one_that_fit_knows():
    own = set(inspect.signature(door.fit_spec).parameters) | set(door.WORDS)
    assert {word.name for word in WORDS} - own == set()


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("learning_rate", "1e-4", 1e-4),
        ("epochs", "0.5", 0.5),
        ("batch_size", "32", 32),
        ("batch_size", "none", None),
        ("num_training_steps", "auto", "auto"),
        ("num_training_steps", "100", 100),
        ("sampler", "class", "class"),
        ("output_dim", "512", 512),
        ("device", "cuda:1", "cuda:1"),
        ("seed", "7", 7),
        ("freeze", True, True),
        ("train_data", "none", "none"),
        ("miner", "none", None),
        ("optimizer_options", ["weight_decay=1e-2", "amsgrad=true"], None),
    ],
)
def test_a_flag_has_the_type_of_its_leaf(name, text, value):
    parsed = given_words({name: text})[name]
    if name == "optimizer_options":
        value = {"weight_decay": 0.01, "amsgrad": True}
    assert parsed == value
    assert type(parsed) is type(value)


def test_all_bad_flags_are_told_together():
    with pytest.raises(SpecError) as caught:
        given_words({"learning_rate": "fast", "batch_size": "0.5", "loss_options": ["margin"]})
    fields = [problem.field for problem in caught.value.problems]
    assert fields == ["learning_rate", "batch_size", "loss_options"]


def test_options_as_pairs_and_as_a_mapping():
    assert read_options("loss_options", ["margin=0.2", "{p: 3, s: 'x=y'}", "e=a=b"]) == {
        "margin": 0.2,
        "p": 3,
        "s": "x=y",
        "e": "a=b",
    }


@pytest.mark.parametrize("bad", ["margin", "=3", "{a: [", "a={"])
def test_options_that_are_none_are_refused(bad):
    with pytest.raises(SpecError, match="loss_options"):
        read_options("loss_options", [bad])


def test_the_types_come_from_the_spec():
    """A word whose leaf is gone, or renamed, cannot stand in the table."""
    for word in WORDS:
        group, _, leaf = word.leaf.rpartition(".")
        model = JobSpec.model_fields[group].annotation if group else JobSpec
        assert leaf in model.model_fields
