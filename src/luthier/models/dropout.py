"""Dropout on the CPU without torch's slow Bernoulli numbers: equal in distribution.

torch draws each Bernoulli number by itself; here one 64-bit word of the SFC64 generator (Doty-
Humphrey, in numpy) decides four values, sixteen bits each, which is about ten times faster.
Each call is seeded by one number of torch's own generator, so that whatever saves and restores
torch's random state (checkpoints, the two passes of a gradient cache) repeats these masks too.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

_STEPS = 1 << 16


def keep_mask(shape: Sequence[int], probability: float) -> tuple[Tensor, float]:
    """Which values are kept, bool of ``shape``, and the exact probability with which one is.

    That probability is ``1 - probability`` rounded to a 65,536th, so kept values are to be
    divided by it and not by ``1 - probability``: the expectation is then exact.
    """
    seed = int(torch.randint(2**62, ()).item())
    count = prod(shape)
    words = np.random.SFC64(seed).random_raw((count + 3) // 4)
    dropped = min(round(probability * _STEPS), _STEPS - 1)
    kept = words.view(np.uint16)[:count] >= dropped
    return torch.from_numpy(kept).view(tuple(shape)), 1 - dropped / _STEPS


def masked(values: Tensor, mask: Tensor, kept: float) -> Tensor:
    """The kept values, scaled so that the expectation stays what it was."""
    return only(values, mask).mul_(1 / kept)


def only(values: Tensor, mask: Tensor) -> Tensor:
    """The kept values as they are, and 0."""
    return as_numbers(mask, values.dtype).mul_(values)


def as_numbers(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """1 for what is kept, else 0."""
    # torch turns bytes into numbers three times as fast as bools.
    return mask.view(torch.uint8).to(dtype)


class _Drop(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, probability: float) -> Tensor:
        mask, kept = keep_mask(values.shape, probability)
        ctx.save_for_backward(mask)
        ctx.kept = kept
        return masked(values, mask, kept)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (mask,) = ctx.saved_tensors
        return masked(gradient, mask, ctx.kept), None


class FastDropout(nn.Dropout):
    """``nn.Dropout`` that draws its masks quickly where torch is slow; a module becomes one by
    a change of its class, so that nothing else of a model changes."""

    def forward(self, input: Tensor) -> Tensor:
        if not (self.training and self.p > 0) or input.device.type != "cpu" or self.inplace:
            return super().forward(input)
        out: Tensor = _Drop.apply(input, self.p)  # type: ignore[no-untyped-call]
        return out


def set_fast_dropout(module: nn.Module, fast: bool) -> int:
    """Make every ``nn.Dropout`` of a module draw quickly, or plainly again. Returns how many."""
    wanted, other = (FastDropout, nn.Dropout) if fast else (nn.Dropout, FastDropout)
    found = [m for m in module.modules() if type(m) is other]
    for dropout in found:
        dropout.__class__ = wanted
    return len(found)
