"""Every field works or is refused, every former name is known, all problems come together."""

from dataclasses import fields

import pytest
import transformers

import luthier
from conftest import TASKS, train
from luthier.trainer.arguments import (
    FORMER_NAMES,
    REFUSED,
    ArgumentsError,
    Seq2SeqTrainingArguments,
    TrainingArguments,
)

THEIRS = {f.name: f for f in fields(transformers.TrainingArguments)}


def given(**words):
    return TrainingArguments(output_dir="x", report_to="none", use_cpu=True, **words)


def test_the_public_names_are_these() -> None:
    assert luthier.TrainingArguments is TrainingArguments
    assert luthier.Seq2SeqTrainingArguments is Seq2SeqTrainingArguments


def test_defaults_are_those_of_the_reference() -> None:
    args = given()
    wanted = {
        "num_train_epochs": 3.0, "max_steps": -1, "per_device_train_batch_size": 8,
        "per_device_eval_batch_size": 8, "gradient_accumulation_steps": 1, "max_grad_norm": 1.0,
        "seed": 42, "full_determinism": False, "learning_rate": 5e-5, "weight_decay": 0.0,
        "adam_beta1": 0.9, "adam_beta2": 0.999, "adam_epsilon": 1e-8,
        "lr_scheduler_type": "linear", "warmup_ratio": 0.0, "warmup_steps": 0,
        "eval_strategy": "no", "save_strategy": "steps", "save_steps": 500,
        "logging_strategy": "steps", "logging_steps": 500, "save_total_limit": None,
        "save_safetensors": True, "save_only_model": False, "load_best_model_at_end": False,
        "label_smoothing_factor": 0.0, "neftune_noise_alpha": None, "eval_delay": 0,
        "gradient_checkpointing": False, "eval_accumulation_steps": None,
        "include_inputs_for_metrics": False, "logging_nan_inf_filter": True,
        "remove_unused_columns": True, "auto_find_batch_size": False, "fp16": False, "bf16": False,
        "group_by_length": False, "dataloader_num_workers": 0,
    }  # fmt: skip
    assert {name: getattr(args, name) for name in wanted} == wanted
    assert args.optim == "adamw_torch_fused"
    best = given(load_best_model_at_end=True, eval_strategy="epoch", save_strategy="epoch")
    assert (best.metric_for_best_model, best.greater_is_better) == ("loss", False)


def test_every_field_of_theirs_is_taken_with_its_default() -> None:
    ours = {f.name for f in fields(TrainingArguments)}
    assert set(THEIRS) <= ours
    peer = transformers.TrainingArguments(output_dir="x", report_to="none", use_cpu=True)
    args = given()
    differ = {n for n in THEIRS if getattr(args, n) != getattr(peer, n)}
    assert differ <= {"logging_dir"}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_had_is_refused_with_its_reason(name) -> None:
    works = REFUSED[name][0]
    with pytest.raises(ArgumentsError, match=f"{name}: only {works!r} is possible: ") as error:
        given(**{name: object() if works is None else not works})
    assert isinstance(error.value, ValueError)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"learning_rat": 1}, "learning_rat: there is no such training argument.*learning_rate"),
        ({"eval_strategy": "steps", "evaluation_strategy": "no"}, "another name of eval_strategy"),
        ({"warmup_ratio": 1.5}, r"warmup_ratio: lies in \[0, 1\]"),
        ({"eval_strategy": "steps", "eval_steps": -1}, "eval_steps: is above 0"),
        ({"eval_strategy": "steps", "eval_steps": 0}, "eval_steps: is above 0"),
        ({"save_steps": 0}, "save_steps: is above 0"),
        ({"logging_steps": 0}, "logging_steps: is above 0"),
        ({"learning_rate": 0}, "learning_rate: is above 0"),
        ({"per_device_train_batch_size": 0}, "per_device_train_batch_size: is at least 1"),
        ({"gradient_accumulation_steps": 0}, "gradient_accumulation_steps: is at least 1"),
        ({"execution": "quick"}, "'quick' is not auto, packed or padded"),
        ({"optim": "adamm"}, "adamm"),
        ({"lr_scheduler_type": "steep"}, "steep"),
        ({"fp16": True, "bf16": True}, "fp16 and bf16|at most one"),
        ({"load_best_model_at_end": True}, "(?i)strateg"),
        ({"lr_scheduler_type": "reduce_lr_on_plateau"}, "(?i)eval"),
    ],
)
def test_what_is_wrong_is_said(words, message) -> None:
    with pytest.raises(ArgumentsError, match=message):
        given(**words)


def test_all_problems_are_told_together() -> None:
    with pytest.raises(ArgumentsError) as error:
        given(learning_rat=1, evl_steps=3)
    assert len(error.value.problems) == 2
    with pytest.raises(ArgumentsError) as error:
        given(warmup_ratio=2, learning_rate=-1, enable_jit_checkpoint=True)
    assert len(error.value.problems) == 3


@pytest.mark.parametrize(("former", "today"), FORMER_NAMES.items())
def test_former_names(former, today) -> None:
    value = {"evaluation_strategy": "epoch", "no_cuda": True}.get(former, 4)
    args = TrainingArguments(output_dir="x", report_to="none", **{former: value})
    assert getattr(args, today) == value


def test_names_of_optimizers() -> None:
    assert given(optim="adamw").optim == given().optim
    assert given(optim="sgd").optim == "sgd"


def test_warmup_steps_win() -> None:
    assert given(warmup_ratio=0.1).get_warmup_steps(95) == 10
    assert given(warmup_ratio=1.0).get_warmup_steps(95) == 95
    assert given(warmup_ratio=0.1, warmup_steps=3).get_warmup_steps(95) == 3


def test_the_ratio_warms_up(tmp_path) -> None:
    ours = train(TASKS["classification"], tmp_path, warmup_ratio=0.5)
    rates = [e["learning_rate"] for e in ours.log if "learning_rate" in e]
    assert rates[0] == 0
    assert max(rates) == rates[6] == 1e-2


def test_arguments_survive_json() -> None:
    args = given(evaluation_strategy="epoch", optim="sgd", warmup_ratio=0.2)
    assert args.to_dict()["warmup_ratio"] == 0.2
    assert '"eval_strategy": "epoch"' in args.to_json_string()
