"""DeepSpeed under a ``Trainer``: its config completed, and its shards in checkpoints of ours.

DeepSpeed pickles what it saves. Here a process's shard of the optimizer (ZeRO's flat fp32
weights and the optimizer's states over them) is a tree of tensors and numbers like everything
else in a checkpoint, and the weights are a whole model that ``from_pretrained`` opens.
"""

from __future__ import annotations

import copy
import json
import math
import os
from collections.abc import Mapping
from datetime import timedelta
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from accelerate.state import AcceleratorState, PartialState
from safetensors.torch import load_file
from torch import Tensor, nn

from luthier.doors.deepspeed_config import AUTO, read_deepspeed
from luthier.engine.distribute import alone
from luthier.errors import Problem

_INSTALL = "pip install 'luthier[deepspeed]'"

#: Key of the config → the argument whose value it must have.
_SAME = {
    "train_micro_batch_size_per_gpu": "per_device_train_batch_size",
    "gradient_accumulation_steps": "gradient_accumulation_steps",
    "gradient_clipping": "max_grad_norm",
}

#: What a ZeRO optimizer's state must have, by stage: its own flat weights, its optimizer's state.
_FLAT = {1: "single_partition_of_fp32_groups", 2: "single_partition_of_fp32_groups",
         3: "fp32_flat_groups"}  # fmt: skip
_STATES = {1: "base_optimizer_state", 2: "base_optimizer_state", 3: "optimizer_state_dict"}

_COUNTERS = ("global_steps", "global_samples", "micro_steps", "skipped_steps")


# --- before training -------------------------------------------------------------------------


def completed(
    given: str | Mapping[str, Any], args: Any
) -> tuple[dict[str, Any] | None, list[Problem]]:
    """The config, with what it leaves open taken from the arguments, and what is wrong with it.

    given: the config or the path of its JSON file. Everything of DeepSpeed's is left as it is
    but: what the arguments say is "auto", gradients are clipped at ``max_grad_norm``, weights of
    ZeRO-3 are gathered when saved, and AdamW is torch's where DeepSpeed's would be compiled.
    """
    if find_spec("deepspeed") is None:
        return None, [Problem("deepspeed", "DeepSpeed is not installed", _INSTALL)]
    if isinstance(given, Mapping):
        config = copy.deepcopy(dict(given))
    else:
        try:
            config = read_deepspeed(Path(given).read_text())
        except OSError as error:
            message = "Invalid deepspeed config file. Unable to load json file."
            return None, [Problem("deepspeed", message, str(error))]
    problems = [*_agreed(config, args), *_possible(config)]
    if problems:
        return None, problems
    for key in (*_SAME, "train_batch_size"):
        config.setdefault(key, AUTO)
    for half in ("bf16", "fp16"):
        config.setdefault(half, {}).setdefault("enabled", AUTO)
    section = config.setdefault("zero_optimization", {})
    if section.get("stage") == 3:
        section.setdefault("stage3_gather_16bit_weights_on_model_save", True)
    _spare_compiling(config)
    return config, []


def _agreed(config: Mapping[str, Any], args: Any) -> list[Problem]:
    found = []
    for key, name in _SAME.items():
        value, wanted = config.get(key, AUTO), getattr(args, name)
        if value in (None, AUTO):
            continue
        if not isinstance(value, int | float) or not math.isclose(value, wanted):
            message = f"is {value!r}, but {name} is {wanted!r}"
            hint = f"write 'auto' there, or give {name} the same value"
            found.append(Problem(f"deepspeed.{key}", message, hint))
    return found


def _possible(config: Mapping[str, Any]) -> list[Problem]:
    section = config.get("zero_optimization", {})
    if not isinstance(section, Mapping):
        return [Problem("deepspeed.zero_optimization", f"is an object, not {section!r:.40}")]
    found = []
    stage = section.get("stage", 0)
    if stage not in (0, 1, 2, 3):
        message = f"is 0, 1, 2 or 3, not {stage!r}"
        found.append(Problem("deepspeed.zero_optimization.stage", message))
    gather = "stage3_gather_16bit_weights_on_model_save"
    if stage == 3 and section.get(gather, True) is not True:
        message = "a checkpoint holds the whole model here, so its weights are gathered"
        found.append(Problem(f"deepspeed.zero_optimization.{gather}", message, "leave it out"))
    nebula = config.get("nebula")
    if isinstance(nebula, Mapping) and nebula.get("enabled"):
        message = "saves checkpoints by a service of Azure that is not built in"
        found.append(Problem("deepspeed.nebula", message, "leave the block out"))
    return found


def _spare_compiling(config: dict[str, Any]) -> None:
    """torch's AdamW where DeepSpeed would compile its own first: the same numbers."""
    section, optimizer = config["zero_optimization"], config.get("optimizer")
    target = section.get("offload_optimizer") or {}
    offloads = target.get("device", "none") != "none"
    if optimizer is None:
        if offloads:
            config.setdefault("zero_force_ds_cpu_optimizer", False)
    elif str(optimizer.get("type", "")).lower() in ("adam", "adamw") and not offloads and _on_cpu():
        optimizer.setdefault("params", {}).setdefault("torch_adam", True)


def _on_cpu() -> bool:
    return not torch.accelerator.is_available()


def make_ready(args: Any) -> None:
    """The environment that DeepSpeed wants: a launch, and on a CPU processes that talk by gloo,
    of which accelerate does not think by itself."""
    alone()
    if not _on_cpu():
        return
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    without_shared_memory_collectives()
    os.environ["ACCELERATE_USE_DEEPSPEED"] = "true"
    AcceleratorState._reset_state(reset_partial_state=True)
    PartialState(backend="gloo", timeout=timedelta(seconds=args.ddp_timeout))
    del os.environ["ACCELERATE_USE_DEEPSPEED"]
    args.use_cpu = bool(args.bf16 or args.bf16_full_eval)  # transformers asks for it with bf16
    given = args.accelerator_config
    if isinstance(given, str):
        given = json.loads(Path(given).read_text())
    elif given is not None and not isinstance(given, Mapping):
        given = given.to_dict()
    args.accelerator_config = dict(given or {}) | {"use_configured_state": True}


def settled(args: Any) -> None:
    """Once the arguments are checked. accelerate takes use_cpu for plain data parallel; that the
    device is a CPU it knows from the state that is configured."""
    if _on_cpu():
        args.use_cpu = False


def without_shared_memory_collectives() -> None:
    """They serve inference alone, and DeepSpeed compiles them, for a minute, at the start of any
    training on a CPU where there is a compiler."""
    from deepspeed import ops

    ops.__compatible_ops__["deepspeed_shm_comm"] = False


# --- the engine's state ----------------------------------------------------------------------


def stage(engine: Any) -> int:
    """0 to 3."""
    return int(engine.zero_optimization_stage())


def refuse_unknown(engine: Any) -> None:
    """For optimizers whose state is of a kind that is not known here. Raises ArgumentsError."""
    from luthier.trainer.arguments import ArgumentsError

    if stage(engine) or isinstance(engine.optimizer, torch.optim.Optimizer):
        known = _FLAT.get(stage(engine))
        if known is None or known in _state_of(engine):
            return
    kind = type(engine.optimizer).__name__
    message = f"{kind} keeps a state that checkpoints here do not hold"
    hint = "set zero_optimization.stage to 1, 2 or 3"
    raise ArgumentsError([Problem("deepspeed", message, hint)])


def counters(engine: Any) -> dict[str, int]:
    """What the engine counts, the same in every process."""
    return {"stage": stage(engine)} | {name: int(getattr(engine, name)) for name in _COUNTERS}


def shard(engine: Any) -> dict[str, Any]:
    """This process's part of the optimizer, as a tree of tensors and plain values."""
    state = _state_of(engine)
    number = stage(engine)
    if number == 0:
        return {"optimizer": state}
    flat = [tensor.detach() for tensor in state[_FLAT[number]]]
    scaler = vars(engine.optimizer.loss_scaler)
    plain = {k: v for k, v in scaler.items() if isinstance(v, bool | int | float)}
    return {"optimizer": state[_STATES[number]], "weights": flat, "scaler": plain}


def _state_of(engine: Any) -> dict[str, Any]:
    state: dict[str, Any] = engine.optimizer.state_dict()
    return state


def load_shard(engine: Any, saved: Mapping[str, Any], counted: Mapping[str, int]) -> None:
    """The inverse of ``shard``, by the loading of DeepSpeed's own. After ``load_weights``."""
    import torch.distributed as dist

    optimizer, number = engine.optimizer, stage(engine)
    for name in _COUNTERS:
        setattr(engine, name, counted[name])
    if number == 0:
        optimizer.load_state_dict(saved["optimizer"])
        return
    for name, value in saved["scaler"].items():
        setattr(optimizer.loss_scaler, name, value)
    state = _state_of(engine)  # with what did not change: versions, paddings
    state[_STATES[number]], state[_FLAT[number]] = saved["optimizer"], saved["weights"]
    states: list[Any] = [None] * dist.get_world_size()
    states[dist.get_rank()] = state
    optimizer.load_state_dict(states, load_optimizer_states=True, load_from_fp32_weights=True)
    if number == 3:
        optimizer.checkpoint_event_epilogue()  # gathers the small weights that stay whole


def load_weights(engine: Any, checkpoint: Path) -> None:
    """A whole model from a checkpoint into the engine's, of which a process may hold a part."""
    module: nn.Module = engine.module
    if hasattr(module, "peft_config"):
        _load_adapter(engine, module, checkpoint)
        return
    saved = _weights(checkpoint)
    with torch.no_grad():
        for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
            if name in saved:
                _assign(tensor, saved[name])


def _assign(tensor: Tensor, value: Tensor) -> None:
    if not hasattr(tensor, "ds_id"):
        tensor.copy_(value)
        return
    from deepspeed.runtime.zero import GatheredParameters

    with GatheredParameters([tensor], modifier_rank=0):
        if torch.distributed.get_rank() == 0:
            tensor.copy_(value)


def _load_adapter(engine: Any, module: Any, checkpoint: Path) -> None:
    """An adapter's weights are all in the shards with ZeRO-3, where they cannot be set whole."""
    if stage(engine) == 3:
        return
    from peft import set_peft_model_state_dict

    file = checkpoint / "adapter_model.safetensors"
    set_peft_model_state_dict(module, load_file(file), adapter_name=module.active_adapter)


def _weights(checkpoint: Path) -> dict[str, Tensor]:
    index = checkpoint / "model.safetensors.index.json"
    if not index.exists():
        return load_file(checkpoint / "model.safetensors")
    found: dict[str, Tensor] = {}
    for name in sorted(set(json.loads(index.read_text())["weight_map"].values())):
        found |= load_file(checkpoint / name)
    return found
