"""The layout in memory that convolutions are fast in.

torch keeps images as [n, channels, height, width] and computes convolutions fastest where the
channels of one pixel lie side by side ("channels last"): oneDNN and cuDNN otherwise reorder
every layer's input and output. Values, shapes and what is saved stay the same.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


def has_convolutions(module: nn.Module) -> bool:
    """Whether a module convolves images: has a ``Conv2d`` (transposed ones included)."""
    return any(isinstance(part, nn.Conv2d | nn.ConvTranspose2d) for part in module.modules())


def channels_last(module: nn.Module) -> bool:
    """Lay out a module's four-dimensional weights, and every image that is given to it, with
    the channels last. Returns whether there was anything to gain; else nothing is changed.

    Call it before the optimizer is made: states like momentum then take the layout of the
    weights. Calling it again changes nothing. The layout is undone by ``channels_first``.
    """
    if not has_convolutions(module):
        return False
    module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if not _hooks(module):
        module.register_forward_pre_hook(_lay_out, with_kwargs=True)
    return True


def channels_first(module: nn.Module) -> None:
    """Undo ``channels_last``."""
    module.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    for number in _hooks(module):
        del module._forward_pre_hooks[number]
        module._forward_pre_hooks_with_kwargs.pop(number, None)


def _hooks(module: nn.Module) -> list[int]:
    """By identity and not by a kept handle, which a copy of the module would not have."""
    return [number for number, hook in module._forward_pre_hooks.items() if hook is _lay_out]


def _lay_out(
    _: nn.Module, positional: tuple[Any, ...], named: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    return tuple(map(_of, positional)), {name: _of(value) for name, value in named.items()}


def _of(value: Any) -> Any:
    if isinstance(value, Tensor) and value.dim() == 4 and value.is_floating_point():
        return value.contiguous(memory_format=torch.channels_last)
    return value
