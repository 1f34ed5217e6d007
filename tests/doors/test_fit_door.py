"""fit(): every word of its signature acts or is refused, and the seed's words are all there."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from contextlib import suppress
from typing import Any, get_args

import pytest
from pydantic import ValidationError

import luthier
from luthier.callback import EarlyStopping, WiSEFTCallback
from luthier.doors.fit import HEAD_RATE, RUN_WORDS, WHOLE_MODEL_RATE, WORDS, fit_spec
from luthier.errors import SpecError
from luthier.spec import (
    CSVOptions,
    JobSpec,
    ProgramSpec,
    SearchSpec,
    Source,
    TrainingSpec,
)
from luthier.testing.doors import DoorCase, Word

DATA = Source(uri="/data/train.csv")
EVAL = Source(uri="/data/eval.csv")

#: Fields of training that fit() has another word for.
ITS_OWN = (
    "optim",
    "optim_args",
    "lr_scheduler_type",
    "lr_scheduler_kwargs",
    "num_train_epochs",
    "per_device_train_batch_size",
    "dataloader_num_workers",
)
#: The words of fit() in a schedule need one.
LINEAR = {"scheduler": "linear"}


#: Fields of training that fit() has no word of its own for.
BY_OWN_NAME = [
    name
    for name in WORDS
    if name in TrainingSpec.model_fields and name not in inspect.signature(luthier.fit).parameters
    if name not in (*ITS_OWN, "num_warmup_steps", "num_training_steps", "examples_order")
]


def by_own_name(name: str) -> Word:
    """Any value that the field takes and that is not its default."""
    field = TrainingSpec.model_fields[name]
    for value in (*get_args(field.annotation), 1, 2, 0.5):
        with suppress(ValidationError):
            taken = getattr(TrainingSpec.model_validate({name: value}), name)
            if taken == value != field.default:
                return Word(name, value, f"training.{name}")
    raise AssertionError(f"no value found for {name}: give it a Word by hand")


class TestFit(DoorCase):
    base = {"model": "all-minilm-l6-v2", "train_data": DATA}  # noqa: RUF012
    beside = (*RUN_WORDS, "args")  # those have a door of their own
    unsaid = {  # noqa: RUF012
        f"program.{leaf}": "run_training_job says it" for leaf in ProgramSpec.model_fields
    }
    reaches = (
        Word("model", "bert-base-en", "model.name"),
        Word("train_data", Source(uri="/other.csv"), "data.train"),
        Word("eval_data", EVAL, "data.eval"),
        Word("probe_data", EVAL, "data.probe"),
        Word("val_split", 0.25, "data.val_split"),
        Word("model_artifact", "abcd", "model.artifact"),
        Word("model_options", {"max_seq_length": 32}, "model.options"),
        Word("model_options", {"num_fixed_layers": 3}, "model.num_fixed_layers", becomes=3),
        Word("num_fixed_layers", 3, "model.num_fixed_layers"),
        Word("towers", "two", "model.towers"),
        Word("examples_order", (7, 11), "training.examples_order"),
        Word("lora_r", 4, "adapter.lora_r"),
        *(
            Word(word, value, f"adapter.{word}", beside={"lora_r": 4})
            for word, value in {
                "lora_alpha": 32,
                "lora_dropout": 0.1,
                "target_modules": ("query", "value"),
                "use_rslora": True,
                "use_dora": True,
            }.items()
        ),
        Word("task", "translation", "task"),
        *(
            Word(word, value, f"processing.{word}")
            for word, value in {
                "columns": {"label": "kind"},
                "max_seq_length": 64,
                "max_target_length": 16,
                "pad_to_max_length": True,
                "multi_label": True,
                "doc_stride": 32,
                "n_best_size": 5,
                "max_answer_length": 10,
                "source_prefix": "translate: ",
                "source_lang": "en_XX",
                "target_lang": "de_DE",
                "generation": {"num_beams": 2},
            }.items()
        ),
        Word("update", "DER", "update.updater"),
        Word("update", True, "update.updater", becomes="Robust-DER"),
        Word("updater", "default", "update.updater", becomes="Robust-DER"),
        Word("update", {"updater": "ER", "memory_size": 9}, "update.memory_size", becomes=9),
        Word("updater", "EWC", "update.updater"),
        *(
            Word(word, value, f"update.{word}", beside={"updater": "ER"})
            for word, value in {
                "updater_options": {"alpha": 0.5},
                "memory": "sliding_window",
                "memory_size": 50,
                "memory_batch_size": 4,
                "replay_ratio": 0.5,
                "memory_bytes": 10_000,
                "input_state_url": "before",
                "output_state_url": "after",
                "forgetting_budget": 0.1,
                "forgetting_budget_each": 0.2,
                "probe_budget": 0.1,
                "on_forgetting": "warn",
                "stability_steps": 5,
                "drift": "report",
                "merge": "ema",
                "merge_options": {"decay": 0.9},
            }.items()
        ),
        Word(
            "search",
            {"batch_size": [16, 32], "max_trials": 3},
            "search",
            becomes=SearchSpec(
                space={
                    "training.per_device_train_batch_size": {
                        "type": "categorical",
                        "categories": [16, 32],
                    }
                },
                max_trials=3,
            ),
        ),
        Word("loss", "ArcFaceLoss", "objective.loss"),
        Word("loss_options", {"margin": 0.3}, "objective.loss_options"),
        Word("miner", "TripletMarginMiner", "objective.miner"),
        Word("miner_options", {"margin": 0.2}, "objective.miner_options"),
        Word("optimizer", "SGD", "training.optim"),
        Word("optimizer_options", {"momentum": 0.9}, "training.optim_args"),
        Word("learning_rate", 1e-4, "training.learning_rate"),
        Word("epochs", 0, "training.num_train_epochs"),
        Word("batch_size", 128, "training.per_device_train_batch_size"),
        Word("callbacks", (EarlyStopping(), WiSEFTCallback(alpha=0.1)), "callbacks"),
        Word("scheduler", "linear", "training.lr_scheduler_type"),
        Word(
            "scheduler_options",
            {"power": 2},
            "training.lr_scheduler_kwargs",
            beside={"scheduler": "polynomial"},
        ),
        Word(
            "scheduler_options",
            {"num_warmup_steps": 5},
            "training.num_warmup_steps",
            becomes=5,
            beside=LINEAR,
        ),
        Word(
            "scheduler_options",
            {"num_training_steps": 50},
            "training.num_training_steps",
            becomes=50,
            beside=LINEAR,
        ),
        Word("scheduler_step", "epoch", "training.scheduler_step", beside=LINEAR),
        Word("freeze", True, "model.freeze"),
        Word("output_dim", 64, "model.output_dim"),
        Word("device", "cpu", "training.device"),
        Word("num_workers", 0, "training.dataloader_num_workers"),
        Word("to_onnx", True, "output.to_onnx"),
        Word("csv_options", CSVOptions(is_labeled=True), "data.csv"),
        Word("public", True, "output.public"),
        Word("num_items_per_class", 2, "training.num_items_per_class"),
        Word("sampler", "random", "training.sampler"),
        Word("loss_optimizer", "SGD", "objective.loss_optimizer"),
        Word("loss_optimizer_options", {"momentum": 0.5}, "objective.loss_optimizer_options"),
        *map(by_own_name, BY_OWN_NAME),
    )

    def door(self, **words: Any) -> JobSpec:
        return fit_spec(**words)

    def public(self) -> Callable[..., Any]:
        return luthier.fit

    def test_the_door_takes_what_fit_takes(self) -> None:
        door = {n for n in inspect.signature(fit_spec).parameters if n != "training"}
        assert door == set(self._parameters()) - set(self.beside)


def words(**more: Any) -> dict[str, Any]:
    return {**TestFit.base, **more}


def test_the_signature_is_the_references() -> None:
    """Finetuner 0.8.1, in order, with its defaults (but for device, which is auto here)."""
    theirs = [
        "model",
        "train_data",
        "eval_data",
        "val_split",
        "model_artifact",
        "run_name",
        "description",
        "experiment_name",
        "model_options",
        "loss",
        "miner",
        "miner_options",
        "optimizer",
        "optimizer_options",
        "learning_rate",
        "epochs",
        "batch_size",
        "callbacks",
        "scheduler",
        "scheduler_options",
        "freeze",
        "output_dim",
        "device",
        "num_workers",
        "to_onnx",
        "csv_options",
        "public",
        "num_items_per_class",
        "sampler",
        "loss_optimizer",
        "loss_optimizer_options",
    ]
    parameters = inspect.signature(luthier.fit).parameters
    ours = [name for name in parameters if name in theirs]
    assert ours == theirs
    defaults = {
        "val_split": 0.0,
        "loss": "TripletMarginLoss",
        "optimizer": "Adam",
        "epochs": 5,
        "batch_size": None,
        "freeze": False,
        "num_workers": 4,
        "num_items_per_class": 4,
        "sampler": "auto",
        "device": "auto",
    }
    assert {n: parameters[n].default for n in defaults} == defaults


def test_the_schedule_is_worded_either_way() -> None:
    options = {"num_warmup_steps": 5, "num_training_steps": 50, "scheduler_step": "epoch"}
    spec = fit_spec(**words(scheduler="linear", scheduler_options=options))
    assert spec.training.num_warmup_steps == 5
    assert spec.training.num_training_steps == 50
    assert spec.training.scheduler_step == "epoch"
    other = fit_spec(**words(scheduler="linear", scheduler_step="epoch"))
    assert other.training.scheduler_step == "epoch"
    power = fit_spec(**words(scheduler="polynomial", scheduler_options={"power": 2}))
    assert power.training.lr_scheduler_kwargs == {"power": 2}
    with pytest.raises(SpecError, match="scheduler_step"):
        fit_spec(
            **words(
                scheduler="linear",
                scheduler_step="batch",
                scheduler_options={"scheduler_step": "epoch"},
            )
        )


def test_schedule_options_without_a_schedule_are_refused() -> None:
    with pytest.raises(SpecError, match="without a scheduler"):
        fit_spec(**words(scheduler_options={"num_warmup_steps": 5}))


def test_the_default_rate_is_that_of_what_is_trained() -> None:
    assert fit_spec(**words()).training.learning_rate == WHOLE_MODEL_RATE
    head = fit_spec(**words(freeze=True, output_dim=8))
    assert head.training.learning_rate == HEAD_RATE


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"epoch": 3}, "did you mean 'epochs'"),
        ({"lr": 1e-3}, "it is called 'learning_rate'"),
        ({"epochs": -1}, "greater than or equal to 0"),
        ({"batch_size": 0}, "greater than or equal to 1"),
        ({"learning_rate": float("nan")}, "learning_rate"),
        ({"val_split": 1.0}, "val_split"),
        ({"val_split": 0.1, "eval_data": EVAL}, "not both"),
        ({"sampler": "clas"}, "sampler"),
        ({"num_train_epochs": 3}, "given twice"),
        ({"num_fixed_layers": 1, "model_options": {"num_fixed_layers": 2}}, "given twice"),
        ({"num_fixed_layers": -1}, "greater than or equal to 0"),
        ({"callbacks": [{"kind": "early"}]}, "callbacks"),
    ],
)
def test_wrong_words_are_errors(wrong, said) -> None:
    with pytest.raises(SpecError, match=said):
        fit_spec(**words(**wrong))


def test_all_problems_are_told_together() -> None:
    with pytest.raises(SpecError) as caught:
        fit_spec(**words(epochs=-1, batch_size=0, epoch=3))
    assert len(caught.value.problems) == 3
