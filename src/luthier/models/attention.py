r"""Attention over texts of different lengths that lie one after another, without padding.

Texts come sorted by length, so that those of one length form a block [n, l]; attention runs
block by block on views of the same memory, needs no mask and computes nothing for padding.

.. math:: O = D(\mathrm{softmax}(s\,Q K^T))\,V

with D the dropout of the attention weights (Vaswani et al. 2017, section 3.2.1 and 5.4).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from luthier.models.dropout import keep_mask, masked

#: Texts of one length that lie one after another: (first token, texts, tokens a text).
Block = tuple[int, int, int]


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
        blocks: cover all tokens, in order.
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
    sizes = [texts * length for _, texts, length in blocks]
    columns = (torch.split(t, sizes) for t in (query, key, value))
    parts = []
    for (_, texts, length), *block in zip(blocks, *columns, strict=True):
        allowed = _allowed(length, causal, window, query.device)
        q, k, v = (_as_block(t, texts, length) for t in block)
        out = functional.scaled_dot_product_attention(
            q,
            k,
            v,
            attn_mask=allowed,
            dropout_p=dropout,
            is_causal=causal and allowed is None,
            scale=scale,
        )
        parts.append(out.transpose(1, 2).flatten(0, 1))
    return torch.cat(parts)


def _of(tensor: Tensor, block: Block) -> Tensor:
    start, texts, length = block
    return _as_block(tensor[start : start + texts * length], texts, length)


def _as_block(tensor: Tensor, texts: int, length: int) -> Tensor:
    """[texts * tokens, heads, width] as [texts, heads, tokens, width]: a view."""
    return tensor.view(texts, length, *tensor.shape[1:]).transpose(1, 2)


def _allowed(length: int, causal: bool, window: int | None, device: torch.device) -> Tensor | None:
    """Which keys each query sees, bool [l, l]; None when that is all, or all behind it."""
    if window is None or window >= length:
        return None
    places = torch.arange(length, device=device)
    ahead = places[None, :] - places[:, None]
    near = ahead.abs() < window
    return near & (ahead <= 0) if causal else near


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
            allowed = _allowed(block[2], causal, window, query.device)
            if causal and allowed is None:
                allowed = torch.ones(block[2], block[2], dtype=torch.bool).tril_()
            if allowed is not None:
                scores.masked_fill_(~allowed, float("-inf"))
            weight = torch.softmax(scores, -1)
            mask, kept = keep_mask(weight.shape, dropout)
            weights.append(weight)
            masks.append(mask)
            _of(out, block).copy_(torch.matmul(masked(weight, mask, kept), _of(value, block)))
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
            dropped = masked(weight, mask, ctx.kept)
            out = _of(gradient, block)
            _of(gv, block).copy_(torch.matmul(dropped.transpose(-1, -2), out))
            of_weight = torch.matmul(out, _of(value, block).transpose(-1, -2))
            of_weight = masked(of_weight, mask, ctx.kept)
            scores = torch._softmax_backward_data(of_weight, weight, -1, weight.dtype)
            scores = scores.mul_(ctx.scale)
            _of(gq, block).copy_(torch.matmul(scores, _of(key, block)))
            _of(gk, block).copy_(torch.matmul(scores.transpose(-1, -2), _of(query, block)))
        return gq, gk, gv, None, None, None, None, None
