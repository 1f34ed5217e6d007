"""Spaces: what is drawn means what was written, whoever's words it was written in."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.doors.search import path_of, search_data
from luthier.errors import Problem, SpecError
from luthier.search import choice, conditional, hp, lograndint, loguniform, ordinal, uniform
from luthier.search.constraints import read_constraints
from luthier.search.planner import derived
from luthier.search.space import applied, as_data, read_space
from luthier.search.spaces import OF_LOSSES, config_space, default_space
from luthier.spec import JobSpec, leaves, parse_spec

JOB = {"model": {"name": "m"}, "data": {"train": {"uri": "/a.csv"}}}


def told(**ranges: Any) -> dict[str, Any]:
    problems: list[Problem] = []
    data = search_data(ranges, problems, JOB)
    if problems:
        raise SpecError(problems)
    assert data is not None
    return data


def searched(**ranges: Any) -> JobSpec:
    return parse_spec(JOB | {"search": told(**ranges)})


MIXED = {
    "learning_rate": loguniform(1e-5, 1e-3),
    "batch_size": choice([16, 32]),
    "loss_options.margin": uniform(0.1, 0.5),
    "optimizer": conditional(
        {
            "SGD": {"optimizer_options.momentum": uniform(0.0, 0.99)},
            "Adam": {"warmup_ratio": ordinal([0.0, 0.1])},
        }
    ),
    "epochs": 3,
}


def test_a_conditional_parameter_is_there_only_below_its_choice() -> None:
    space = read_space(told(**MIXED)["space"])
    seen = set()
    for seed in range(200):
        point = space.sample(seed)
        values = space.values(point)
        momentum = "training.optim_args.momentum"
        seen.add(values["training.optim"])
        assert (momentum in values) == (values["training.optim"] == "SGD")
        assert ("training.warmup_ratio" in values) == (values["training.optim"] == "Adam")
        assert 1e-5 <= values["training.learning_rate"] <= 1e-3
        assert values["training.num_train_epochs"] == 3
        job = applied(parse_spec(JOB), values)
        assert job.search is None
        assert job.training.optim_args == ({"momentum": values[momentum]} if momentum in values
                                           else {})  # fmt: skip
        assert job.objective.loss_options["margin"] == values["objective.loss_options.margin"]
    assert seen == {"SGD", "Adam"}


def test_the_json_of_a_space_is_the_space() -> None:
    space = read_space(told(**MIXED)["space"])
    assert read_space(as_data(space)) == space
    spec = searched(**MIXED, max_trials=3)
    assert parse_spec(spec.canonical()) == spec
    assert spec.id != searched(**MIXED, max_trials=4).id


def test_a_grid_is_every_combination_of_every_branch() -> None:
    space = read_space(
        told(
            learning_rate=choice([1e-5, 1e-4, 1e-3]),
            optimizer=conditional(
                {"SGD": {"optimizer_options.momentum": choice([0.0, 0.9])}, "Adam": {}}
            ),
            seed={"randint": [1, 2]},
        )["space"]
    )
    found = [tuple(sorted(space.values(p).items())) for p in space.grid()]
    expected = {
        tuple(sorted({
            "training.learning_rate": rate, "training.seed": seed,
            "training.optim": optimizer, **more,
        }.items()))
        for rate, seed, (optimizer, more) in itertools.product(
            [1e-5, 1e-4, 1e-3], [1, 2],
            [("SGD", {"training.optim_args.momentum": 0.0}),
             ("SGD", {"training.optim_args.momentum": 0.9}), ("Adam", {})],
        )
    }  # fmt: skip
    assert len(found) == 18
    assert set(found) == expected


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_a_point_of_values_gives_those_values(seed: int) -> None:
    space = read_space(told(**{k: v for k, v in MIXED.items() if k != "optimizer"})["space"])
    values = space.values(space.sample(seed))
    del values["training.num_train_epochs"]
    assert space.values(space.point_of(values)) == values | {"training.num_train_epochs": 3}


@pytest.mark.parametrize(
    ("written", "json"),
    [
        (uniform(0, 1), {"type": "float", "lower": 0.0, "upper": 1.0, "log": False, "step": None}),
        (
            "loguniform(1e-5, 1e-3)",
            {"type": "float", "lower": 1e-5, "upper": 1e-3, "log": True, "step": None},
        ),
        (
            {"randint": [1, 8]},
            {"type": "integer", "lower": 1, "upper": 8, "log": False, "step": 1},
        ),
        (lograndint(1, 8), {"type": "integer", "lower": 1, "upper": 8, "log": True, "step": 1}),
        ({"choice": [1, 2]}, {"type": "categorical", "categories": [1, 2]}),
        ([1, 2], {"type": "categorical", "categories": [1, 2]}),
        (ordinal([1, 2]), {"type": "ordinal", "categories": [1, 2]}),
        (
            hp.loguniform("rate", math.log(1e-4), math.log(1e-2)),
            {"type": "float", "lower": 1e-4, "upper": 1e-2, "log": True, "step": None},
        ),
        (
            hp.randint("n", 4),
            {"type": "integer", "lower": 0, "upper": 3, "log": False, "step": 1},
        ),
        (hp.choice("n", ["a", "b"]), {"type": "categorical", "categories": ["a", "b"]}),
        (0.5, {"type": "fixed", "value": 0.5}),
        ("cosine", {"type": "fixed", "value": "cosine"}),
    ],
)
def test_every_spelling_has_one_form(written: Any, json: dict[str, Any]) -> None:
    found = told(learning_rate=written)["space"]["training.learning_rate"]
    if found.get("log"):
        assert found == pytest.approx(json) if found["type"] == "float" else found == json
    else:
        assert found == json


def test_hyperopt_s_mappings_are_branches() -> None:
    space = read_space(
        told(
            optimizer=hp.choice(
                "optimizer",
                [
                    {"optimizer": "SGD", "learning_rate": hp.loguniform("sgd", -9.0, -2.0)},
                    {"optimizer": "Adam", "learning_rate": hp.loguniform("adam", -12.0, -6.0)},
                ],
            )
        )["space"]
    )
    ranges = {"SGD": (-9, -2), "Adam": (-12, -6)}
    for seed in range(50):
        values = space.values(space.sample(seed))
        low, high = ranges[values["training.optim"]]
        assert math.exp(low) <= values["training.learning_rate"] <= math.exp(high)


@pytest.mark.parametrize(
    ("ranges", "message"),
    [
        ({"learning_rat": uniform(0, 1)}, "did you mean 'learning_rate'"),
        ({"max_trails": 3}, "did you mean 'max_trials'"),
        ({"learning_rate": {"logunifrom": [1, 2]}}, "did you mean 'loguniform'"),
        ({"learning_rate": "loguniform(0, 1)"}, "cannot begin at 0"),
        ({"learning_rate": "loguniform(1e-5)"}, "cannot be read"),
        ({"learning_rate": "loguniform(__import__('os'), 1)"}, "cannot be read"),
        ({"learning_rate": {"choice": []}}, "nothing to choose from"),
        ({"batch_size": [1], "per_device_train_batch_size": [2]}, "given twice"),
        ({"max_trials": 2, "max_evals": 3, "batch_size": [1]}, "given twice"),
    ],
)
def test_what_is_wrong_with_a_range_is_named(ranges: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message.replace("(", r"\(")):
        told(**ranges)


def test_every_word_has_its_path_and_what_lies_below_it() -> None:
    assert path_of("epochs") == "training.num_train_epochs"
    assert path_of("training.learning_rate") == "training.learning_rate"
    assert path_of("model_options.pooler") == "model.options.pooler"
    assert path_of("program.arguments.hidden_size") == "program.arguments.hidden_size"
    assert {path_of(name) for name in leaves() if name not in ("search", "task")} <= set(
        leaves().values()
    )


def test_a_value_that_the_job_has_no_place_for_is_refused() -> None:
    with pytest.raises(SpecError, match=r"training\.learning_rates"):
        applied(parse_spec(JOB), {"training.learning_rates": 1.0})
    with pytest.raises(SpecError, match="greater than 0"):
        applied(parse_spec(JOB), {"training.learning_rate": -1.0})


def test_a_callback_s_field_is_reached_by_its_kind() -> None:
    job = parse_spec(JOB | {"callbacks": [{"kind": "wise_ft"}]})
    changed = applied(job, {"callbacks.wise_ft.alpha": 0.25})
    assert changed.callbacks[0].alpha == 0.25  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("text", "values", "violation"),
    [
        ("seconds <= 60", {"seconds": 61.5}, 1.5),
        ("60 >= seconds", {"seconds": 61.5}, 1.5),
        ("training.seed * 2 < 8", {"training.seed": 3}, -2),
        ("(a + b) / 2 <= c", {"a": 1, "b": 2, "c": 1}, 0.5),
        ("a <= 1", {"a": "text"}, math.inf),
        ("a <= 1 / b", {"a": 1, "b": 0}, math.inf),
    ],
)
def test_a_constraint_says_how_far_from_allowed(
    text: str, values: dict[str, Any], violation: float
) -> None:
    assert read_constraints([text])[0].violation(values) == violation


def test_a_strict_constraint_does_not_allow_its_bound() -> None:
    (strict,) = read_constraints(["a < 1"])
    assert not strict.allows({"a": 1})
    assert strict.allows({"a": 0.5})


@pytest.mark.parametrize("text", ["seconds", "a <= 1 <= 2", "f(a) <= 1", "a <= 'b'", "a == 1", ""])
def test_what_is_no_constraint_is_refused(text: str) -> None:
    with pytest.raises(SpecError, match="is none"):
        read_constraints([text])


def test_the_default_ranges_are_ranges_of_the_job() -> None:
    for name in OF_LOSSES:
        found = told(**config_space(name))
        read_space(found["space"])
    assert config_space("ER") is not config_space("ER")
    assert "learning_rate" in config_space("text-classification")
    head = default_space(JOB | {"model": {"name": "m", "freeze": True}})
    assert head["learning_rate"].upper > config_space("TripletMarginLoss")["learning_rate"].upper


def test_seeds_differ_and_stay() -> None:
    assert derived(0, 1, 0) == derived(0, 1, 0)
    assert len({derived(a, b, 0) for a in range(20) for b in range(20)}) == 400


class Node:
    """As hyperopt.pyll's ``Apply`` and ``Literal`` (0.3.0) look from outside."""

    def __init__(self, name: str, *pos_args: Any, **named_args: Any) -> None:
        self.name, self.pos_args = name, [self.of(a) for a in pos_args]
        self.named_args = [[k, self.of(v)] for k, v in named_args.items()]

    @classmethod
    def of(cls, value: Any) -> Any:
        if isinstance(value, Node):
            return value
        literal = cls("literal")
        literal.obj = value  # type: ignore[attr-defined]
        return literal


def number(label: str, kind: str, *words: float) -> Node:
    return Node("float", Node("hyperopt_param", label, Node(kind, *words)))


def switch(label: str, *options: Any) -> Node:
    which = Node("hyperopt_param", label, Node("randint", len(options)))
    return Node("switch", which, *options)


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        (number("a", "uniform", 0, 1), hp.uniform("a", 0, 1)),
        (number("a", "loguniform", -9, -2), hp.loguniform("a", -9, -2)),
        (number("a", "quniform", 0, 10, 2), hp.quniform("a", 0, 10, 2)),
        (Node("hyperopt_param", "a", Node("randint", 2, 7)), hp.randint("a", 2, 7)),
        (Node("int", number("a", "quniform", 1, 4, 1)), hp.uniformint("a", 1, 4)),
        (switch("a", 16, 32), hp.choice("a", [16, 32])),
        (
            switch("a", Node("dict", optimizer="SGD", seed=number("s", "uniform", 0, 9))),
            hp.choice("a", [{"optimizer": "SGD", "seed": hp.uniform("s", 0, 9)}]),
        ),
    ],
)
def test_hyperopt_s_own_expressions_are_read(theirs: Any, ours: Any) -> None:
    assert told(learning_rate=theirs) == told(learning_rate=ours)


def test_a_distribution_that_is_no_range_is_refused() -> None:
    with pytest.raises(SpecError, match="'normal'"):
        told(learning_rate=number("a", "normal", 0, 1))
