"""Attention of packed texts on a GPU, in one call a layer for texts of any lengths.

torch has kernels that know where each text begins: FlashAttention (Dao et al. 2022) for bf16 and
fp16, a memory-efficient one (Rabe and Staats 2021) for fp32. They compute nothing for padding, and
drop weights themselves. torch calls them for nested tensors, which it calls a prototype; so each
kind of input is first compared with the plain way, output and gradients, and goes that way for
good where the two differ or the kernel refuses.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

#: Largest difference from the plain way, relative to the largest value, of what a kernel rounds:
#: a text that sees another is off by as much as the values themselves.
_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 4e-2, torch.float16: 1e-2}

#: Attention without dropout of query, key and value [tokens, heads, width].
Attend = Callable[[Tensor, Tensor, Tensor], Tensor]

_log = logging.getLogger(__name__)


class Texts(NamedTuple):
    """Where texts lie in a row: where each begins, and the end, int64 [texts + 1] on the device;
    tokens of the shortest and of the longest."""

    offsets: Tensor
    shortest: int
    longest: int


class Kind(NamedTuple):
    """What a proof holds for."""

    device: str
    dtype: torch.dtype
    heads: int
    width: int
    causal: bool
    lengths_differ: bool
    drops: bool
    inference: bool


class Ragged:
    """The kernels, and what has been found out about them in this process.

    Attributes:
        devices: where they are. On a CPU torch takes texts one by one.
        calls: how often one of them ran for a layer.
        refused: why not, for each kind of input that goes the plain way.
    """

    def __init__(self) -> None:
        self.devices = frozenset({"cuda"})
        self.calls = 0
        self.refused: dict[Kind, str] = {}
        self._proven: set[Kind] = set()

    def __call__(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        texts: Texts,
        plain: Attend,
        *,
        scale: float,
        dropout: float = 0.0,
        causal: bool = False,
    ) -> Tensor | None:
        """Attention of each text to itself, [tokens, heads, width]; None where there is no kernel
        that proves itself.

        Args:
            query, key, value: [tokens, heads, width] on one device.
            plain: the same without dropout, to compare with.
        """
        if query.dtype not in _TOLERANCE:
            return None
        kind = Kind(
            query.device.type,
            query.dtype,
            heads=query.shape[1],
            width=query.shape[2],
            causal=causal,
            lengths_differ=texts.shortest != texts.longest,
            drops=dropout > 0,
            inference=torch.is_inference_mode_enabled(),
        )
        if kind in self.refused:
            return None

        def attend(dropped: float, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return _attend(q, k, v, texts, scale, dropped, causal)

        if kind not in self._proven:
            if reason := _refusal(attend, plain, dropout, query, key, value):
                self.refused[kind] = reason
                _log.warning("attention goes by blocks of like length: %s", reason)
                return None
            self._proven.add(kind)
        self.calls += 1
        return attend(dropout, query, key, value)


#: That of this process: a proof holds for all models.
ragged = Ragged()


def _attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    texts: Texts,
    scale: float,
    dropout: float,
    causal: bool,
) -> Tensor:
    def nested(tensor: Tensor) -> Tensor:
        # What is not told here is looked up on the device, and waited for.
        made = torch.nested.nested_tensor_from_jagged(
            tensor, texts.offsets, min_seqlen=texts.shortest, max_seqlen=texts.longest
        )
        return made.transpose(1, 2)

    out = functional.scaled_dot_product_attention(
        nested(query),
        nested(key),
        nested(value),
        dropout_p=dropout,
        is_causal=causal,
        scale=scale,
    )
    return out.transpose(1, 2).values()


def _refusal(
    attend: Callable[[float, Tensor, Tensor, Tensor], Tensor],
    plain: Attend,
    dropout: float,
    *given: Tensor,
) -> str:
    """Why a kernel is not to be used for tensors like these; empty where it is. Draws no random
    numbers of the run."""
    device = given[0].device
    try:
        if dropout > 0:
            with torch.random.fork_rng([device] if device.type == "cuda" else []):
                _with_gradients(partial(attend, dropout), given)
        found, wanted = (_with_gradients(way, given) for way in (partial(attend, 0.0), plain))
    except torch.OutOfMemoryError:  # says nothing of the kernel
        raise
    except (RuntimeError, NotImplementedError, TypeError, ValueError, AttributeError) as error:
        return f"torch's kernels refuse ({(str(error) or repr(error)).splitlines()[0][:100]})"
    off = max(_difference(*pair) for pair in zip(found, wanted, strict=True))
    if not off <= _TOLERANCE[given[0].dtype]:
        return f"torch's kernels differ by {off:.1e}"
    return ""


def _with_gradients(way: Attend, given: tuple[Tensor, ...]) -> list[Tensor]:
    """The output, and the gradients by query, key and value along the given value, if there can
    be any."""
    with torch.autocast(given[0].device.type, enabled=False):
        if torch.is_inference_mode_enabled():
            return [way(*given)]
        with torch.enable_grad():
            leaves = [tensor.detach().requires_grad_() for tensor in given]
            out = way(*leaves)
            return [out.detach(), *torch.autograd.grad(out, leaves, given[2].detach())]


def _difference(one: Tensor, other: Tensor) -> float:
    """The largest, relative to the largest value."""
    one, other = one.float(), other.float()
    largest = other.abs().max().clamp(min=torch.finfo(torch.float32).tiny)
    return float((one - other).abs().max() / largest)
