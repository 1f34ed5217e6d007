"""run_training_job with ranges: the door, and a search of updates with one state at its end."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from luthier.doors.config_file import ConfigFile, arguments_of
from luthier.doors.tuning import tuning_spec
from luthier.errors import SpecError
from luthier.registry import cards
from luthier.runs.connection import Home, using
from luthier.search.space import applied, read_space
from luthier.search.summary import read_summary
from luthier.spec import JobSpec
from luthier.store.states import head, read_state
from luthier.testing.forkserver import Forked
from luthier.tuning import choice, config_space, loguniform, randint, run_training_job, uniform
from luthier.tuning.config_spaces import as_domain

CONFIG = """
from luthier.tuning import ClassIncrementalScenario, MultiLayerPerceptron
from luthier.tuning.arrays import DigitsDataModule

GROUPS = [[0, 1], [2, 3], [4, 5], [6, 7], [8, 9]]


def data_module_fn(data_path: str, chunk_id: int, seed: int = 0):
    data_module = DigitsDataModule(val_size=0.2, seed=seed)
    return ClassIncrementalScenario(data_module, class_groupings=GROUPS, chunk_id=chunk_id)


def model_fn(model_state_url=None, hidden_size: int = 200):
    return MultiLayerPerceptron(
        num_inputs=64, num_outputs=10, num_hidden_layers=1, hidden_size=hidden_size
    )
"""
FILE = ConfigFile("/config.py", "ab" * 32, arguments_of(CONFIG, "config.py"))
MEMORY = {"memory_size": 100}


def door(space: dict[str, Any], **words: Any) -> JobSpec:
    return tuning_spec(MEMORY | space, config_file=FILE, **words)


RANGES = {
    "learning_rate": (loguniform(0.001, 0.5), "training.learning_rate"),
    "max_epochs": (randint(1, 9), "training.num_train_epochs"),
    "alpha": (uniform(0, 1), "update.updater_options.alpha"),
    "memory_size": (randint(50, 200), "update.memory_size"),
    "hidden_size": (randint(10, 100), "program.arguments.hidden_size"),
    "weight_decay": (loguniform(1e-6, 1e-2), "training.optim_args.weight_decay"),
    "optimizer": (choice(["SGD", "Adam"]), "training.optim"),
}


@pytest.mark.parametrize("key", sorted(RANGES))
def test_a_range_lies_on_the_field_that_its_key_stands_for(key: str) -> None:
    domain, path = RANGES[key]
    search = door({key: domain}, mode="max", metric="val_accuracy", seed=3).search
    assert search is not None
    assert read_space(search.space).nodes == ((path, domain),)
    assert (search.metrics, search.modes) == (("val_accuracy",), ("max",))
    assert search.sampling_seed == 3


@pytest.mark.parametrize(
    "space",
    [
        {"batch_size": choice([16, 64])},
        {"batch_size": choice([16, 64]), "batch_memory_frac": choice([0.25, 0.5])},
        {"batch_size": choice([16, 512]), "memory_size": choice([20, 200])},
        {"optimizer": "SGD", "momentum": choice([0.0, 0.9])},
        {"optimizer": choice(["SGD", "Adam"]), "momentum": choice([0.5, 0.9])},
        {"learning_rate": choice([0.1, 0.2]), "hidden_size": randint(1, 3)},
    ],
)
def test_a_point_of_the_search_is_the_job_of_its_values(space: dict[str, Any]) -> None:
    """Every point of the grid is a job that the door gives for some combination of the values,
    and every combination that the door takes is a point."""
    spec = door(space)
    assert spec.search is not None
    read = read_space(spec.search.space)
    found = {applied(spec, read.values(point)).id for point in read.grid()}
    keys = list(space)
    domains = [as_domain(v) for v in space.values()]
    values = [
        [v] if d is None else list(getattr(d, "categories", None) or range(d.lower, d.upper + 1))
        for v, d in zip(space.values(), domains, strict=True)
    ]
    expected = set()
    for combination in itertools.product(*values):
        one = dict(zip(keys, combination, strict=True))
        if one.get("optimizer") == "Adam":
            one.pop("momentum", None)
        expected.add(door(one).id)
    assert found == expected


@pytest.mark.parametrize("card", cards("updater"), ids=lambda card: card.name)
def test_the_default_space_of_every_updater_can_be_searched(card: Any) -> None:
    spec = tuning_spec(config_space(card.name), config_file=FILE, updater=card.name)
    assert spec.search is not None
    space = read_space(spec.search.space)
    for seed in range(5):
        applied(spec, space.values(space.sample(seed)))


def test_the_words_of_a_search() -> None:
    search = door(
        {"learning_rate": loguniform(0.01, 0.1)},
        n_workers=3, scheduler="asha", max_time=60.0, max_num_trials_started=7,
        max_num_trials_completed=5, max_num_trials_finished=6, max_cost=2.0,
        scheduler_kwargs={"grace_period": 2, "reduction_factor": 3, "cost_per_hour": 0.5},
    ).search  # fmt: skip
    assert search is not None
    assert (search.n_workers, search.algorithm, search.pruner) == (3, "random", "asha")
    assert (search.max_time_s, search.max_trials, search.max_cost) == (60.0, 7, 2.0)
    assert (search.max_trials_completed, search.max_trials_finished) == (5, 6)
    assert search.pruner_options == {"min_resource": 2, "reduction_factor": 3}


@pytest.mark.parametrize(
    ("space", "words", "message"),
    [
        ({"batch_size": randint(8, 500)}, {}, "batch_size: stands for"),
        ({"updater": choice(["ER", "DER"])}, {}, "options of its own"),
        ({"learning_rate": choice([0.1])}, {"scheduler": "ashaa"}, "did you mean 'asha'"),
        (
            {"learning_rate": choice([0.1])},
            {"scheduler": "asha", "scheduler_kwargs": {"grace": 1}},
            "scheduler_kwargs.grace",
        ),
        ({"learning_rate": choice([0.1])}, {"max_cost": 3.0}, "cost_per_hour"),
        ({"alpha": uniform(-1.0, 1.0), "widht": choice([1])}, {}, "widht"),
    ],
)
def test_what_cannot_be_searched_is_said(
    space: dict[str, Any], words: dict[str, Any], message: str
) -> None:
    with pytest.raises(SpecError, match=message):
        door(space, **words)


def test_a_search_of_updates_commits_the_best_as_the_next_state(
    home: Home, start: Callable[..., Forked], tmp_path: Path
) -> None:
    """Trials commit nothing. The second search begins with what was best in the first."""
    (tmp_path / "config.py").write_text(CONFIG)
    start("--idle-exit-s", "200", engine="luthier.engine.run")
    state = tmp_path / "state"
    ranges = {"learning_rate": loguniform(0.01, 0.3), "optimizer": "SGD"} | MEMORY
    words: dict[str, Any] = {
        "mode": "max", "metric": "val_accuracy", "updater": "ER", "accelerator": "cpu",
        "config_file": tmp_path / "config.py", "output_state_url": state, "max_epochs": 2,
        "max_num_trials_started": 3,
    }  # fmt: skip
    with using(home):
        first = run_training_job(config_space=ranges, chunk_id=0, scheduler="random", **words)
        found = read_summary(home, first.id)
        assert [t.state for t in found.trials] == ["complete"] * 3
        assert head(str(state)) == 1
        committed = read_state(str(state), home.cache)
        assert committed.bundle.id == first.artifact_id
        second = run_training_job(
            config_space=ranges, chunk_id=1, scheduler="rush", input_state_url=state, **words
        )
    assert head(str(state)) == 2
    later = read_summary(home, second.id)
    best = found.ranked()[0]
    assert later.trials[0].values == best.values
    assert second.spec.search is not None
    assert second.spec.search.warm_start == (first.id,)
