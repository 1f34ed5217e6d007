"""The door of ``TrainingArguments``: transformers' arguments become words of ``fit()``.

For a job that is queued. A ``Trainer`` with a live model trains in its own process instead, and
needs no words. Pure functions: no torch; a test goes through the fields of the arguments and
asks that each acts, is refused with a reason, or says nothing of the result.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from luthier.doors.optimizers import NAMES, optimizer_words
from luthier.errors import Problem, SpecError, nearest

#: Argument → the word of ``fit()`` that it is.
LEAVES = {
    "learning_rate": "learning_rate",
    "num_train_epochs": "epochs",
    "per_device_train_batch_size": "batch_size",
    "per_device_eval_batch_size": "per_device_eval_batch_size",
    "gradient_accumulation_steps": "gradient_accumulation_steps",
    "max_steps": "max_steps",
    "max_grad_norm": "max_grad_norm",
    "label_smoothing_factor": "label_smoothing_factor",
    "warmup_ratio": "warmup_ratio",
    "seed": "seed",
    "dataloader_num_workers": "num_workers",
    "execution": "execution",
}

#: Arguments that become words, though not by their value alone, and which.
BY_HAND = {
    "lr_scheduler_type": "scheduler",
    "lr_scheduler_kwargs": "scheduler_options",
    "warmup_steps": "scheduler_options, or warmup_ratio below 1",
    "optim": "optimizer",
    "optim_args": "optimizer_options",
    "weight_decay": "optimizer_options",
    "adam_beta1": "optimizer_options",
    "adam_beta2": "optimizer_options",
    "adam_epsilon": "optimizer_options",
    "bf16": "precision",
    "fp16": "precision",
    "use_cpu": "device",
    "eval_strategy": "eval_steps",
    "eval_steps": "eval_steps",
    "save_strategy": "save_steps",
    "save_steps": "save_steps",
    "save_total_limit": "callbacks",
    "load_best_model_at_end": "callbacks",
    "metric_for_best_model": "callbacks",
    "greater_is_better": "callbacks",
    "report_to": "callbacks",
    "run_name": "run_name",
    "data_seed": "seed, which it must be",
    "generation_max_length": "generation",
    "generation_num_beams": "generation",
}

#: Arguments that change nothing of the result of a queued run, whatever their value: where a
#: process writes and what it shows, and what the engine does by itself.
IDLE = frozenset([
    "output_dir", "overwrite_output_dir", "logging_dir", "logging_strategy", "logging_steps",
    "logging_first_step", "log_on_each_node", "logging_nan_inf_filter", "log_level",
    "log_level_replica", "disable_tqdm", "project", "trackio_space_id", "trackio_bucket_id",
    "trackio_static_space_id", "include_num_input_tokens_seen", "do_train", "do_eval",
    "do_predict", "local_rank", "skip_memory_metrics", "save_on_each_node", "save_safetensors",
    "auto_find_batch_size", "eval_on_start", "eval_do_concat_batches", "eval_use_gather_object",
    "eval_accumulation_steps", "predict_with_generate", "average_tokens_across_devices",
    "torch_empty_cache_steps", "use_cache", "ddp_find_unused_parameters", "ddp_bucket_cap_mb",
    "ddp_broadcast_buffers", "ddp_static_graph", "ddp_backend", "ddp_timeout",
    "dataloader_pin_memory", "dataloader_persistent_workers", "dataloader_prefetch_factor",
    "dataloader_multiprocessing_context", "dataloader_in_order", "hub_token",
    "hub_private_repo", "hub_model_id", "hub_strategy", "hub_always_push", "hub_revision",
    "enable_jit_checkpoint",
])  # fmt: skip

_HINTS = {
    "resume_from_checkpoint": "a run that was stopped goes on with run.resume()",
    "push_to_hub": "run.save_artifact() gives the folder to be pushed",
    "group_by_length": "leave it out: a step computes no padding by itself",
    "train_sampling_strategy": "leave it out: a step computes no padding by itself",
}
_TRAIN_LIVE = "train the live model with luthier.Trainer, which knows it"
_TRACKERS = {"mlflow": "mlflow", "wandb": "wandb"}


def trainer_words(
    values: Mapping[str, Any], defaults: Mapping[str, Any], callbacks: Iterable[Any] = ()
) -> dict[str, Any]:
    """The words of ``fit()`` that the arguments are.

    values: argument → value; defaults: what each is where nothing was said. callbacks: of
    ``luthier.callback``, and transformers' EarlyStoppingCallback, which watches what the
    arguments call ``metric_for_best_model``. Raises SpecError with every problem; an argument that
    is not at its default and would change a result, but not this one, is such a problem.
    """
    values = {name: _plain(value) for name, value in values.items()}
    defaults = {name: _plain(value) for name, value in defaults.items()}
    words = {word: values[name] for name, word in LEAVES.items() if name in values}
    problems = [
        Problem(f"args.{name}", f"{value!r:.60} is nothing that a queued run can do",
                _HINTS.get(name, _TRAIN_LIVE))
        for name, value in values.items()
        if name not in LEAVES and name not in BY_HAND and name not in IDLE
        and value != defaults.get(name)
    ]  # fmt: skip
    problems += _schedule(values, words)
    problems += _optimizer(values, words)
    problems += _process(values, words)
    problems += _moments(values, words)
    words["callbacks"] = []
    problems += _callbacks(values, callbacks, words["callbacks"])
    if generation := _generation(values):
        words["generation"] = generation
    if problems:
        raise SpecError(problems)
    return words


def _plain(value: Any) -> Any:
    """An enum's value; anything else as it is."""
    return getattr(value, "value", value) if type(value).__module__ != "builtins" else value


def _schedule(values: Mapping[str, Any], words: dict[str, Any]) -> Iterator[Problem]:
    name = words["scheduler"] = values["lr_scheduler_type"]
    options = dict(values["lr_scheduler_kwargs"] or {})
    warmup = values["warmup_steps"] or 0
    if (warmup or words["warmup_ratio"]) and name == "constant":
        message = "the 'constant' schedule has no warm-up"
        yield Problem("args.warmup_steps", message, "use constant_with_warmup")
    elif 0 < warmup < 1:  # transformers' way to say a ratio
        words["warmup_ratio"] = warmup
    elif warmup:
        words["warmup_ratio"] = 0.0  # steps win over a ratio
        options["num_warmup_steps"] = int(warmup)
    words["scheduler_options"] = options


def _optimizer(values: Mapping[str, Any], words: dict[str, Any]) -> Iterator[Problem]:
    optim = values["optim"]
    if optim not in NAMES:
        hint = nearest(optim, NAMES) or f"known: {', '.join(NAMES)}"
        yield Problem("args.optim", f"'{optim}' is none that a queued run knows", hint)
        return
    more = values["optim_args"] or {}
    if isinstance(more, str):
        parsed = {}
        for part in more.replace(" ", "").split(","):
            key, _, text = part.partition("=")
            try:
                parsed[key] = float(text)
            except ValueError:
                yield Problem("args.optim_args", f"'{part}' is not name=number")
                return
        more = parsed
    betas = (values["adam_beta1"], values["adam_beta2"])
    words["optimizer"], words["optimizer_options"] = optimizer_words(
        optim, values["weight_decay"], betas, values["adam_epsilon"], more
    )


def _process(values: Mapping[str, Any], words: dict[str, Any]) -> Iterator[Problem]:
    if values["bf16"] and values["fp16"]:
        yield Problem("args.fp16", "and bf16 are both asked for", "give one of them")
    words["precision"] = "bf16" if values["bf16"] else "fp16" if values["fp16"] else "fp32"
    words["device"] = "cpu" if values["use_cpu"] else "auto"
    if values["data_seed"] not in (None, values["seed"]):
        message = f"is {values['data_seed']}, but one seed draws all: {values['seed']}"
        yield Problem("args.data_seed", message, "leave it out")
    if values["run_name"]:
        words["run_name"] = values["run_name"]


def _generation(values: Mapping[str, Any]) -> dict[str, Any]:
    """Of ``Seq2SeqTrainingArguments``; a length counts the token that starts a sequence too."""
    found = {}
    if values.get("generation_num_beams") is not None:
        found["num_beams"] = values["generation_num_beams"]
    if values.get("generation_max_length") is not None:
        found["max_new_tokens"] = values["generation_max_length"] - 1
    return found


def _moments(values: Mapping[str, Any], words: dict[str, Any]) -> Iterator[Problem]:
    """How often it is measured and saved; an epoch's end does both by itself."""
    for name in ("eval", "save"):
        strategy, steps = values[f"{name}_strategy"], values[f"{name}_steps"]
        words[f"{name}_steps"] = None
        if strategy == "best":
            message = "keeps one checkpoint a run"
            yield Problem(f"args.{name}_strategy", message, "use load_best_model_at_end=True")
        elif strategy == "steps" and steps is not None:
            if steps < 1:
                message = f"is a share of all steps, {steps}, which are not known yet"
                yield Problem(f"args.{name}_steps", message, "give a number of steps")
            else:
                words[f"{name}_steps"] = math.floor(steps)


def _callbacks(
    values: Mapping[str, Any], given: Iterable[Any], found: list[Any]
) -> Iterator[Problem]:
    metric = str(values["metric_for_best_model"] or "loss").removeprefix("eval_")
    watched: dict[str, Any] = {"monitor": "val_loss" if metric == "loss" else metric}
    greater = values["greater_is_better"]
    if greater is not None and bool(greater) != (metric != "loss"):
        watched["mode"] = "max" if greater else "min"
    if values["load_best_model_at_end"]:
        found.append({"kind": "best_model", **watched})
    for callback in given:
        if type(callback).__name__ == "EarlyStoppingCallback":
            found.append({
                "kind": "early_stopping", **watched,
                "patience": callback.early_stopping_patience,
                "min_delta": callback.early_stopping_threshold or 0,
            })  # fmt: skip
        elif type(callback).__module__.startswith("luthier."):
            found.append(callback)
        else:
            message = f"a {type(callback).__name__} lives in this process, the run does not"
            yield Problem("callbacks", message, "see luthier.callback")
    if values["save_total_limit"] is not None and values["save_strategy"] != "no":
        found.append({"kind": "checkpoint", "last_k_epochs": values["save_total_limit"]})
    trackers = values["report_to"]
    for name in [trackers] if isinstance(trackers, str) else trackers or []:
        if name in _TRACKERS:
            found.append({"kind": _TRACKERS[name]})
        elif name != "none":
            hint = f"known: {', '.join(_TRACKERS)}"
            yield Problem("args.report_to", f"a queued run cannot report to '{name}'", hint)
