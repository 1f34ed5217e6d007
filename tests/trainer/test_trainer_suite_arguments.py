"""Training arguments: what is coerced, what follows from what, what is refused, how they travel."""

import json
import os
import pickle
from dataclasses import dataclass, field

import pytest
import torch
from transformers.debug_utils import DebugOption
from transformers.trainer_utils import HubStrategy, IntervalStrategy, SaveStrategy, SchedulerType
from transformers.training_args import OptimizerNames

from luthier.trainer.arguments import (
    ArgumentsError,
    Seq2SeqTrainingArguments,
    TrainingArguments,
)
from luthier.trainer.trainer import Trainer


def given(kind=TrainingArguments, **words):
    return kind(**({"output_dir": "x", "report_to": "none", "use_cpu": True} | words))


def test_folders(tmp_path) -> None:
    assert given(output_dir=None).output_dir == "trainer_output"
    assert given(output_dir="~/here").output_dir == os.path.expanduser("~/here")
    given(output_dir=str(tmp_path / "new"), do_train=True)
    assert not (tmp_path / "new").exists()


def test_words_become_what_they_mean() -> None:
    args = given(eval_strategy="steps", eval_steps=10, save_strategy="epoch", hub_strategy="end",
                 lr_scheduler_type="linear", optim="adamw_torch")  # fmt: skip
    assert args.eval_strategy == IntervalStrategy.STEPS
    assert args.logging_strategy == IntervalStrategy.STEPS
    assert args.save_strategy == SaveStrategy.EPOCH
    assert args.hub_strategy == HubStrategy.END
    assert args.lr_scheduler_type == SchedulerType.LINEAR
    assert args.optim == OptimizerNames.ADAMW_TORCH
    assert given(debug="underflow_overflow").debug == [DebugOption.UNDERFLOW_OVERFLOW]
    assert given(debug=None).debug == []
    assert given(lr_scheduler_kwargs='{"factor": 0.5}').lr_scheduler_kwargs == {"factor": 0.5}
    assert given(include_num_input_tokens_seen=True).include_num_input_tokens_seen == "all"
    assert given(include_num_input_tokens_seen=False).include_num_input_tokens_seen == "no"


def test_what_follows_from_what() -> None:
    assert given(eval_strategy="steps", logging_steps=10).eval_steps == 10
    assert given(eval_strategy="epoch", do_eval=False).do_eval
    assert given(torch_compile_mode="reduce-overhead").torch_compile
    assert given(torch_compile_backend="eager").torch_compile
    assert given(torch_compile=True).torch_compile_backend == "inductor"
    assert not given().dataloader_pin_memory  # use_cpu
    assert given(use_cpu=True).device == torch.device("cpu")
    assert given(gradient_accumulation_steps=3).train_batch_size == 8


@pytest.mark.parametrize(
    ("metric", "greater"), [(None, False), ("eval_loss", False), ("loss", False), ("f1", True)]
)
def test_whether_greater_is_better(metric, greater) -> None:
    args = given(load_best_model_at_end=True, eval_strategy="epoch", save_strategy="epoch",
                 metric_for_best_model=metric)  # fmt: skip
    assert args.metric_for_best_model == (metric or "loss")
    assert args.greater_is_better == greater


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"torch_empty_cache_steps": 1.0}, "torch_empty_cache_steps"),
        ({"torch_empty_cache_steps": "none"}, "torch_empty_cache_steps"),
        ({"torch_empty_cache_steps": -1}, "torch_empty_cache_steps"),
        ({"torch_empty_cache_steps": 0}, "torch_empty_cache_steps"),
        ({"eval_strategy": "sometimes"}, "sometimes"),
        ({"eval_strategy": "steps", "logging_steps": 0}, "logging_steps: is above 0"),
        ({"logging_steps": 10.5}, "logging_steps must be an integer"),
        ({"eval_strategy": "steps", "eval_steps": 10.5}, "eval_steps must be an integer"),
        ({"save_steps": 10.5}, "save_steps must be an integer"),
        ({"load_best_model_at_end": True, "eval_strategy": "steps", "save_strategy": "epoch"},
         "strategy to match"),
        ({"load_best_model_at_end": True, "eval_strategy": "steps", "eval_steps": 10,
          "save_steps": 15}, "round multiple"),
        ({"fp16_full_eval": True, "bf16_full_eval": True}, "At most one"),
        ({"warmup_steps": -1}, "warmup_steps"),
        ({"dataloader_prefetch_factor": 2}, "dataloader_prefetch_factor"),
        ({"report_to": "nowhere"}, "nowhere"),
    ],
    ids=str,
)  # fmt: skip
def test_refused(words, message) -> None:
    with pytest.raises(ValueError, match=message):
        Trainer(model=torch.nn.Linear(1, 1), args=given(**words))


@pytest.mark.parametrize(
    "words",
    [
        {"torch_empty_cache_steps": 1}, {"torch_empty_cache_steps": None},
        {"logging_steps": 0.5}, {"warmup_steps": 0}, {"warmup_steps": 0.5},
        {"dataloader_prefetch_factor": 2, "dataloader_num_workers": 2},
        {"load_best_model_at_end": True, "eval_strategy": "steps", "eval_steps": 10,
         "save_steps": 20},
    ],
    ids=str,
)  # fmt: skip
def test_taken(words) -> None:
    args = given(**words)
    assert {name: getattr(args, name) for name in words} == words


def test_a_share_of_the_steps_warms_up() -> None:
    assert given(warmup_steps=0.5).get_warmup_steps(100) == 50
    assert given(warmup_steps=5).get_warmup_steps(100) == 5


def test_reports(monkeypatch) -> None:
    monkeypatch.delenv("KUBEFLOW_TRAINER_SERVER_URL", raising=False)
    assert given(report_to="none").report_to == given(report_to=["none"]).report_to == []
    assert given(report_to="tensorboard").report_to == ["tensorboard"]
    monkeypatch.setenv("KUBEFLOW_TRAINER_SERVER_URL", "https://example.invalid")
    assert given(report_to="none").report_to == ["kubeflow"]


@pytest.mark.parametrize("kind", [TrainingArguments, Seq2SeqTrainingArguments])
def test_they_travel(kind) -> None:
    args = given(kind, learning_rate=0.3, warmup_ratio=0.2, execution="padded", optim="sgd")
    again = pickle.loads(pickle.dumps(args))
    assert again.to_dict() == args.to_dict()
    assert json.loads(args.to_json_string())["execution"] == "padded"
    assert args.to_sanitized_dict()["warmup_ratio"] == 0.2


def test_tokens_are_not_shown() -> None:
    args = given(hub_token="a-secret")
    assert "a-secret" not in repr(args) + str(args) + args.to_json_string()
    assert "learning_rate" in repr(args)


@dataclass
class More(TrainingArguments):
    """As scripts add fields of their own."""

    dtype: torch.dtype = field(default=torch.float32)
    margin: float = 0.5

    def __post_init__(self):
        super().__post_init__()
        self.margin *= 2


@pytest.mark.parametrize("name", ["float16", "bfloat16", "int8", "complex64", "bool"])
def test_subclasses_with_fields_of_their_own(name) -> None:
    args = given(More, dtype=getattr(torch, name), learning_rate=0.3)
    assert args.to_dict()["dtype"] == name
    assert json.loads(args.to_json_string())["dtype"] == name
    assert (args.margin, args.learning_rate) == (1.0, 0.3)
    with pytest.raises(TypeError, match="learning_rat"):
        given(More, learning_rat=1)


def test_setters() -> None:
    args = given().set_training(learning_rate=0.3, batch_size=4)
    assert (args.learning_rate, args.per_device_train_batch_size) == (0.3, 4)
    assert args.set_lr_scheduler(name="cosine", warmup_steps=3).warmup_steps == 3
    assert args.set_save(strategy="steps", steps=7).save_steps == 7


def test_command_lines() -> None:
    from transformers import HfArgumentParser

    line = ["--output_dir", "x", "--learning_rate", "0.3", "--warmup_ratio", "0.5", "--use_cpu"]
    (args,) = HfArgumentParser(TrainingArguments).parse_args_into_dataclasses(line)
    assert (args.learning_rate, args.warmup_ratio, args.use_cpu) == (0.3, 0.5, True)
    with pytest.raises(ArgumentsError, match="warmup_ratio"):
        HfArgumentParser(TrainingArguments).parse_args_into_dataclasses(
            ["--output_dir", "x", "--warmup_ratio", "2"]
        )
