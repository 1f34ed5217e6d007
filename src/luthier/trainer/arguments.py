"""``TrainingArguments``: transformers' fields, the names that they had, and ours."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import transformers
from transformers.training_args import OptimizerNames

from luthier.engine.distribute import adopt_mpi
from luthier.errors import Problem, SpecError, nearest

#: Names that MindNLP's and earlier versions of transformers' arguments have, and today's.
FORMER_NAMES = {
    "evaluation_strategy": "eval_strategy",
    "no_cuda": "use_cpu",
    "per_gpu_train_batch_size": "per_device_train_batch_size",
    "per_gpu_eval_batch_size": "per_device_eval_batch_size",
}

#: Fields whose default is the only value that works, and why.
REFUSED = {
    "parallelism_config": (None, "the loop here knows data parallel, DeepSpeed and FSDP", None),
    "save_safetensors": (True, "checkpoints hold no pickles here", None),
    "enable_jit_checkpoint": (False, "a run that is killed resumes from its last checkpoint", None),
}

#: Optimizers by the names that MindNLP and the component have for them.
_OPTIMIZERS = {"adamw": "adamw_torch_fused", "adamw_hf": "adamw_torch_fused"}


class ArgumentsError(SpecError, ValueError):
    """Arguments that cannot be had; a ValueError too, which callers of transformers catch."""


@dataclass(repr=False)  # theirs leaves out tokens
class TrainingArguments(transformers.TrainingArguments):
    """How a ``Trainer`` trains. All fields of ``transformers.TrainingArguments``, and:

    Args:
        optim: also ``"adamw"`` and ``"sgd"``.
        warmup_ratio: share of all steps, in [0, 1]; ``warmup_steps`` wins.
        group_by_length: batches of texts of like length.
        include_inputs_for_metrics: ``compute_metrics`` gets the inputs as well.
        execution: how texts go through an encoder. "packed" leaves out the padding: faster,
            shown to give the same on the first batch, and with dropout masks that are other
            draws of the same distribution. "padded" is the path of transformers. "auto" packs
            where the model has no dropout, so that losses are always those of transformers.
        logging_dir: where TensorBoard's files go.
        evaluation_strategy, no_cuda: former names of ``eval_strategy`` and ``use_cpu``.

    Raises:
        ArgumentsError: lists every unknown name and every value that cannot work.
    """

    optim: OptimizerNames | str = "adamw_torch_fused"
    warmup_ratio: float = field(default=0.0)
    group_by_length: bool = field(default=False)
    include_inputs_for_metrics: bool = field(default=False)
    save_safetensors: bool = field(default=True)
    logging_dir: str | None = field(default=None)
    overwrite_output_dir: bool = field(default=False)
    execution: str = field(default="auto")

    def __post_init__(self) -> None:
        problems = [*_ranges(self), *_refused(self)]
        if problems:
            raise ArgumentsError(problems)
        self.optim = _OPTIMIZERS.get(str(self.optim), self.optim)
        if self.group_by_length:
            self.train_sampling_strategy = "group_by_length"
        if self.include_inputs_for_metrics:
            self.include_for_metrics = sorted({*self.include_for_metrics, "inputs"})
        self._launched()
        try:
            inherited: Any = super()
            inherited.__post_init__()
        except ValueError as error:
            raise ArgumentsError([Problem("TrainingArguments", str(error))]) from None
        if self.deepspeed:
            from luthier.trainer import zero

            zero.settled(self)
        if problems := _contradictions(self):
            raise ArgumentsError(problems)

    def _launched(self) -> None:
        """What several processes and DeepSpeed need, before accelerate looks for them."""
        try:
            adopt_mpi()
        except SpecError as error:
            raise ArgumentsError(error.problems) from None
        if not self.deepspeed:
            return
        from luthier.trainer import zero

        config, problems = zero.completed(self.deepspeed, self)
        if problems:
            raise ArgumentsError(problems)
        self.deepspeed = config
        zero.make_ready(self)

    def get_warmup_steps(self, num_training_steps: int) -> int:
        """Steps of the warm-up; ``warmup_steps`` wins over ``warmup_ratio``."""
        if self.warmup_steps:
            return int(super().get_warmup_steps(num_training_steps))
        return math.ceil(num_training_steps * self.warmup_ratio)


def _ranges(args: TrainingArguments) -> list[Problem]:
    found = []
    if not 0 <= args.warmup_ratio <= 1:
        found.append(Problem("warmup_ratio", f"lies in [0, 1], not {args.warmup_ratio!r}"))
    if args.execution not in ("auto", "packed", "padded"):
        message = f"'{args.execution}' is not auto, packed or padded"
        found.append(Problem("execution", message))
    for name in ("eval_steps", "save_steps", "logging_steps"):
        value, strategy = getattr(args, name), getattr(args, name.replace("steps", "strategy"))
        if (
            value is not None
            and str(getattr(strategy, "value", strategy)) == "steps"
            and value <= 0
        ):
            found.append(Problem(name, f"is above 0 when the strategy is 'steps', not {value!r}"))
    for name in ("per_device_train_batch_size", "per_device_eval_batch_size",
                 "gradient_accumulation_steps"):  # fmt: skip
        if getattr(args, name) < 1:
            found.append(Problem(name, f"is at least 1, not {getattr(args, name)!r}"))
    if args.learning_rate <= 0:
        found.append(Problem("learning_rate", f"is above 0, not {args.learning_rate!r}"))
    return found


def _refused(args: TrainingArguments) -> list[Problem]:
    return [
        Problem(name, f"only {works!r} is possible: {why}", hint)
        for name, (works, why, hint) in REFUSED.items()
        if getattr(args, name) != works
    ]


def _contradictions(args: TrainingArguments) -> list[Problem]:
    found = []
    if args.lr_scheduler_type == "reduce_lr_on_plateau" and args.eval_strategy == "no":
        message = "reduce_lr_on_plateau waits for an evaluation, and there is none"
        found.append(Problem("lr_scheduler_type", message, "set eval_strategy"))
    if args.fsdp and args.device.type == "cpu":
        message = "accelerate's FSDP on a CPU runs plain data parallel, without a word"
        found.append(Problem("fsdp", message, "leave it out, or use DeepSpeed"))
    if args.deepspeed and args.auto_find_batch_size:
        message = "Deep Speed cannot be coupled with auto_find_batch_size"
        found.append(Problem("auto_find_batch_size", message))
    elif args.auto_find_batch_size and args.world_size > 1:
        message = "the other processes would wait for the one that does a step again"
        hint = "lower per_device_train_batch_size, raise gradient_accumulation_steps"
        found.append(Problem("auto_find_batch_size", message, hint))
    return found


def _strict(kind: Any) -> Any:
    """The class with a constructor that takes former names and reports all unknown ones."""
    known = {f.name for f in fields(kind) if f.init}
    init: Callable[..., None] = kind.__init__

    @functools.wraps(init)
    def wrapped(self: Any, *args: Any, **given: Any) -> None:
        words, problems = _todays(given, known)
        if problems:
            raise ArgumentsError(problems)
        init(self, *args, **words)

    kind.__init__ = wrapped
    return kind


def _todays(given: Mapping[str, Any], known: set[str]) -> tuple[dict[str, Any], list[Problem]]:
    words: dict[str, Any] = {}
    problems = []
    for name, value in given.items():
        today = FORMER_NAMES.get(name, name)
        if today not in known:
            hint = nearest(name, [*known, *FORMER_NAMES])
            problems.append(Problem(name, "there is no such training argument", hint))
        elif today in words or (today != name and today in given):
            problems.append(Problem(name, f"is another name of {today}, which is given as well"))
        else:
            words[today] = value
    return words, problems


_strict(TrainingArguments)


@_strict
@dataclass(repr=False)
class Seq2SeqTrainingArguments(TrainingArguments, transformers.Seq2SeqTrainingArguments):
    """With ``predict_with_generate`` and how to generate: transformers'
    ``Seq2SeqTrainingArguments`` as well."""
