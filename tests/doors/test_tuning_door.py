"""Renate's words become a job of a configuration file; both of its vocabularies."""

from collections.abc import Callable
from typing import Any

import pytest

from luthier.admission import located_url
from luthier.doors.config_file import ConfigFile, arguments_of
from luthier.doors.tuning import tuning_spec
from luthier.errors import SpecError
from luthier.registry import cards
from luthier.spec import BestModelCheckpoint, JobSpec, leaves
from luthier.testing.doors import DoorCase, Word
from luthier.tuning import randint, run_training_job
from luthier.updates import WORKING_DIRECTORY

TEXT = '''
from typing import List, Optional, Union
from pathlib import Path

def model_fn(model_state_url: Optional[Union[Path, str]] = None, width: int = 8):
    ...

def data_module_fn(data_path: str, chunk_id: int, seed: int = 0, classes: List[int] = ()):
    ...

def train_transform(angle: "float | None" = None):
    ...
'''  # fmt: skip
FILE = ConfigFile("/config.py", "ab" * 32, arguments_of(TEXT, "config.py"))
SPACE = {"memory_size": 100}


class TestTuning(DoorCase):
    base = {"config_file": FILE, "config_space": SPACE}  # noqa: RUF012
    beside = ("job_name", "wait")
    refused = {  # noqa: RUF012
        "deterministic_trainer": (True, "CPUs"),
        "backend": ("sagemaker", "this machine"),
        "task_id": ("other", "one head"),
        "dependencies": (["a"], "SageMaker"),
        "requirements_file": ("r.txt", "SageMaker"),
        "role": ("r", "SageMaker"),
        "instance_type": ("ml.g4dn", "SageMaker"),
        "instance_count": (2, "SageMaker"),
        "instance_max_time": (60.0, "SageMaker"),
        "max_time": (60.0, "search"),
        "max_num_trials_started": (2, "search"),
        "max_num_trials_completed": (2, "search"),
        "max_num_trials_finished": (2, "search"),
        "max_cost": (2.0, "search"),
        "n_workers": (2, "search"),
        "scheduler": ("bo", "search"),
        "scheduler_kwargs": ({"a": 1}, "search"),
        "devices": (2, "one device"),
        "strategy": ("deepspeed", "needs none"),
        "gradient_clip_algorithm": ("value", "norm"),
    }
    reaches = (
        Word("config_file", ConfigFile("/other.py", "cd" * 32, FILE.arguments),
             "program.config_file", becomes="/other.py"),
        Word("config_space", SPACE | {"learning_rate": 0.05}, "training.learning_rate", 0.05),
        Word("config_space", SPACE | {"optimizer": "SGD"}, "training.optim", "SGD"),
        Word("config_space", SPACE | {"weight_decay": 0.1}, "training.optim_args",
             {"weight_decay": 0.1}),
        Word("config_space", SPACE | {"optimizer": "SGD", "momentum": 0.9}, "training.optim_args",
             {"momentum": 0.9}),
        Word("config_space", SPACE | {"batch_size": 96}, "training.per_device_train_batch_size",
             48),
        Word("config_space", SPACE | {"batch_size": 64}, "update.memory_batch_size", 32),
        Word("config_space", SPACE | {"max_epochs": 3}, "training.num_train_epochs", 3),
        Word("config_space", {"memory_size": 7}, "update.memory_size", 7),
        Word("config_space", SPACE | {"alpha": 0.5}, "update.updater_options", {"alpha": 0.5}),
        Word("config_space", SPACE | {"memory": "herding"}, "update.memory", "herding"),
        Word("config_space", SPACE | {"width": 4}, "program.arguments",
             {"width": 4, "seed": 0, "data_path": f"{WORKING_DIRECTORY}/data"}),
        *(
            Word("config_space", SPACE | {name: value}, f"update.{name}", value)
            for name, value in {
                "merge": "ties",
                "memory_bytes": 9_999,
                "forgetting_budget": 0.1,
                "forgetting_budget_each": 0.2,
                "probe_budget": 0.05,
                "on_forgetting": "warn",
                "stability_steps": 5,
                "drift": "gate",
            }.items()
        ),
        Word("config_space", SPACE | {"merge": "ties", "merge_options": {"density": 0.5}},
             "update.merge_options", {"density": 0.5}),
        Word("updater", "DER", "update.updater"),
        Word("max_epochs", 4, "training.num_train_epochs"),
        Word("metric", "val_accuracy", "callbacks",
             (BestModelCheckpoint(monitor="val_accuracy", mode="max"),), {"mode": "max"}),
        Word("mode", "min", "callbacks", (BestModelCheckpoint(monitor="val_loss", mode="min"),),
             {"metric": "val_loss"}),
        Word("chunk_id", 3, "program.arguments",
             {"chunk_id": 3, "seed": 0, "data_path": f"{WORKING_DIRECTORY}/data"}),
        Word("input_state_url", "s3://bucket/state", "update.input_state_url"),
        Word("output_state_url", "/state", "update.output_state_url"),
        Word("working_directory", "/tmp/here", "program.arguments",
             {"seed": 0, "data_path": "/tmp/here/data"}),
        Word("seed", 5, "training.seed"),
        Word("accelerator", "cpu", "training.device"),
        Word("precision", "bf16", "training.precision"),
        Word("gradient_clip_val", 1.0, "training.max_grad_norm"),
    )  # fmt: skip

    def door(self, **words: Any) -> JobSpec:
        words["data_path"] = f"{words.pop('working_directory', WORKING_DIRECTORY)}/data"
        return tuning_spec(words.pop("config_space"), **words)

    def public(self) -> Callable[..., Any]:
        return run_training_job

    unsaid = dict.fromkeys(set(leaves().values()) - {word.leaf for word in reaches}, "not theirs")


def test_the_spec_of_the_seed() -> None:
    """docs: how to run a training job, with experience replay."""
    spec = tuning_spec(
        {
            "optimizer": "SGD", "momentum": 0.0, "weight_decay": 1e-2, "learning_rate": 0.05,
            "batch_size": 32, "max_epochs": 50, "memory_batch_size": 32, "memory_size": 500,
        },
        config_file=FILE, mode="max", metric="val_accuracy", updater="ER", max_epochs=50,
        chunk_id=0, backend="local",
    )  # fmt: skip
    assert (spec.training.per_device_train_batch_size, spec.update.memory_batch_size) == (32, 32)
    assert spec.update.memory_size == 500
    assert spec.training.optim_args == {"weight_decay": 1e-2}


def test_a_batch_is_parted_as_renate_parts_it() -> None:
    for frac, size, memory, new, old in (
        (0.5, 32, 100, 16, 16),
        (0.25, 32, 100, 24, 8),
        (0.5, 32, 5, 27, 5),
        (0.0, 32, 5, 32, 0),
    ):
        space = {"batch_memory_frac": frac, "batch_size": size, "memory_size": memory}
        spec = tuning_spec(space, config_file=FILE)
        assert spec.training.per_device_train_batch_size == new
        assert spec.update.memory_batch_size == old


@pytest.mark.parametrize("card", cards("updater"), ids=lambda card: card.name)
def test_renates_spellings_of_updaters(card) -> None:
    for name in {card.name, card.name.upper(), card.name.replace("-", "")}:
        assert tuning_spec(SPACE, config_file=FILE, updater=name).update.updater == card.name


WRONG = {
    "a range of several fields": ({"batch_size": randint(32, 512)}, {}, "batch_size: stands for"),
    "misspelt": ({"memory_sise": 3}, {}, "memory_sise"),
    "an argument misspelt": ({"widht": 3}, {}, "did you mean 'width'"),
    "of another type": ({"width": "large"}, {}, "model_fn wants int"),
    "a bool for a number": ({"width": True}, {}, "model_fn wants int"),
    "text for numbers": ({"angle": "steep"}, {}, "train_transform wants float"),
    "both shares": ({"batch_memory_frac": 0.5, "memory_batch_size": 3}, {}, "give one"),
    "a share of one": ({"batch_memory_frac": 1.0}, {}, "below 1"),
    "momentum of Adam": ({"momentum": 0.9}, {}, "Adam has none"),
    "a mode of its own": ({}, {"metric": "val_loss", "mode": "most"}, "mode"),
    "early stopping of nothing": ({"early_stopping_enabled": True}, {}, "metric"),
    "no such updater": ({}, {"updater": "DERR"}, "did you mean 'DER'"),
    "a schedule": ({"learning_rate_scheduler": "StepLR"}, {}, "lr_scheduler_fn"),
    "a word of nobody": ({}, {"jobname": "x"}, "did you mean 'job_name'"),
}


@pytest.mark.parametrize("name", sorted(WRONG))
def test_what_is_wrong_is_told(name) -> None:
    space, words, message = WRONG[name]
    with pytest.raises(SpecError, match=message):
        tuning_spec(space, config_file=FILE, **words)


def test_all_problems_are_told_together() -> None:
    with pytest.raises(SpecError) as caught:
        tuning_spec({"widht": 3, "momentum": 0.5}, config_file=FILE, devices=2)
    assert len(caught.value.problems) == 3


def test_the_configuration_is_not_changed() -> None:
    space = {"learning_rate": 0.1, "width": 3}
    tuning_spec(space, config_file=FILE)
    assert space == {"learning_rate": 0.1, "width": 3}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("def model_fn(", "line 1: this is no Python"),
        ("def model_fn(): ...", "has no data_module_fn"),
        ("def modelfn(): ...\ndef data_module_fn(): ...", "did you mean 'modelfn'"),
    ],
)
def test_a_file_that_will_not_do_is_told(text, message) -> None:
    with pytest.raises(SpecError, match=message):
        arguments_of(text, "config.py")


def test_an_argument_that_is_needed_is_asked_for() -> None:
    text = TEXT.replace("width: int = 8", "*, width: int")
    file = ConfigFile("/config.py", "ab" * 32, arguments_of(text, "config.py"))
    with pytest.raises(SpecError, match=r"model_fn of config\.py needs it"):
        tuning_spec({}, config_file=file)


def test_paths_mean_the_same_elsewhere(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert located_url("./state") == str(tmp_path / "state")
    assert located_url("s3://bucket/state") == "s3://bucket/state"
    assert located_url(None) is None
