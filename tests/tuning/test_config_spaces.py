"""Ranges: what they draw, their JSON form, other libraries' ranges, the defaults."""

import json
import math
import random
import subprocess
import sys
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest

from luthier.errors import NotFound, SpecError
from luthier.registry import cards, find
from luthier.tuning import config_spaces as spaces
from luthier.tuning.config_spaces import (
    Categorical,
    Float,
    Integer,
    Ordinal,
    as_domain,
    choice,
    config_space,
    from_json,
    lograndint,
    loguniform,
    ordinal,
    randint,
    to_json,
    uniform,
)

DOMAINS = [
    uniform(-1, 2.5),
    loguniform(1e-6, 0.1),
    randint(-3, 4),
    lograndint(1, 100),
    choice(["SGD", 0.5, None, True, 3]),
    ordinal([16, 32, 64]),
    Float(0, 1, step=0.25),
    Integer(2, 11, step=3),
]


@pytest.mark.parametrize("domain", DOMAINS, ids=str)
@pytest.mark.parametrize("make", [random.Random, np.random.default_rng])
def test_draws_lie_in_the_range_and_follow_the_seed(domain, make):
    drawn = [domain.sample(make(seed)) for seed in range(50)]
    assert drawn == [domain.sample(make(seed)) for seed in range(50)]
    assert all(value in domain for value in drawn)
    assert len(set(map(str, drawn))) > 1


@pytest.mark.parametrize("domain", DOMAINS, ids=str)
def test_json_and_back(domain):
    text = json.dumps(to_json(domain))
    assert from_json(json.loads(text)) == domain
    assert type(from_json(json.loads(text))) is type(domain)


class Fixed:
    """Draws what it is told."""

    def __init__(self, *values):
        self.values = list(values)

    def random(self):
        return self.values.pop(0)


def test_draws_are_even_in_what_they_say():
    last = math.nextafter(1, 0)
    assert uniform(2, 6).sample(Fixed(0.25)) == 3
    assert loguniform(1e-4, 1).sample(Fixed(0.25)) == pytest.approx(1e-3)
    assert loguniform(1e-4, 1e-2).sample(Fixed(0.0)) == pytest.approx(1e-4)
    assert [randint(1, 4).sample(Fixed(u)) for u in (0, 0.25, 0.5, last)] == [1, 2, 3, 4]
    assert [lograndint(1, 8).sample(Fixed(u)) for u in (0, last)] == [1, 8]
    assert [Float(0, 1, step=0.4).sample(Fixed(u)) for u in (0, last)] == [0, 0.8]
    assert Float(0, 0.3, step=0.1).sample(Fixed(last)) == 0.3
    assert [Integer(2, 12, step=3).sample(Fixed(u)) for u in (0, last)] == [2, 11]


def test_whole_numbers_by_logarithm_have_the_room_between_their_halves():
    rng = random.Random(0)
    counts = Counter(lograndint(1, 4).sample(rng) for _ in range(20_000))
    whole = math.log(4.5 / 0.5)
    for n in range(1, 5):
        expected = math.log((n + 0.5) / (n - 0.5)) / whole
        assert counts[n] / 20_000 == pytest.approx(expected, abs=0.015)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: uniform(2, 1), "the range from 2 to 1 is empty"),
        (lambda: uniform("a", 1), "the bound 'a' is not a number"),
        (lambda: uniform(0, float("inf")), "the bound inf is not a number"),
        (lambda: loguniform(0, 1), "cannot begin at 0"),
        (lambda: randint(0.5, 2), "the bound 0.5 is not a whole number"),
        (lambda: randint(True, 2), "the bound True is not a whole number"),
        (lambda: lograndint(0, 2), "cannot begin at 0"),
        (lambda: choice([]), "nothing to choose from"),
        (lambda: choice("SGD"), "no list to choose from"),
        (lambda: choice(3), "no list to choose from"),
        (lambda: Float(0, 1, step=0), "a step of 0 cannot be"),
        (lambda: Float(1, 2, log=True, step=0.1), "a step of 0.1 cannot be"),
        (lambda: from_json({"type": "normal"}), "no range of type 'normal'"),
        (lambda: from_json({"type": "float", "lower": 1}), "this is no range"),
        (lambda: from_json({"type": "float", "lover": 1}), "has no 'lover' .did you mean 'lower'"),
    ],
)
def test_ranges_that_cannot_be_are_refused(make, said):
    with pytest.raises(SpecError, match=f"config_space: .*{said}"):
        make()


def _named(name, *bases, **fields):
    """An instance of a class of that name, as another library would have it."""
    return type(name, bases or (object,), fields)()


class _Uniform:
    pass


class _LogUniform(_Uniform):
    pass


class _Normal:
    pass


class _ReverseLogUniform(_LogUniform):
    pass


class Quantized:
    def __init__(self, sampler, q):
        self.sampler, self.q = sampler, q


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (_named("Float", lower=0.1, upper=1.0, sampler=_Uniform()), uniform(0.1, 1.0)),
        (_named("Float", lower=0.1, upper=1.0, sampler=None), uniform(0.1, 1.0)),
        (_named("Float", lower=0.1, upper=1.0, sampler=_LogUniform()), loguniform(0.1, 1.0)),
        (_named("Integer", lower=1, upper=32, sampler=_Uniform()), randint(1, 32)),
        (_named("Integer", lower=1, upper=32, sampler=_LogUniform()), lograndint(1, 32)),
        (
            _named("Integer", lower=2, upper=10, sampler=Quantized(_Uniform(), 2)),
            Integer(2, 10, step=2),
        ),
        (
            _named("Float", lower=0.3, upper=1.0, sampler=Quantized(_Uniform(), 0.1)),
            Float(0.3, 1.0, step=0.1),
        ),
        (_named("Categorical", categories=[1, "a"]), choice([1, "a"])),
        (
            _named("OrdinalNearestNeighbor", type("Categorical", (), {}), categories=[1, 2]),
            ordinal([1, 2]),
        ),
        (
            _named("FiniteRange", lower=1, upper=100, size=3, log_scale=True, cast_int=True),
            ordinal([1, 10, 100]),
        ),
        (
            _named("FiniteRange", lower=0.0, upper=1.0, size=3, log_scale=False, cast_int=False),
            ordinal([0.0, 0.5, 1.0]),
        ),
        (uniform(0, 1), uniform(0, 1)),
        (0.1, None),
        ("SGD", None),
        (None, None),
        ([200, 200], None),
        ({"a": 1}, None),
        (SimpleNamespace(lower=1, upper=2), None),
    ],
)
def test_ranges_of_syne_tune_are_understood(value, expected):
    found = as_domain(value)
    assert found == expected
    assert type(found) is type(expected)


@pytest.mark.parametrize(
    "value",
    [
        _named("Float", lower=0.1, upper=1.0, sampler=_Normal()),
        _named("Float", lower=0.1, upper=0.9, sampler=_ReverseLogUniform()),
        _named("Integer", lower=1, upper=10, sampler=Quantized(_Uniform(), 2)),
        _named("Float", lower=0.1, upper=1.0, sampler=Quantized(_LogUniform(), 0.1)),
        _named("Function", type("Domain", (), {})),
        type("Integer", (), {"__module__": "ray.tune.search.sample", "lower": 1, "upper": 2})(),
    ],
    ids=["normal", "reverse", "off the grid", "rounded logarithm", "function", "ray"],
)
def test_ranges_that_cannot_be_searched_here_are_refused(value):
    with pytest.raises(SpecError, match=r"lograndint|luthier\.tuning"):
        as_domain(value)


def _optuna(name, **fields):
    return _named(name, type("BaseDistribution", (), {}), **fields)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (_optuna("FloatDistribution", low=0.1, high=1.0, log=True, step=None), loguniform(0.1, 1)),
        (_optuna("FloatDistribution", low=0, high=1, log=False, step=0.5), Float(0, 1, step=0.5)),
        (_optuna("IntDistribution", low=1, high=9, log=False, step=2), Integer(1, 9, step=2)),
        (_optuna("IntDistribution", low=1, high=9, log=True, step=1), lograndint(1, 9)),
        (_optuna("CategoricalDistribution", choices=(1, "a")), choice([1, "a"])),
    ],
)
def test_distributions_of_optuna_are_understood(value, expected):
    assert as_domain(value) == expected


def test_optunas_own_objects():
    distributions = pytest.importorskip("optuna.distributions")
    log = distributions.FloatDistribution(0.1, 1, log=True)
    assert as_domain(log) == loguniform(0.1, 1)
    assert as_domain(distributions.IntDistribution(1, 9, step=2)) == Integer(1, 9, step=2)
    assert as_domain(distributions.CategoricalDistribution([1, 2])) == choice([1, 2])


#: What an update takes besides its updater's options.
TRAINING = {
    "optimizer", "momentum", "weight_decay", "learning_rate", "batch_size", "max_epochs",
    "memory_size", "batch_memory_frac", "updater",
}  # fmt: skip


@pytest.mark.parametrize("card", cards("updater"), ids=lambda card: card.name)
def test_every_updater_has_a_space_of_options_that_it_takes(card):
    space = config_space(card.name)
    assert space.pop("updater") == card.name
    options = {name for name in space if name not in TRAINING}
    assert options <= {option.name for option in card.options}
    assert any(as_domain(value) is not None for value in space.values())
    assert ("memory_size" in space) == (card.facts["memory"] in _BOUNDED)
    for option in card.options:
        domain = as_domain(space.get(option.name))
        if isinstance(domain, Categorical):
            kinds = {int} if type(option.default) is int else {float, str}
            assert {type(v) for v in domain.categories} <= kinds


_BOUNDED = {"reservoir", "greedy_balanced", "herding"}


def test_a_space_is_fresh_each_time():
    space = config_space("ER")
    space["memory_size"] = 1
    del space["optimizer"]
    assert config_space("ER")["memory_size"] == 1000
    assert config_space("ER")["optimizer"] == "SGD"


def test_the_published_spaces():
    assert config_space("DER") == {
        "optimizer": "SGD",
        "momentum": choice([0.0, 0.9, 0.99]),
        "weight_decay": loguniform(1e-6, 1e-2),
        "learning_rate": loguniform(0.001, 0.5),
        "batch_size": 64,
        "max_epochs": 50,
        "batch_memory_frac": 0.5,
        "memory_size": 1000,
        "alpha": uniform(0.0, 1.0),
        "beta": uniform(0.0, 1.0),
        "loss_normalization": False,
        "loss_weight": 1.0,
        "updater": "DER",
    }
    er = config_space("ER")
    assert (er["alpha"], er["loss_weight"], er["loss_normalization"]) == (0.5, 0.5, False)
    super_er = config_space("SUPER-ER")
    assert super_er["sp_shrink_factor"].categories == (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
    assert len(super_er["cls_alpha"].categories) == 21
    assert config_space("OfflineER")["loss_weight_new_data"] == choice([0.25, 0.5, 0.75])
    assert config_space("RD")["learning_rate"] == loguniform(0.001, 0.5)


def test_an_unknown_updater_is_refused():
    with pytest.raises(NotFound, match=r"(?s)no updater is called 'Super-EX'.*Super-ER"):
        config_space("Super-EX")


def test_an_updater_of_a_plugin_gets_the_ranges_of_the_optimizer(monkeypatch):
    from dataclasses import replace

    own = replace(find("updater", "ER"), name="Mine")
    monkeypatch.setattr(spaces, "cards", lambda kind: [own])
    space = config_space("mine")
    assert (space["updater"], space["memory_size"]) == ("Mine", 1000)
    assert "alpha" not in space


def test_ranges_are_known_without_torch():
    program = (
        "import sys\nfrom luthier.tuning.config_spaces import config_space\nconfig_space('ER')\n"
        "print(*sorted(set(sys.modules) & {'torch', 'transformers', 'numpy', 'optuna'}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == []


def test_a_range_is_frozen_and_can_be_a_key():
    assert len({uniform(0, 1), uniform(0, 1.0), choice([1, 2]), Ordinal((1, 2))}) == 3
    with pytest.raises(AttributeError):
        uniform(0, 1).lower = 2
