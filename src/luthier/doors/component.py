"""The door of the Azure ML finetune components: their flags become our words.

Pure functions: no torch, no I/O. Four steps (import, preprocess, finetune, evaluate) take the
parameters of ``component_table.TABLE``; every one of them acts, is refused with a reason, or is
told to be without effect (``notices``).
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from decimal import Decimal
from typing import Any, Literal

from luthier.doors.component_table import METRICS, PATHS, TABLE, TASKS, Parameter, Step
from luthier.doors.optimizers import optimizer_words
from luthier.errors import Problem, SpecError, nearest

#: Parameters of finetune that become fields of a JobSpec, though not by their value alone.
BY_HAND = {
    "apply_lora": "adapter is empty without it",
    "lora_target_modules": "adapter.target_modules",
    "max_steps": "training.max_steps; 0 is no limit either",
    "optim": "training.optim",
    "weight_decay": "training.optim_args",
    "adam_beta1": "training.optim_args.betas",
    "adam_beta2": "training.optim_args.betas",
    "adam_epsilon": "training.optim_args.eps",
    "precision": "training.precision",
    "evaluation_strategy": "training.eval_steps, and which callbacks there are",
    "evaluation_steps_interval": "training.eval_steps",
    "eval_steps": "training.eval_steps",
    "metric_for_best_model": "the monitor of the callbacks",
    "apply_early_stopping": "callbacks",
    "early_stopping_patience": "callbacks.early_stopping.patience",
    "early_stopping_threshold": "callbacks.early_stopping.min_delta",
}

#: Parameters of finetune that no field of a JobSpec says: whoever runs the step acts on them.
BY_CALLER = {
    "preprocess_output": "the data and the tokenizer",
    "model_selector_output": "the model to start from",
    "deepspeed": "deepspeed_config.filled",
    "apply_deepspeed": "deepspeed_config.filled",
    "merge_lora_weights": "what is saved",
    "auto_find_batch_size": "how the step is started",
    "apply_compile": "how the model is run",
    "ignore_mismatched_sizes": "how the model is loaded",
    "logging_strategy": "what is logged",
    "logging_steps": "what is logged",
    "save_total_limit": "which checkpoints are kept",
    "resume_from_checkpoint": "where the step starts",
    "pytorch_model_folder": "where the model goes",
    "mlflow_model_folder": "where the model goes",
}

#: Parameter → the switch without which it has no effect.
NEEDS = {
    "lora_alpha": "apply_lora",
    "lora_r": "apply_lora",
    "lora_dropout": "apply_lora",
    "lora_target_modules": "apply_lora",
    "use_rslora": "apply_lora",
    "use_dora": "apply_lora",
    "merge_lora_weights": "apply_lora",
    "deepspeed": "apply_deepspeed",
    "early_stopping_patience": "apply_early_stopping",
    "early_stopping_threshold": "apply_early_stopping",
}

_TRUE, _FALSE = ("true", "1"), ("false", "0")
_MODELS = ("huggingface_id", "model_path", "pytorch_model_path", "mlflow_model_path")


def flags(words: Sequence[str]) -> dict[str, str]:
    """``--name value`` and ``--name=value`` as a mapping. Raises SpecError with every problem.

    >>> flags(["--lora_r", "4", "--optim=adafactor"])
    {'lora_r': '4', 'optim': 'adafactor'}
    """
    given: dict[str, str] = {}
    problems: list[Problem] = []
    rest = list(words)
    while rest:
        name, equals, value = rest.pop(0).partition("=")
        if not name.startswith("--") or len(name) < 3:
            problems.append(Problem(name, "is no flag", "flags are written --name value"))
            continue
        name = name[2:]
        if not equals:
            if not rest or rest[0].startswith("--"):
                problems.append(Problem(name, "has no value"))
                continue
            value = rest.pop(0)
        if name in given:
            problems.append(Problem(name, "given twice"))
        given[name] = value
    if problems:
        raise SpecError(problems)
    return given


def parse(step: Step, given: Mapping[str, str]) -> dict[str, Any]:
    """The value of every parameter of a step, typed: what was given, and the defaults.

    Raises SpecError with every problem; ``partial`` holds the values without those.
    """
    table = {parameter.name: parameter for parameter in TABLE[step]}
    problems = [_unknown(step, name, table) for name in given if name not in table]
    values: dict[str, Any] = {}
    for name, parameter in table.items():
        values[name] = parameter.default
        if name in given:
            try:
                values[name] = read(parameter, given[name])
            except SpecError as error:
                problems += error.problems
        elif parameter.required:
            problems.append(Problem(name, "is required", parameter.help))
    problems += _RULES[step](values, given)
    if problems:
        raise SpecError(problems, values)
    return values


def read(parameter: Parameter, text: str) -> Any:
    """One value of a command line, typed and within its range. Raises SpecError."""

    def refuse(message: str, hint: str | None = None) -> SpecError:
        return SpecError([Problem(parameter.name, message, hint)])

    text = text.strip()
    if not text:
        raise refuse("is empty", "leave the flag out")
    value: Any = text
    if parameter.kind == "boolean":
        if text.lower() not in (*_TRUE, *_FALSE):
            raise refuse(f"is true or false, not '{text}'")
        return text.lower() in _TRUE
    if parameter.kind == "integer":
        if not re.fullmatch(r"[+-]?\d+", text, re.ASCII):
            raise refuse(f"is a whole number, not '{text}'")
        value = int(text)
    elif parameter.kind == "number":
        try:
            value = float(text.replace("_", "?"))  # Python's 1_000 is nobody else's
        except ValueError:
            raise refuse(f"is a number, not '{text}'") from None
        if not math.isfinite(value):
            raise refuse(f"is a finite number, not '{text}'")
    elif parameter.kind in PATHS or not parameter.choices:
        return text
    if parameter.choices and value not in parameter.choices:
        hint = nearest(text, map(str, parameter.choices))
        raise refuse(f"is {parameter.takes()}, not '{text}'", hint)
    if not _within(parameter, value):
        raise refuse(parameter.refusal or f"is {parameter.takes()}, not {text}")
    return value


def _within(parameter: Parameter, value: Any) -> bool:
    return not (
        (parameter.minimum is not None and value < parameter.minimum)
        or (parameter.maximum is not None and value > parameter.maximum)
        or (parameter.above is not None and value <= parameter.above)
        or (parameter.below is not None and value >= parameter.below)
    )


def _unknown(step: Step, name: str, table: Mapping[str, Parameter]) -> Problem:
    hint = nearest(name, table)
    steps = [other for other in TABLE if any(p.name == name for p in TABLE[other])]
    if steps:
        hint = f"it is a flag of the step {' and '.join(steps)}"
    return Problem(name, f"the step {step} knows no such flag", hint)


def _import_rules(values: Mapping[str, Any], given: Mapping[str, str]) -> Iterator[Problem]:
    models = [name for name in _MODELS if name in given]
    if len(models) != 1:
        found = " and ".join(models) + " are given" if models else "none is given"
        message = f"exactly one of {', '.join(_MODELS)} says which model; {found}"
        yield Problem(models[1] if models else _MODELS[0], message)


def _preprocess_rules(values: Mapping[str, Any], given: Mapping[str, str]) -> Iterator[Problem]:
    task = values["task_name"]
    for parameter in TABLE["preprocess"]:
        name = parameter.name
        if not parameter.tasks or not task or task in parameter.tasks:
            continue
        # a pipeline hands on every flag, so one that only repeats its default is no mistake
        if values[name] != parameter.default:
            yield Problem(name, f"is for {', '.join(parameter.tasks)}, not for {task}")
    if task == "Translation":
        for name in ("source_lang", "target_lang"):
            if name not in given:
                yield Problem(name, "is required for Translation", "column and language code")
        if values["source_lang"] and values["source_lang"] == values["target_lang"]:
            yield Problem("target_lang", f"is the source language too: {values['target_lang']}")
    if 0 <= values["max_seq_length"] < _LEAST_LENGTH:
        message = f"is -1 or at least {_LEAST_LENGTH}, not {values['max_seq_length']}"
        yield Problem("max_seq_length", message)


#: The special tokens of a pair and one of its own: what ProcessingSpec asks for.
_LEAST_LENGTH = 4


def _finetune_rules(values: Mapping[str, Any], given: Mapping[str, str]) -> Iterator[Problem]:
    if values["apply_early_stopping"] and values["evaluation_strategy"] == "no":
        yield Problem(
            "apply_early_stopping",
            "Set evaluation_strategy to one of steps or epoch when apply_early_stopping is True",
        )
    if values["apply_deepspeed"] and values["auto_find_batch_size"]:
        message = "Deep Speed cannot be coupled with auto_find_batch_size"
        yield Problem("auto_find_batch_size", message)
    if values["apply_ort"]:
        message = "ONNX Runtime training is no longer made, and is not built in"
        yield Problem("apply_ort", message, "apply_compile=true is for the same need")
    if values["precision"] < 16 and not values["apply_lora"]:
        message = f"a model in {values['precision']} bits trains only by adapters"
        yield Problem("precision", message, "give apply_lora=true")
    if values["warmup_steps"] and values["lr_scheduler_type"] == "constant":
        message = "the 'constant' schedule has no warm-up"
        yield Problem("warmup_steps", message, "use constant_with_warmup")
    if values["save_total_limit"] == 0:
        yield Problem("save_total_limit", "0 keeps no checkpoint to go on from", "-1 keeps all")


def _no_rules(values: Mapping[str, Any], given: Mapping[str, str]) -> Iterator[Problem]:
    yield from ()


_RULES = {
    "import": _import_rules,
    "preprocess": _preprocess_rules,
    "finetune": _finetune_rules,
    "evaluate": _no_rules,
}


def notices(args: Mapping[str, Any]) -> list[str]:
    """What a user of finetune should be told: aliases, and words that have no effect."""
    found = []
    if args["optim"] == "adamw_hf":
        found.append("optim: adamw_hf is an alias of adamw_torch: the former is gone")
    defaults = {parameter.name: parameter.default for parameter in TABLE["finetune"]}
    found += [
        f"{name} has no effect: {switch} is false"
        for name, switch in NEEDS.items()
        if args[name] != defaults[name] and not args[switch]
    ]
    if args["evaluation_steps_interval"] and args["evaluation_strategy"] != "steps":
        strategy = args["evaluation_strategy"]
        found.append(f"evaluation_steps_interval has no effect: evaluation_strategy is {strategy}")
    return found


def evaluation_steps(interval: float, steps_per_epoch: int) -> int:
    """Steps between two evaluations that lie a share ``interval`` of an epoch apart.

    Exact in decimals: 0.07 of 100 steps are 7, though 0.07 * 100 is a little more than 7.

    >>> evaluation_steps(0.07, 100), evaluation_steps(0.3, 5), evaluation_steps(0.0, 5)
    (7, 2, 1)
    """
    if not 0 <= interval <= 1:
        message = f"is a share of an epoch between 0 and 1, not {interval}"
        raise SpecError([Problem("evaluation_steps_interval", message)])
    return max(1, math.ceil(Decimal(repr(float(interval))) * steps_per_epoch))


def finetune_words(
    args: Mapping[str, Any],
    *,
    half: Literal["bf16", "fp16"] = "bf16",
    steps_per_epoch: int | None = None,
) -> dict[str, Any]:
    """The groups ``training``, ``adapter`` and ``callbacks`` of a JobSpec, as plain data.

    args: what ``parse("finetune", …)`` gave. half: what precision 16 is on the device.
    steps_per_epoch: optimizer steps; needed where evaluation_steps_interval is (ValueError).
    What ``BY_CALLER`` names is left to the caller; with evaluation_strategy "no" that is also
    to give no evaluation data. Raises SpecError for a precision that cannot be.
    """
    if args["precision"] < 16:
        bits = f"QLoRA in {args['precision']} bits is not built in"
        message = f"{bits}: bitsandbytes needs a GPU for it"
        raise SpecError([Problem("precision", message, "give 16 or 32")])
    words = leaves("finetune", args)
    training, adapter = words["training"], words["adapter"]
    training["max_steps"] = args["max_steps"] or -1
    training["precision"] = half if args["precision"] == 16 else "fp32"
    training["optim"], training["optim_args"] = _optimizer(args)
    training["eval_steps"] = _eval_steps(args, steps_per_epoch)
    if args["lora_target_modules"]:
        names = tuple(n.strip() for n in args["lora_target_modules"].split(",") if n.strip())
        adapter["target_modules"] = "all-linear" if names == ("all-linear",) else names
    words["adapter"] = adapter if args["apply_lora"] else {}
    words["callbacks"] = _callbacks(args)
    return words


def preprocess_words(args: Mapping[str, Any]) -> dict[str, Any]:
    """``task`` and ``processing`` of a JobSpec, as plain data.

    batch_size, seed and the file paths are left to the caller. A language says the column too:
    the task finds the column of that name, or the field of a column ``translation``.
    """
    words = leaves("preprocess", args)
    processing = words.setdefault("processing", {})
    if args["max_seq_length"] > 0:
        processing["max_seq_length"] = args["max_seq_length"]
    if args["task_name"] == "MultiLabelClassification":
        processing["multi_label"] = True
    return {"task": TASKS[args["task_name"]], **words}


def metric_problems(metric: str, task_name: str) -> list[Problem]:
    """Whether a task measures what is to choose its best model: known once both steps meet."""
    known = ("loss", *METRICS[task_name])
    if metric in known:
        return []
    message = f"{task_name} does not measure '{metric}'"
    return [Problem("metric_for_best_model", message, f"it measures: {', '.join(known)}")]


def leaves(step: Step, args: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters of a step that go into a JobSpec as they are, nested as it is.

    All that the steps import and evaluate have; of the other two the ``_words`` have more.
    """
    words: dict[str, Any] = {}
    for parameter in TABLE[step]:
        value = args[parameter.name]
        if not parameter.leaf or value is None:
            continue
        *groups, leaf = parameter.leaf.split(".")
        target = words
        for group in groups:
            target = target.setdefault(group, {})
        target[leaf] = value
    return words


def _optimizer(args: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    betas = (args["adam_beta1"], args["adam_beta2"])
    return optimizer_words(args["optim"], args["weight_decay"], betas, args["adam_epsilon"])


def _eval_steps(args: Mapping[str, Any], steps_per_epoch: int | None) -> int | None:
    if args["evaluation_strategy"] != "steps":
        return None
    if not args["evaluation_steps_interval"]:
        return int(args["eval_steps"])
    if steps_per_epoch is None:
        raise ValueError("evaluation_steps_interval needs steps_per_epoch")
    return evaluation_steps(args["evaluation_steps_interval"], steps_per_epoch)


def _callbacks(args: Mapping[str, Any]) -> list[dict[str, Any]]:
    if args["evaluation_strategy"] == "no":
        return []
    metric = args["metric_for_best_model"]
    monitor = "val_loss" if metric == "loss" else metric
    found: list[dict[str, Any]] = [{"kind": "best_model", "monitor": monitor}]
    if args["apply_early_stopping"]:
        found.append(
            {
                "kind": "early_stopping",
                "monitor": monitor,
                "patience": args["early_stopping_patience"],
                "min_delta": args["early_stopping_threshold"],
            }
        )
    return found
