"""DeepSpeed's JSON, completed from the arguments of the finetune step. Pure: no I/O.

What the config says must be what the arguments say; "auto" anywhere takes it from them. The
keys are those of https://www.deepspeed.ai/docs/config-json/.
"""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Iterator, Mapping
from typing import Any, Literal

from luthier.errors import Problem, SpecError

AUTO = "auto"

#: ZeRO-2: optimizer states and gradients are sharded, weights are not. Bucket sizes in elements.
DEFAULT: dict[str, Any] = {
    "zero_optimization": {
        "stage": 2,
        "allgather_partitions": True,
        "allgather_bucket_size": 500_000_000,
        "overlap_comm": True,
        "reduce_scatter": True,
        "reduce_bucket_size": 500_000_000,
        "contiguous_gradients": True,
    }
}

#: Loss scaling of fp16: from 2^16 down, doubled after 1000 steps without overflow.
_FP16 = {"loss_scale": 0, "loss_scale_window": 1000, "initial_scale_power": 16, "hysteresis": 2,
         "min_loss_scale": 1}  # fmt: skip

#: Key of the config → the argument that it must agree with.
_SAME = {
    "train_micro_batch_size_per_gpu": "per_device_train_batch_size",
    "gradient_accumulation_steps": "gradient_accumulation_steps",
    "gradient_clipping": "max_grad_norm",
}

#: Our schedule → DeepSpeed's. Its own start one step late and warm up over two steps at least.
_SCHEDULES = {"linear": "WarmupDecayLR", "constant_with_warmup": "WarmupLR"}


def read_deepspeed(text: str) -> dict[str, Any]:
    """The config in a file's text. Raises SpecError in the words that users know."""
    message = "Invalid deepspeed config file. Unable to load json file."
    try:
        config = json.loads(text)
    except ValueError as error:
        raise SpecError([Problem("deepspeed", message, str(error))]) from None
    if not isinstance(config, dict):
        hint = f"it holds a JSON {type(config).__name__}, not an object"
        raise SpecError([Problem("deepspeed", message, hint)])
    return config


def filled_deepspeed(
    config: Mapping[str, Any] | None,
    args: Mapping[str, Any],
    *,
    half: Literal["bf16", "fp16"] = "bf16",
    world_size: int | None = None,
    steps: int | None = None,
) -> tuple[dict[str, Any], list[str]]:
    """The config with all that it leaves open, and what the user should be told.

    config: None is ZeRO-2. args: what ``component.parse("finetune", …)`` gave. half: what
    precision 16 is. world_size: processes; without it ``train_batch_size`` is not checked.
    steps: optimizer steps in all; without it, or where DeepSpeed has no such schedule, the
    scheduler stays out and luthier's own is to be stepped.

    Raises SpecError with every contradiction between the config and the arguments.
    """
    filled: dict[str, Any] = copy.deepcopy(dict(DEFAULT if config is None else config))
    notices: list[str] = []
    problems: list[Problem] = []
    _nebula(filled, notices, problems)
    for key, argument in _SAME.items():
        _agree(filled, key, args[argument], argument, problems)
    _batch(filled, args, world_size, problems)
    problems += _precision(filled, args, half)
    problems += _zero(filled, notices)
    problems += _optimizer(filled, args, notices)
    problems += _scheduler(filled, args, steps, notices)
    if problems:
        raise SpecError(problems, filled)
    problems += [
        Problem(f"deepspeed.{path}", "'auto' that no argument says", "write a value")
        for path in _autos(filled)
    ]
    if problems:
        raise SpecError(problems, filled)
    return filled, notices


def _is_open(value: Any) -> bool:
    return value is None or value == AUTO


def _agree(
    holder: dict[str, Any], key: str, wanted: Any, argument: str, problems: list[Problem],
    path: str = "",
) -> None:  # fmt: skip
    """Fill a key that is open; a value that differs from the argument is a problem."""
    given = holder.get(key)
    if _is_open(given):
        holder[key] = wanted
        return
    same = given == wanted
    if isinstance(wanted, int | float) and isinstance(given, int | float):
        same = math.isclose(given, wanted, rel_tol=1e-9)
    if not same:
        message = f"is {given!r}, but {argument} is {wanted!r}"
        hint = f"write 'auto' there, or give {argument} the same value"
        problems.append(Problem(f"deepspeed.{path}{key}", message, hint))


def _section(config: dict[str, Any], key: str, problems: list[Problem]) -> dict[str, Any] | None:
    """A nested object of the config; None where it is missing. Anything else is a problem."""
    section = config.get(key)
    if _is_open(section):
        config.pop(key, None)
        return None
    if not isinstance(section, dict):
        problems.append(Problem(f"deepspeed.{key}", f"is an object, not {section!r:.40}"))
        return None
    return section


def _nebula(config: dict[str, Any], notices: list[str], problems: list[Problem]) -> None:
    if "nebula" not in config:
        return
    nebula = config["nebula"]
    if isinstance(nebula, dict) and not nebula.get("enabled", False):
        del config["nebula"]
        notices.append("deepspeed.nebula: removed, as it is disabled")
        return
    message = "saves checkpoints by a service of Azure that is not built in"
    problems.append(Problem("deepspeed.nebula", message, "leave the block out"))


def _batch(
    config: dict[str, Any], args: Mapping[str, Any], world: int | None, problems: list[Problem]
) -> None:
    given = config.get("train_batch_size")
    if world is None:
        if given == AUTO:
            del config["train_batch_size"]  # DeepSpeed multiplies the other two itself
        return
    parts = args["per_device_train_batch_size"], args["gradient_accumulation_steps"], world
    what = "per_device_train_batch_size * gradient_accumulation_steps * processes"
    _agree(config, "train_batch_size", math.prod(parts), what, problems)


def _precision(config: dict[str, Any], args: Mapping[str, Any], half: str) -> list[Problem]:
    problems: list[Problem] = []
    wanted = {"bf16": False, "fp16": False}
    if args["precision"] == 16:
        # a config that says which 16 bits is as good as the device's own choice
        says = [
            k
            for k in wanted
            if isinstance(config.get(k), dict) and config[k].get("enabled") is True
        ]
        wanted[says[0] if len(says) == 1 else half] = True
    for name, enabled in wanted.items():
        section = _section(config, name, problems)
        if section is None:
            config[name] = {"enabled": enabled} | (_FP16 if name == "fp16" and enabled else {})
            continue
        _agree(section, "enabled", enabled, _said(args, name, enabled), problems, f"{name}.")
    return problems


def _said(args: Mapping[str, Any], name: str, enabled: bool) -> str:
    """How the argument precision says whether bf16 or fp16 is on, for a message."""
    other = {"bf16": "fp16", "fp16": "bf16"}[name]
    chosen = f", with {other} on," if args["precision"] == 16 and not enabled else ""
    return f"precision={args['precision']}{chosen} for which {name}"


def _zero(config: dict[str, Any], notices: list[str]) -> list[Problem]:
    problems: list[Problem] = []
    section = _section(config, "zero_optimization", problems)
    if section is None:
        return problems
    stage = section.get("stage", 0)
    if stage not in (0, 1, 2, 3) or isinstance(stage, bool):
        message = f"is 0, 1, 2 or 3, not {stage!r}"
        problems.append(Problem("deepspeed.zero_optimization.stage", message))
    for key in [k for k, v in section.items() if v == AUTO and k != "stage"]:
        del section[key]
        notices.append(f"deepspeed.zero_optimization.{key}: 'auto' is DeepSpeed's own default")
    return problems


def _optimizer(
    config: dict[str, Any], args: Mapping[str, Any], notices: list[str]
) -> list[Problem]:
    problems: list[Problem] = []
    section = _section(config, "optimizer", problems)
    if section is None and not problems:
        if args["optim"] == "adafactor":
            config["zero_allow_untested_optimizer"] = True
            notices.append("deepspeed.optimizer: left out, DeepSpeed has no Adafactor; ours it is")
            return problems
        config["optimizer"] = section = {"type": "AdamW", "params": {}}
        if not _offloads(config):  # torch's own: nothing to compile, and the same numbers
            section["params"]["torch_adam"] = True
    if section is None:
        return problems
    if args["optim"] == "adafactor":
        message = f"is {section.get('type')!r}, but optim is 'adafactor'"
        problems.append(Problem("deepspeed.optimizer.type", message, "leave the block out"))
        return problems
    _agree(section, "type", "AdamW", f"optim={args['optim']}, which", problems, "optimizer.")
    params = section.setdefault("params", {})
    if not isinstance(params, dict):
        problems.append(Problem("deepspeed.optimizer.params", f"is an object, not {params!r:.40}"))
        return problems
    betas = [args["adam_beta1"], args["adam_beta2"]]
    for key, value, argument in (
        ("lr", args["learning_rate"], "learning_rate"),
        ("betas", betas, "adam_beta1 and adam_beta2"),
        ("eps", args["adam_epsilon"], "adam_epsilon"),
        ("weight_decay", args["weight_decay"], "weight_decay"),
    ):
        _agree(params, key, value, argument, problems, "optimizer.params.")
    return problems


def _offloads(config: Mapping[str, Any]) -> bool:
    zero = config.get("zero_optimization")
    target = zero.get("offload_optimizer") if isinstance(zero, dict) else None
    return isinstance(target, dict) and target.get("device", "none") != "none"


def _scheduler(
    config: dict[str, Any], args: Mapping[str, Any], steps: int | None, notices: list[str]
) -> list[Problem]:
    problems: list[Problem] = []
    section = _section(config, "scheduler", problems)
    if problems:
        return problems
    kind, warmup = args["lr_scheduler_type"], args["warmup_steps"]
    name = _SCHEDULES.get(kind)
    if section is None:
        if name is None or steps is None or warmup < 2:
            notices.append(f"deepspeed.scheduler: left out, luthier's own '{kind}' is stepped")
            return problems
        config["scheduler"] = section = {"type": name, "params": {}}
    if name is None:
        message = f"is {section.get('type')!r}, but lr_scheduler_type is '{kind}'"
        problems.append(Problem("deepspeed.scheduler.type", message, "leave the block out"))
        return problems
    _agree(section, "type", name, f"lr_scheduler_type={kind}, which", problems, "scheduler.")
    params = section.setdefault("params", {})
    if not isinstance(params, dict):
        problems.append(Problem("deepspeed.scheduler.params", f"is an object, not {params!r:.40}"))
        return problems
    wanted: list[tuple[str, Any, str]] = [
        ("warmup_type", "linear", "lr_scheduler_type's warm-up"),
        ("warmup_min_lr", 0, "the schedule's start"),
        ("warmup_max_lr", args["learning_rate"], "learning_rate"),
        ("warmup_num_steps", warmup, "warmup_steps"),
    ]
    if name == "WarmupDecayLR":
        if steps is not None:
            wanted.append(("total_num_steps", steps, "the number of steps"))
        elif _is_open(params.get("total_num_steps")):
            message = "is open, and the number of steps is not known yet"
            problems.append(Problem("deepspeed.scheduler.params.total_num_steps", message))
            params["total_num_steps"] = 0
    for key, value, argument in wanted:
        _agree(params, key, value, argument, problems, "scheduler.params.")
    return problems


def _autos(value: Any, path: str = "") -> Iterator[str]:
    """The dotted paths of what is still 'auto'."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _autos(inner, f"{path}.{key}" if path else str(key))
    elif value == AUTO:
        yield path
