"""Device and precision, through accelerate."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager
from typing import Any

import torch
from accelerate import Accelerator, DistributedType
from accelerate.state import AcceleratorState
from torch import Tensor, nn

from luthier.errors import Problem, SpecError

_ACCELERATE_WORD = {"fp32": "no", "bf16": "bf16", "fp16": "fp16"}


class Device:
    """Where a run computes and how precisely. One at a time in a process.

    Raises:
        SpecError: the device is not there, or cannot compute in that precision.
    """

    def __init__(self, device: str, precision: str) -> None:
        name = pick(device)
        if precision == "fp16" and not name.startswith("cuda"):
            message = f"fp16 needs a CUDA device, and this run is on '{name}'"
            raise SpecError([Problem("precision", message, "use bf16 or fp32")])
        AcceleratorState._reset_state(reset_partial_state=True)
        self.accelerator = Accelerator(
            cpu=name == "cpu", mixed_precision=_ACCELERATE_WORD[precision]
        )
        self.name = name
        self.torch = torch.device(name) if name != "cuda" else self.accelerator.device
        self.precision = precision
        #: One process and no loss scaling: steps need nothing that accelerate does around them.
        self.plain = (
            self.accelerator.distributed_type == DistributedType.NO
            and self.accelerator.scaler is None
        )

    def autocast(self) -> AbstractContextManager[Any]:
        """The precision in which the model's forward pass runs."""
        context: AbstractContextManager[Any] = self.accelerator.autocast()
        return context

    def backward(self, loss: Tensor, gradient: Tensor | None = None) -> None:
        """Backpropagate, scaled where the precision asks for it."""
        self.accelerator.backward(loss, gradient=gradient)

    def clip(self, parameters: Iterable[nn.Parameter], norm: float) -> None:
        """Clip the global gradient norm, after unscaling."""
        those = list(parameters)
        if self.name != "cpu" or not self.plain:
            self.accelerator.clip_grad_norm_(those, norm)
            return
        total = nn.utils.get_total_norm([p.grad for p in those if p.grad is not None])
        # torch multiplies all gradients by 1 where nothing is to be clipped. Not so NaN.
        if not bool(total + 1e-6 <= norm):
            nn.utils.clip_grads_with_norm_(those, norm, total)

    def move(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        """A batch on this device."""
        if self.name == "cpu":
            return features
        return {k: v.to(self.torch, non_blocking=True) for k, v in features.items()}


def pick(device: str) -> str:
    """The device that a name stands for. ``auto`` takes the best there is."""
    if device == "auto":
        if torch.cuda.is_available():
            return "cuda"
        return "mps" if torch.backends.mps.is_available() else "cpu"
    kind = device.partition(":")[0]
    there = {
        "cpu": True,
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
    }
    if kind not in there:
        raise SpecError([Problem("device", f"'{device}' is not auto, cpu, cuda, cuda:N or mps")])
    if not there[kind]:
        message = f"'{device}' was asked for and this machine has none"
        raise SpecError([Problem("device", message, "use device='auto'")])
    return device
