r"""Attention over texts of different lengths that lie one after another.

Texts come sorted by length and are attended to in blocks [n, l] of like length. A block of one
length is a view of the same memory, without a mask, and computes nothing for padding. Lengths
that differ little share a block all the same where the padding costs less than a block does.

.. math:: O = D(\mathrm{softmax}(s\,Q K^T))\,V

with D the dropout of the attention weights (Vaswani et al. 2017, section 3.2.1 and 5.4).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from luthier.models.dropout import keep_mask, only
from luthier.models.tokens import Ints

#: Attention weights of one head that may be computed in vain to spare a block: what a block's
#: dozen calls cost, forward and backward, measured on two cores with twelve heads.
_WORTH_A_BLOCK = 10_000

#: And in one block altogether: lengths that creep up step by step must not all share one.
_MOST_IN_VAIN = 4 * _WORTH_A_BLOCK

#: Attention weights of one head in a block on the CPU: twelve heads of so many take 25 MB. More are
#: asked anew of the system in each call, page by page, which takes as long as computing them.
_MOST_WEIGHTS = 1 << 19


@dataclass(frozen=True)
class Block:
    """Texts that are attended to together.

    start, stop: their tokens. texts: how many. longest: tokens of the longest. places, rows,
    inside: None where all are of one length; else the token of each place of the padded block,
    counted from ``start`` (int64 [texts * longest]), the place of each token (int64 [stop -
    start]), and which places are tokens (bool [texts, longest]).
    """

    start: int
    stop: int
    texts: int
    longest: int
    places: Tensor | None = None
    rows: Tensor | None = None
    inside: Tensor | None = None

    @classmethod
    def of(cls, start: int, lengths: Ints, device: torch.device) -> Block:
        """The block of texts of these lengths, ascending."""
        longest, stop = int(lengths[-1]), start + int(lengths.sum())
        if lengths[0] == longest:
            return cls(start, stop, len(lengths), longest)
        inside = np.arange(longest) < lengths[:, None]
        places = np.zeros(inside.shape, dtype=np.int64)
        places[inside] = np.arange(stop - start)
        arrays = (places.ravel(), np.flatnonzero(inside), inside)
        tensors = (torch.from_numpy(array).to(device) for array in arrays)
        return cls(start, stop, len(lengths), longest, *tensors)


def blocks_of(lengths: Ints, device: torch.device) -> tuple[Block, ...]:
    """Blocks of texts of these lengths, which ascend."""
    found, start, first, vain = [], 0, 0, 0
    most = _MOST_WEIGHTS if device.type == "cpu" else math.inf
    for end in range(1, len(lengths) + 1):
        wider = end < len(lengths) and int(lengths[end])
        more = (end - first) * (wider**2 - int(lengths[end - 1]) ** 2) if wider else 0
        fits = (end + 1 - first) * wider**2 <= most
        if wider and fits and more <= _WORTH_A_BLOCK and vain + more <= _MOST_IN_VAIN:
            vain += more
            continue
        found.append(Block.of(start, lengths[first:end], device))
        start, first, vain = found[-1].stop, end, 0
    return tuple(found)


def block_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    blocks: tuple[Block, ...],
    *,
    scale: float,
    dropout: float = 0.0,
    causal: bool = False,
    window: int | None = None,
) -> Tensor:
    """Attention of each text to itself.

    Args:
        query, key, value: [tokens, heads, width], texts sorted by length.
        blocks: cover all tokens, in order (``blocks_of``).
        dropout: probability that an attention weight is dropped.
        window: a token sees those nearer than so many tokens (and, when causal, none ahead).

    Returns [tokens, heads, width].
    """
    on_cpu = query.device.type == "cpu"
    if dropout > 0 and on_cpu:
        found: Tensor = _WithDropout.apply(  # type: ignore[no-untyped-call]
            query, key, value, blocks, scale, dropout, causal, window
        )
        return found
    # One split each, not a slice a block: the gradient of a slice is as large as the whole.
    sizes = [block.stop - block.start for block in blocks]
    columns = (torch.split(t, sizes) for t in (query, key, value))
    parts = []
    for block, *of_block in zip(blocks, *columns, strict=True):
        q, k, v = (_padded(t, block) for t in of_block)
        allowed = _allowed(block, causal, window, query.device)
        out = functional.scaled_dot_product_attention(
            q,
            k,
            v,
            attn_mask=allowed,
            dropout_p=dropout,
            is_causal=causal and allowed is None,
            scale=scale,
        )
        parts.append(_unpadded(out, block))
    return torch.cat(parts)


def _padded(tensor: Tensor, block: Block) -> Tensor:
    """A block's rows [tokens, heads, width] as [texts, heads, longest, width]: a view where all
    texts are of one length. What lies beyond a text is the block's first token."""
    if block.places is not None:
        tensor = tensor.index_select(0, block.places)
    return tensor.view(block.texts, block.longest, *tensor.shape[1:]).transpose(1, 2)


def _unpadded(tensor: Tensor, block: Block) -> Tensor:
    """The inverse: [texts, heads, longest, width] as rows [tokens, heads, width]."""
    tensor = tensor.transpose(1, 2).flatten(0, 1)
    return tensor if block.rows is None else tensor.index_select(0, block.rows)


def _of(tensor: Tensor, block: Block) -> Tensor:
    return _padded(tensor[block.start : block.stop], block)


def _allowed(block: Block, causal: bool, window: int | None, device: torch.device) -> Tensor | None:
    """Which keys each query sees, bool [l, l] or [n, 1, l, l]; None when that is all, or all
    behind it in texts of one length."""
    near: Tensor | None = None
    if (window is not None and window < block.longest) or (causal and block.inside is not None):
        places = torch.arange(block.longest, device=device)
        ahead = places[None, :] - places[:, None]
        near = ahead <= 0 if causal else torch.ones_like(ahead, dtype=torch.bool)
        if window is not None:
            near = near & (ahead.abs() < window)
    if block.inside is None:
        return near
    seen = block.inside[:, None, None, :]
    if near is None:
        return seen
    # What lies beyond a text would see nothing, which is no number; it counts for nothing.
    return (near & seen) | ~block.inside[:, None, :, None]


class _WithDropout(torch.autograd.Function):
    """The same with dropout, in matrix products: the CPU's fused kernel knows no dropout, and
    torch draws Bernoulli numbers ten times slower than ``keep_mask``."""

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        blocks: tuple[Block, ...],
        scale: float,
        dropout: float,
        causal: bool,
        window: int | None,
    ) -> Tensor:
        out = torch.empty_like(query)
        weights, masks = [], []
        for block in blocks:
            scores = torch.matmul(_of(query, block), _of(key, block).transpose(-1, -2))
            scores = scores.mul_(scale)
            allowed = _allowed(block, causal, window, query.device)
            if causal and allowed is None:
                allowed = torch.ones(block.longest, block.longest, dtype=torch.bool).tril_()
            if allowed is not None:
                scores.masked_fill_(~allowed, float("-inf"))
            weight = torch.softmax(scores, -1)
            mask, kept = keep_mask(weight.shape, dropout)
            weights.append(weight)
            masks.append(mask)
            attended = torch.matmul(only(weight, mask), _of(value, block)).mul_(1 / kept)
            out[block.start : block.stop] = _unpadded(attended, block)
        ctx.save_for_backward(query, key, value, *weights, *masks)
        ctx.blocks, ctx.scale, ctx.kept = blocks, scale, kept
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, *rest = ctx.saved_tensors
        count = len(ctx.blocks)
        gradient = gradient.contiguous()
        gq, gk, gv = (torch.empty_like(t) for t in (query, key, value))
        for block, weight, mask in zip(ctx.blocks, rest[:count], rest[count:], strict=True):
            part = slice(block.start, block.stop)
            dropped = only(weight, mask)
            out = _of(gradient, block) * (1 / ctx.kept)
            if block.inside is not None:
                out = out * block.inside[:, None, :, None].to(out.dtype)
            gv[part] = _unpadded(torch.matmul(dropped.transpose(-1, -2), out), block)
            of_weight = torch.matmul(out, _of(value, block).transpose(-1, -2))
            of_weight = only(of_weight, mask)
            scores = torch._softmax_backward_data(of_weight, weight, -1, weight.dtype)
            scores = scores.mul_(ctx.scale)
            gq[part] = _unpadded(torch.matmul(scores, _of(key, block)), block)
            gk[part] = _unpadded(torch.matmul(scores.transpose(-1, -2), _of(query, block)), block)
        return gq, gk, gv, None, None, None, None, None
