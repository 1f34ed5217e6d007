"""fit(): every word of its signature acts or is refused, and the seed's words are all there."""

from __future__ import annotations

import inspect

import pytest

import luthier
from luthier.callback import EarlyStopping, WiSEFTCallback
from luthier.doors.fit import HEAD_RATE, RUN_WORDS, WHOLE_MODEL_RATE, WORDS, fit_spec
from luthier.errors import SpecError
from luthier.spec import CSVOptions, JobSpec, Source, TrainingSpec, leaves

DATA = Source(uri="/data/train.csv")
EVAL = Source(uri="/data/eval.csv")

#: For each word a value that is not its default, and the leaf of the spec that it must reach.
REACHES = {
    "model": ("bert-base-en", "model.name"),
    "train_data": (Source(uri="/other.csv"), "data.train"),
    "eval_data": (EVAL, "data.eval"),
    "val_split": (0.25, "data.val_split"),
    "model_artifact": ("abcd", "model.artifact"),
    "model_options": ({"max_seq_length": 32}, "model.options"),
    "loss": ("ArcFaceLoss", "objective.loss"),
    "loss_options": ({"margin": 0.3}, "objective.loss_options"),
    "miner": ("TripletMarginMiner", "objective.miner"),
    "miner_options": ({"margin": 0.2}, "objective.miner_options"),
    "optimizer": ("SGD", "training.optim"),
    "optimizer_options": ({"momentum": 0.9}, "training.optim_args"),
    "learning_rate": (1e-4, "training.learning_rate"),
    "epochs": (0, "training.num_train_epochs"),
    "batch_size": (128, "training.per_device_train_batch_size"),
    "callbacks": ((EarlyStopping(), WiSEFTCallback(alpha=0.1)), "callbacks"),
    "scheduler": ("linear", "training.lr_scheduler_type"),
    "freeze": (True, "model.freeze"),
    "output_dim": (64, "model.output_dim"),
    "device": ("cpu", "training.device"),
    "num_workers": (0, "training.dataloader_num_workers"),
    "to_onnx": (True, "output.to_onnx"),
    "csv_options": (CSVOptions(is_labeled=True), "data.csv"),
    "public": (True, "output.public"),
    "num_items_per_class": (2, "training.num_items_per_class"),
    "sampler": ("random", "training.sampler"),
    "loss_optimizer": ("SGD", "objective.loss_optimizer"),
    "loss_optimizer_options": ({"momentum": 0.5}, "objective.loss_optimizer_options"),
}
#: Words that need company to be accepted.
SPECIAL = {"scheduler_options", "scheduler_step"}


def leaf(spec: JobSpec, path: str):
    value = spec
    for part in path.split("."):
        value = getattr(value, part)
    return value


def words(**more):
    return {"model": "all-minilm-l6-v2", "train_data": DATA, **more}


def test_every_word_of_the_signature_is_accounted_for() -> None:
    signature = {n for n in inspect.signature(luthier.fit).parameters if n != "training"}
    assert signature == set(REACHES) | SPECIAL | set(RUN_WORDS)
    door = {n for n in inspect.signature(fit_spec).parameters if n != "training"}
    assert door == set(REACHES) | SPECIAL


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


@pytest.mark.parametrize("word", REACHES)
def test_each_word_reaches_its_leaf(word) -> None:
    value, path = REACHES[word]
    spec = fit_spec(**words(**{word: value}))
    assert leaf(spec, path) == value
    if word != "train_data":
        assert spec.id != fit_spec(**words()).id, "a word that changes nothing is dropped"


@pytest.mark.parametrize("field", TrainingSpec.model_fields)
def test_every_field_of_training_can_be_said(field) -> None:
    """By fit's own word, or by the field's name."""
    own = {path: word for word, (_, path) in REACHES.items()}
    inside = {"num_warmup_steps", "num_training_steps", "lr_scheduler_kwargs"}
    path = leaves()[field]
    assert path in own or field in inside or field in WORDS


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


def test_explicit_zeros_count() -> None:
    """The reference turned epochs=0 and num_workers=0 into its defaults."""
    spec = fit_spec(**words(epochs=0, num_workers=0))
    assert spec.training.num_train_epochs == 0
    assert spec.training.dataloader_num_workers == 0
