r"""Attention of each text to itself, over the blocks of a packed row (``blocks.py``).

.. math:: O = D(\mathrm{softmax}(s\,Q K^T))\,V

with D the dropout of the attention weights (Vaswani et al. 2017, section 3.2.1 and 5.4).
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from luthier.models.blocks import Block, Blocks, Layout, allowed_keys
from luthier.models.dropout import as_numbers, keep_mask
from luthier.models.ragged import ragged

#: Tokens of the longest text up to which the CPU attends in matrix products even without dropout,
#: with gradients and without. Where oneDNN multiplies, torch's fused kernel is four times as slow
#: on texts of 32 tokens, as fast at some 180 (512), twice as fast at 1,024; with MKL they are alike
#: on short ones (``benchmarks/attention.py``).
_BY_PRODUCTS = {True: 512, False: 192}


def block_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    blocks: Blocks,
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
    device = query.device
    if torch.is_autocast_enabled(device.type) and query.dtype != torch.float64:  # as torch's own
        half = torch.get_autocast_dtype(device.type)
        query, key, value = query.to(half), key.to(half), value.to(half)
    if device.type in ragged.devices and (window is None or window >= blocks.longest):
        plain = partial(_fused, blocks=blocks, scale=scale, causal=causal)
        at_once = ragged(
            query, key, value, blocks.texts(device), plain,
            scale=scale, dropout=dropout, causal=causal,
        )  # fmt: skip
        if at_once is not None:
            return at_once
    short = blocks.longest <= _BY_PRODUCTS[torch.is_grad_enabled()]
    if device.type == "cpu" and (dropout > 0 or short):
        found: Tensor = _Products.apply(  # type: ignore[no-untyped-call]
            query, key, value, blocks, scale, dropout, causal, window
        )
        return found
    return _fused(
        query, key, value, blocks=blocks, scale=scale, dropout=dropout, causal=causal, window=window
    )


def _fused(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    blocks: Blocks,
    scale: float,
    dropout: float = 0.0,
    causal: bool = False,
    window: int | None = None,
) -> Tensor:
    """The same by torch's fused attention, a call a block."""
    # One split each, not a slice a block: the gradient of a slice is as large as the whole.
    sizes = [block.stop - block.start for block in blocks]
    columns = (torch.split(t, sizes) for t in (query, key, value))
    parts = []
    for block, *of_block in zip(blocks, *columns, strict=True):
        q, k, v = (_padded(t, block) for t in of_block)
        allowed = allowed_keys(block, causal, window, query.device)
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


def _product(one: Tensor, other: Tensor, factor: float, out: Tensor | None = None) -> Tensor:
    """factor * one @ other for each of a batch; a product of MKL takes the factor for nothing."""
    into = one.new_empty(len(one), one.shape[1], other.shape[2]) if out is None else out
    return torch.baddbmm(into, one, other, beta=0, alpha=factor, out=into)


def _wide(blocks: Blocks, heads: int, like: Tensor) -> Tensor | None:
    """Room for the scores of any one block in fp32, where they come in half precision."""
    if like.dtype not in (torch.bfloat16, torch.float16):
        return None
    most = max(block.texts * block.longest**2 for block in blocks)
    return like.new_empty(most * heads, dtype=torch.float32)


def _softmax(scores: Tensor, wide: Tensor | None) -> Tensor:
    """Over the keys, in the place of the scores; by way of ``wide`` where they are in half
    precision, for there torch takes two to four times as long, on rows of 31 keys say."""
    if wide is None:
        return torch.softmax(scores, -1, out=scores)
    exact = wide[: scores.numel()].view(scores.shape).copy_(scores)
    return scores.copy_(torch.softmax(exact, -1, out=exact))


class _Products(torch.autograd.Function):
    """The same in matrix products: the CPU's fused kernel is slower for texts of such lengths, and
    knows no dropout; torch draws Bernoulli numbers ten times slower than ``keep_mask``.

    Everything in between lies by head (``Layout``): one gather a tensor, and no other copies."""

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        blocks: Blocks,
        scale: float,
        dropout: float,
        causal: bool,
        window: int | None,
    ) -> Tensor:
        heads = query.shape[1]
        layout = blocks.layout(heads)
        q, k, v = (layout.by_head(t) for t in (query, key, value))
        out = torch.empty_like(v)
        weights: list[Tensor] = []
        masks: list[Tensor] = []
        kept = 1.0
        wanted = any(ctx.needs_input_grad)
        wide = _wide(blocks, heads, q)
        with torch.autocast("cpu", enabled=False):
            for index, (block, (a, b, c, o)) in enumerate(_parts(blocks, heads, q, k, v, out)):
                scores = _product(a, b.transpose(1, 2), scale)
                unseen = blocks.unseen(index, causal, window, scores.dtype)
                if unseen is not None:
                    scores.view(block.texts, heads, block.longest, block.longest).add_(unseen)
                weight = _softmax(scores, wide)
                if wanted:
                    weights.append(weight)
                if dropout > 0:
                    mask, kept = keep_mask(weight.shape, dropout)
                    weight = as_numbers(mask, weight.dtype).mul_(weight)
                    masks.append(mask)
                _product(weight, c, 1 / kept, o)
        if wanted:
            ctx.save_for_backward(q, k, v, *weights, *masks)
        ctx.blocks, ctx.heads, ctx.scale, ctx.kept = blocks, heads, scale, kept
        return layout.by_token(out, heads)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, *rest = ctx.saved_tensors
        blocks, heads, scale, more = ctx.blocks, ctx.heads, ctx.scale, 1 / ctx.kept
        layout: Layout = blocks.layout(heads)
        g = layout.by_head(gradient)
        if layout.vain is not None:  # what lies beyond a text is nobody's output
            g.index_fill_(0, layout.vain, 0.0)
        found = [torch.empty_like(t) for t in (q, k, v)]
        masks = iter(rest[len(blocks) :])  # one a block, or none at all
        parts = _parts(blocks, heads, q, k, v, g, *found)
        for weight, (_, (a, b, c, o, ga, gb, gc)) in zip(rest[: len(blocks)], parts, strict=True):
            of_weight = _product(o, c.transpose(1, 2), more)
            used = weight
            if (mask := next(masks, None)) is not None:
                keep = as_numbers(mask, weight.dtype)
                used = weight * keep
                of_weight.mul_(keep)
            _product(used.transpose(1, 2), o, more, gc)
            scores = torch._softmax_backward_data(of_weight, weight, -1, weight.dtype)
            _product(scores, b, scale, ga)
            _product(scores.transpose(1, 2), a, scale, gb)
        gq, gk, gv = (layout.by_token(t, heads) for t in found)
        return gq, gk, gv, None, None, None, None, None


def _parts(
    blocks: Blocks, heads: int, *tensors: Tensor
) -> Iterator[tuple[Block, tuple[Tensor, ...]]]:
    """Each block, and its part of rows of heads: [texts * heads, longest, width]."""
    first = 0
    for block in blocks:
        rows = block.texts * heads * block.longest
        shape = block.texts * heads, block.longest, -1
        yield block, tuple(t[first : first + rows].view(shape) for t in tensors)
        first += rows
