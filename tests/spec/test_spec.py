"""JobSpec: canonical, strict, and never a traceback, whatever it is given."""

from __future__ import annotations

import json
import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.errors import SpecError, nearest
from luthier.spec import EarlyStopping, JobSpec, WiSEFTCallback, leaves, parse_spec

SMALL = {"model": {"name": "m"}, "data": {"train": {"uri": "/a.csv"}}}

#: The id of SMALL. It changes only with a new version of the format: ids are kept forever.
GOLDEN = "181e415b939a7854fac9d7bdf795304951622262da35fb4021eb49408effac3b"

EXAMPLES = int(os.environ.get("LUTHIER_FUZZ", "1000"))


def test_the_id_is_that_of_the_canonical_text() -> None:
    assert parse_spec(SMALL).canonical() == (
        '{"data":{"train":{"uri":"/a.csv"}},"model":{"name":"m"}}'
    )
    assert parse_spec(SMALL).id == GOLDEN


def test_defaults_said_aloud_change_nothing() -> None:
    aloud = parse_spec(parse_spec(SMALL).model_dump(mode="json"))
    assert aloud.id == parse_spec(SMALL).id
    assert "learning_rate" in aloud.model_dump_json()


def test_callbacks_are_told_apart_in_the_id() -> None:
    plain = parse_spec(SMALL)
    with_one = plain.changed(callbacks=[EarlyStopping()])
    with_other = plain.changed(callbacks=[WiSEFTCallback()])
    assert len({plain.id, with_one.id, with_other.id}) == 3
    assert parse_spec(with_one.canonical()) == with_one


def test_a_spec_is_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        parse_spec(SMALL).model = None  # type: ignore[assignment]


def test_changed_takes_leaf_names_and_paths() -> None:
    spec = parse_spec(SMALL).changed(learning_rate=1e-3, **{"model.options": {"a": 1}})
    assert spec.training.learning_rate == 1e-3
    assert spec.model.options == {"a": 1}
    with pytest.raises(SpecError, match="did you mean 'learning_rate'"):
        spec.changed(learning_rat=1)


def test_leaf_names_are_unique_or_need_a_path() -> None:
    found = leaves()
    assert found["learning_rate"] == "training.learning_rate"
    assert all(path in found for path in found.values())


def test_all_problems_come_together_with_hints() -> None:
    with pytest.raises(SpecError) as caught:
        parse_spec({"model": {"nam": "x"}, "data": {"train": {"uri": "/a"}}, "trainin": {}})
    assert {p.field for p in caught.value.problems} == {"model.name", "model.nam", "trainin"}
    assert "did you mean 'name'?" in str(caught.value)
    assert len(caught.value.problem()["problems"]) == 3


def test_text_that_is_no_json_is_an_error() -> None:
    with pytest.raises(SpecError):
        parse_spec("{")


def test_nearest_says_nothing_when_nothing_is_near() -> None:
    assert nearest("zzzz", ["learning_rate"]) is None


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=8,
)
full = parse_spec(SMALL).model_dump(mode="json")
places = sorted(path for path in leaves().values() if "." in path)


@settings(max_examples=EXAMPLES, deadline=None)
@given(st.data())
def test_whatever_a_field_holds_it_is_taken_or_named(data) -> None:
    """A mutated spec is either accepted, and then reads back as the same spec with the same id,
    or refused with the name of the field."""
    spec = json.loads(json.dumps(full))
    path = data.draw(st.sampled_from(places))
    group, leaf = path.split(".")
    value = data.draw(anything)
    spec[group][leaf] = value
    try:
        accepted = parse_spec(spec)
    except SpecError as error:
        assert any(p.field == "job" or p.field.startswith(group) for p in error.problems)
        return
    again = parse_spec(accepted.model_dump_json())
    assert again == accepted
    assert again.id == accepted.id


@settings(max_examples=EXAMPLES, deadline=None)
@given(st.one_of(anything, st.text(), st.binary(max_size=40)))
def test_arbitrary_input_is_a_spec_error(given_) -> None:
    try:
        assert isinstance(parse_spec(given_), JobSpec)
    except SpecError as error:
        assert error.problems
