"""TrainingArguments for a queued run: every field acts, is refused, or says nothing of a result."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import pytest
from transformers import EarlyStoppingCallback, TrainerCallback

import luthier
from luthier import Seq2SeqTrainingArguments
from luthier.callback import WiSEFTCallback
from luthier.doors.fit import fit_spec
from luthier.doors.trainer import BY_HAND, IDLE, LEAVES, trainer_words
from luthier.errors import SpecError
from luthier.spec import JobSpec, Source
from luthier.spec.callbacks import (
    BestModelCheckpoint,
    EarlyStopping,
    MLFlowLogger,
    TrainingCheckpoint,
)
from luthier.testing.doors import DoorCase, Word
from luthier.trainer.arguments import ArgumentsError

DATA = Source(uri="/data/train.csv")
DECAYED = {"betas": [0.9, 0.999], "eps": 1e-8, "weight_decay": 0.0}
PLATEAU_FREE = {"eval_strategy": "steps", "save_strategy": "steps"}


def values_of(**words: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """The values of arguments, and those where nothing was said."""
    made = (Seq2SeqTrainingArguments(**{"output_dir": "out", **w}) for w in (words, {}))
    given, plain = ({f.name: getattr(a, f.name) for f in fields(a)} for a in made)
    return given, plain


def spec_of(callbacks: Any = (), **words: Any) -> JobSpec:
    found = trainer_words(*values_of(**words), callbacks)
    found.pop("run_name", None)
    return fit_spec(model="all-minilm-l6-v2", train_data=DATA, **found)


def adamw(**changes: Any) -> dict[str, Any]:
    return {**DECAYED, **changes}


#: Fields that are for a live model, and a value that is not their default.
LIVE = {
    "optim_target_modules": ["dense"], "bf16_full_eval": True, "fp16_full_eval": True,
    "torch_compile": True, "torch_compile_backend": "eager",
    "neftune_noise_alpha": 5.0, "eval_delay": 2, "prediction_loss_only": True,
    "push_to_hub": True, "full_determinism": True, "dataloader_drop_last": True,
    "train_sampling_strategy": "group_by_length", "group_by_length": True,
    "debug": "underflow_overflow", "resume_from_checkpoint": "out/checkpoint-1",
    "sortish_sampler": True, "generation_config": "elsewhere",
    "remove_unused_columns": False, "label_names": ["y"], "length_column_name": "n",
    "ignore_data_skip": True, "save_only_model": True, "include_for_metrics": ["loss"],
    "include_inputs_for_metrics": True, "batch_eval_metrics": True,
    "restore_callback_states_from_checkpoint": True,
    "liger_kernel_config": {"rope": True},
    "activation_checkpointing": True, "activation_checkpointing_kwargs": {"a": 1},
}  # fmt: skip

#: Fields that need hardware or a launcher to be anything else, and the default they keep here.
ELSEWHERE = {
    "tf32", "torch_compile_mode", "use_liger_kernel", "accelerator_config", "parallelism_config",
    "fsdp", "fsdp_config", "deepspeed",
    "gradient_checkpointing", "gradient_checkpointing_kwargs",  # former names
}  # fmt: skip


REFUSED = {
    name: (value, "for_metrics" if "for_metrics" in name else name) for name, value in LIVE.items()
}


class TestTrainingArguments(DoorCase):
    base = {}  # noqa: RUF012
    beside = tuple(sorted(IDLE | ELSEWHERE | {"run_name", "data_seed"}))
    refused = REFUSED
    reaches = (
        Word("learning_rate", 1e-4, "training.learning_rate"),
        Word("num_train_epochs", 2.5, "training.num_train_epochs"),
        Word("per_device_train_batch_size", 4, "training.per_device_train_batch_size"),
        Word("per_device_eval_batch_size", 4, "training.per_device_eval_batch_size"),
        Word("gradient_accumulation_steps", 4, "training.gradient_accumulation_steps"),
        Word("max_steps", 10, "training.max_steps"),
        Word("max_grad_norm", 0.5, "training.max_grad_norm"),
        Word("label_smoothing_factor", 0.1, "training.label_smoothing_factor"),
        Word("warmup_ratio", 0.1, "training.warmup_ratio"),
        Word("warmup_steps", 7, "training.num_warmup_steps"),
        Word("warmup_steps", 0.25, "training.warmup_ratio"),
        Word("seed", 7, "training.seed"),
        Word("dataloader_num_workers", 2, "training.dataloader_num_workers"),
        Word("execution", "padded", "training.execution"),
        Word("lr_scheduler_type", "cosine", "training.lr_scheduler_type"),
        Word("lr_scheduler_kwargs", {"num_cycles": 2}, "training.lr_scheduler_kwargs",
             beside={"lr_scheduler_type": "cosine"}),
        Word("optim", "sgd", "training.optim", becomes="SGD"),
        Word("optim_args", "momentum=0.9", "training.optim_args", beside={"optim": "sgd"},
             becomes={"weight_decay": 0.0, "momentum": 0.9}),
        Word("weight_decay", 0.1, "training.optim_args", becomes=adamw(weight_decay=0.1)),
        Word("adam_beta1", 0.8, "training.optim_args", becomes=adamw(betas=[0.8, 0.999])),
        Word("adam_beta2", 0.8, "training.optim_args", becomes=adamw(betas=[0.9, 0.8])),
        Word("adam_epsilon", 1e-6, "training.optim_args", becomes=adamw(eps=1e-6)),
        Word("bf16", True, "training.precision", becomes="bf16"),
        Word("fp16", True, "training.precision", becomes="fp16"),
        Word("use_cpu", True, "training.device", becomes="cpu"),
        Word("eval_strategy", "steps", "training.eval_steps", becomes=5,
             beside={"eval_steps": 5, "logging_steps": 5}),
        Word("eval_steps", 5, "training.eval_steps", beside={"eval_strategy": "steps"}),
        Word("save_strategy", "epoch", "training.save_steps", becomes=None),
        Word("save_steps", 5, "training.save_steps"),
        Word("save_total_limit", 2, "callbacks", becomes=(TrainingCheckpoint(last_k_epochs=2),)),
        Word("load_best_model_at_end", True, "callbacks", becomes=(BestModelCheckpoint(),),
             beside={**PLATEAU_FREE, "eval_steps": 500}),
        Word("metric_for_best_model", "eval_accuracy", "callbacks",
             becomes=(BestModelCheckpoint(monitor="accuracy"),),
             beside={**PLATEAU_FREE, "eval_steps": 500, "load_best_model_at_end": True}),
        Word("greater_is_better", True, "callbacks", becomes=(BestModelCheckpoint(mode="max"),),
             beside={**PLATEAU_FREE, "eval_steps": 500, "load_best_model_at_end": True}),
        Word("report_to", "mlflow", "callbacks", becomes=(MLFlowLogger(),)),
        Word("generation_max_length", 9, "processing.generation", becomes={"max_new_tokens": 8}),
        Word("generation_num_beams", 2, "processing.generation", becomes={"num_beams": 2}),
    )  # fmt: skip

    def door(self, **words: Any) -> JobSpec:
        half = {"bf16", "bf16_full_eval"} & set(words)  # transformers asks for a word more
        return spec_of(**({"use_cpu": True} if half else {}) | words)

    def public(self) -> Any:
        return Seq2SeqTrainingArguments

    def test_every_leaf_can_be_said(self) -> None:
        """fit() says what the arguments do not: its own test asks for every leaf."""
        assert {word.leaf for word in self.reaches} <= {
            f"training.{name}" for name in JobSpec.model_fields["training"].annotation.model_fields
        } | {"callbacks", "processing.generation"}


def refusal(callbacks: Any = (), **words: Any) -> str:
    with pytest.raises(SpecError) as caught:
        trainer_words(*values_of(**words), callbacks)
    return str(caught.value)


def test_every_argument_has_one_fate():
    known = {f.name for f in fields(Seq2SeqTrainingArguments)}
    groups = [set(LEAVES), set(BY_HAND), set(IDLE)]
    assert set.union(*groups) <= known
    assert sum(map(len, groups)) == len(set.union(*groups))


def test_early_stopping_of_transformers_watches_the_metric_of_the_arguments():
    words = {**PLATEAU_FREE, "eval_steps": 500, "load_best_model_at_end": True}
    given = [EarlyStoppingCallback(3, 0.01), WiSEFTCallback(alpha=0.1)]
    spec = spec_of(given, metric_for_best_model="f1", **words)
    stopping = EarlyStopping(monitor="f1", patience=3, min_delta=0.01)
    assert spec.callbacks == (BestModelCheckpoint(monitor="f1"), stopping, given[1])


def test_what_a_queued_run_cannot_do_is_told_at_once():
    class Mine(TrainerCallback):
        """Of this process."""

    found = refusal(
        [Mine()], data_seed=3, lr_scheduler_type="constant", warmup_steps=3, optim="lion_8bit",
        report_to=["tensorboard"], save_steps=0.5, push_to_hub=True, optim_args=None,
    )  # fmt: skip
    for said in (
        "callbacks: a Mine lives in this process",
        "args.data_seed: is 3, but one seed draws all: 42",
        "args.warmup_steps: the 'constant' schedule has no warm-up",
        "args.optim: 'lion_8bit' is none", "args.report_to: a queued run cannot report to",
        "args.save_steps: is a share", "args.push_to_hub",
    ):  # fmt: skip
        assert said in found
    assert "args.optim_args: 'momentum' is not name=number" in refusal(optim_args="momentum")
    assert "args.save_strategy" in refusal(
        save_strategy="best", metric_for_best_model="loss", eval_strategy="epoch"
    )


def test_a_seed_of_the_data_may_be_the_seed():
    assert spec_of(data_seed=42).id == spec_of().id


def test_what_the_arguments_say_is_not_said_again():
    args = Seq2SeqTrainingArguments(output_dir="out", learning_rate=1e-4)
    with pytest.raises(SpecError) as caught:
        luthier.fit("all-minilm-l6-v2", [], args=args, learning_rate=1e-3, seed=3)
    assert "learning_rate: given twice" in str(caught.value)
    assert "seed: given twice" in str(caught.value)


def test_a_name_is_queued_and_not_trained_live():
    with pytest.raises(ArgumentsError, match=r"is the name 'bert'.*luthier\.fit") as caught:
        luthier.Trainer(model="bert")
    assert caught.value.problems[0].field == "model"
