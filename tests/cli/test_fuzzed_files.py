"""Any CONFIG.yaml is a job or is refused: never a fault of luthier."""

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from luthier.cli.words import RUN_WORDS, WORDS

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
    | st.sampled_from(["none", "auto", "cpu", "Adam", "linear", "TripletMarginLoss", "1e-3"]),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(st.text(max_size=6) | st.sampled_from(["kind", "name", "uri"]), inner,
                      max_size=3),
    max_leaves=6,
)  # fmt: skip
NAMES = [*(w.name for w in WORDS), *(w.field for w in WORDS), *RUN_WORDS]
FLAT = st.dictionaries(st.sampled_from(NAMES) | st.text(max_size=5), VALUES, max_size=5)
GROUPS = {w.leaf.partition(".")[0] for w in WORDS if "." in w.leaf}
NESTED = st.dictionaries(
    st.sampled_from(sorted(GROUPS)),
    VALUES | st.dictionaries(st.sampled_from([w.field for w in WORDS]), VALUES, max_size=4),
    max_size=5,
)
FLAGS = st.lists(
    st.tuples(st.sampled_from([w for w in WORDS if w.kind != "switch"]), st.text(max_size=6)),
    max_size=2,
)


def _check(luthier, tmp_path, data, flags):
    file = tmp_path / "job.yaml"
    file.write_text(yaml.safe_dump(data, allow_unicode=True), encoding="utf-8")
    words = [f"{word.flags[0]}={text}" for word, text in flags]
    said = luthier("validate", file, *words, "--json")
    assert said.code in (0, 2, 3, 4, 6, 10), (said, data, words)
    assert isinstance(said.document, dict)


QUICK = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
FULL = settings(QUICK, max_examples=2_500)


def _files(tiny, pairs):
    base = {"model": str(tiny), "train_data": str(pairs)}
    nested = {"model": {"name": str(tiny)}, "data": {"train": str(pairs)}}
    return base, nested


@QUICK
@given(data=FLAT, flags=FLAGS)
def test_words(luthier, tmp_path, tiny, pairs, data, flags):
    _check(luthier, tmp_path, _files(tiny, pairs)[0] | data, flags)


@QUICK
@given(data=NESTED, flags=FLAGS)
def test_nested(luthier, tmp_path, tiny, pairs, data, flags):
    _check(luthier, tmp_path, _files(tiny, pairs)[1] | data, flags)


@pytest.mark.slow
@FULL
@given(data=FLAT, flags=FLAGS)
def test_many_words(luthier, tmp_path, tiny, pairs, data, flags):
    """The long form: ``make proof``."""
    _check(luthier, tmp_path, _files(tiny, pairs)[0] | data, flags)


@pytest.mark.slow
@FULL
@given(data=NESTED, flags=FLAGS)
def test_many_nested(luthier, tmp_path, tiny, pairs, data, flags):
    """The long form: ``make proof``."""
    _check(luthier, tmp_path, _files(tiny, pairs)[1] | data, flags)
