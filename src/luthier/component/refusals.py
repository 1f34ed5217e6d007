"""What finetune cannot do on this machine or in this version, said before anything is written."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any, Literal

from luthier.errors import Problem, SpecError

#: C++ compilers that torch.compile looks for, where the variable CXX names none.
_COMPILERS = ("g++", "clang++")


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
    problems = [*_deepspeed(args), *_compile(args)]
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


def _deepspeed(args: Mapping[str, Any]) -> list[Problem]:
    if not args["apply_deepspeed"]:
        return []
    if find_spec("deepspeed") is None:
        hint = "pip install 'luthier[deepspeed]'"
        return [Problem("apply_deepspeed", "DeepSpeed is not installed", hint)]
    found = []
    if args["apply_compile"]:
        message = "the compiler does not see through DeepSpeed's hooks"
        found.append(Problem("apply_compile", message, "give one of the two"))
    if args["optim"] == "adafactor":
        message = "Adafactor needs the rows and columns of weights, which ZeRO makes flat"
        found.append(Problem("optim", message, "use adamw_torch with apply_deepspeed"))
    return found


def _compile(args: Mapping[str, Any]) -> list[Problem]:
    if not args["apply_compile"]:
        return []
    import torch

    if torch.cuda.is_available():
        if find_spec("triton") is None:
            message = "torch.compile needs triton for this GPU"
            return [Problem("apply_compile", message, "leave it out")]
        return []
    given = os.environ.get("CXX")
    if not any(map(shutil.which, [given] if given else _COMPILERS)):
        message = f"torch.compile needs a C++ compiler, and there is no {given or 'g++ or clang++'}"
        return [Problem("apply_compile", message, "install g++, or leave it out")]
    return []
