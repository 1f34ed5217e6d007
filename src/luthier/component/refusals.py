"""What finetune cannot do on this machine or in this version, said before anything is written."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, Literal

from luthier.errors import Problem, SpecError

#: How launchers say how many processes there are: torchrun's, and Open MPI's.
_PROCESSES = ("WORLD_SIZE", "OMPI_COMM_WORLD_SIZE")


def half_precision(args: Mapping[str, Any]) -> Literal["bf16", "fp16"]:
    """What precision 16 is here: bf16 but on GPUs that compute in fp16 only."""
    if args["precision"] != 16:
        return "bf16"
    import torch

    if torch.cuda.is_available() and not torch.cuda.is_bf16_supported(including_emulation=False):
        return "fp16"
    return "bf16"


def check(args: Mapping[str, Any]) -> None:
    """Raises SpecError with everything that was asked for and cannot be had."""
    problems = [*_processes(), *_deepspeed(args), *_compile(args)]
    if problems:
        raise SpecError(problems)


def told(args: Mapping[str, Any]) -> list[str]:
    """What the user should know of words that do not do quite what they did elsewhere."""
    found = []
    if args["auto_find_batch_size"]:
        found.append(
            "auto_find_batch_size: a batch that does not fit goes through the model in halves, "
            "with the same gradient; this is always so"
        )
    return found


def _processes() -> list[Problem]:
    for name in _PROCESSES:
        count = os.environ.get(name, "1")
        if count not in ("", "0", "1"):
            message = f"{count} processes were started ({name}), and this step trains in one"
            hint = "set the process count per instance and the instance count to 1"
            return [Problem("distribution", message, hint)]
    return []


def _deepspeed(args: Mapping[str, Any]) -> list[Problem]:
    if not args["apply_deepspeed"]:
        return []
    message = "the engine's loop does not know DeepSpeed yet"
    hint = "leave it out, or use luthier.Trainer with TrainingArguments(deepspeed=…)"
    return [Problem("apply_deepspeed", message, hint)]


def _compile(args: Mapping[str, Any]) -> list[Problem]:
    if not args["apply_compile"]:
        return []
    message = "the engine's loop does not compile models yet"
    return [Problem("apply_compile", message, "leave it out: texts already run without padding")]
