r"""Attention over texts of different lengths that lie one after another.

Texts come sorted by length and are attended to in blocks [n, l] of like length. A block of one
length is a view of the same memory, without a mask, and computes nothing for padding. Lengths
that differ little share a block all the same where the padding costs less than a block does.

.. math:: O = D(\mathrm{softmax}(s\,Q K^T))\,V

with D the dropout of the attention weights (Vaswani et al. 2017, section 3.2.1 and 5.4).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from luthier.models.dropout import as_numbers, keep_mask
from luthier.models.ragged import Texts, ragged
from luthier.models.tokens import Ints

#: Attention weights of one head that may be computed in vain to spare a block: what a block's
#: dozen calls cost, forward and backward, measured on two cores with twelve heads.
_WORTH_A_BLOCK = 10_000

#: And in one block altogether: lengths that creep up step by step must not all share one.
_MOST_IN_VAIN = 4 * _WORTH_A_BLOCK

#: Tokens of the longest text up to which the CPU attends in matrix products even without dropout,
#: with gradients and without. Where oneDNN multiplies, torch's fused kernel is four times as slow
#: on texts of 32 tokens, as fast at some 180 (512), twice as fast at 1,024; with MKL they are alike
#: on short ones (``benchmarks/attention.py``).
_BY_PRODUCTS = {True: 512, False: 192}

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


class Layout(NamedTuple):
    """Rows of heads [places * heads, width], a block's after another's and in it [texts, heads,
    longest], so that a block's matrices lie one behind the other and products copy nothing.

    taken: the row of [tokens * heads] that each has, int64. back: where each of those rows lies,
    int64 [tokens * heads]. vain: the rows that are no token, int64, or None.
    """

    taken: Tensor
    back: Tensor
    vain: Tensor | None

    def by_head(self, tensor: Tensor) -> Tensor:
        """Rows of heads, of [tokens, heads, width]. What lies beyond a text is its block's first
        token."""
        return tensor.reshape(-1, tensor.shape[-1]).index_select(0, self.taken)

    def by_token(self, rows: Tensor, heads: int) -> Tensor:
        """The inverse: [tokens, heads, width]."""
        return rows.index_select(0, self.back).view(-1, heads, rows.shape[-1])


class Blocks(tuple[Block, ...]):
    """The blocks of a packed row, and what all layers need to know of them, made once."""

    @property
    def longest(self) -> int:
        """Tokens of the longest text."""
        return max(block.longest for block in self)

    def texts(self, device: torch.device) -> Texts:
        """Where each text lies, for kernels of that device."""
        known: dict[torch.device, Texts] = self.__dict__.setdefault("_texts", {})
        if device not in known:
            lengths = np.concatenate(
                [
                    np.full(block.texts, block.longest)
                    if block.inside is None
                    else block.inside.sum(1).cpu().numpy()
                    for block in self
                ]
            )
            offsets = torch.from_numpy(np.concatenate([[0], lengths]).cumsum()).to(device)
            known[device] = Texts(offsets, int(lengths.min()), int(lengths.max()))
        return known[device]

    def layout(self, heads: int) -> Layout:
        """Where a head of a token lies when each block is [texts, heads, longest]."""
        known: dict[int, Layout] = self.__dict__.setdefault("_layouts", {})
        if heads not in known:
            known[heads] = self._layout(heads)
        return known[heads]

    def unseen(
        self, index: int, causal: bool, window: int | None, dtype: torch.dtype
    ) -> Tensor | None:
        """What is added to the scores [n, heads, l, l] of a block: 0 where a query sees a key and
        -inf where not; None where it sees all."""
        known: dict[Any, Tensor | None] = self.__dict__.setdefault("_unseen", {})
        key = index, causal, window, dtype
        if key not in known:
            block = self[index]
            allowed = _allowed(block, causal, window, torch.device("cpu"))
            if causal and allowed is None:
                allowed = torch.ones(block.longest, block.longest, dtype=torch.bool).tril_()
            known[key] = None if allowed is None else _added(allowed, dtype)
        return known[key]

    def _layout(self, heads: int) -> Layout:
        taken, back, vain, first = [], [], [], 0
        head = np.arange(heads)
        for block in self:
            texts, longest = block.texts, block.longest
            places = np.arange(texts * longest) if block.places is None else block.places.numpy()
            tokens = (block.start + places).reshape(texts, 1, longest)
            taken.append((tokens * heads + head[None, :, None]).ravel())
            text, place = np.divmod(np.arange(texts * longest), longest)
            rows = first + (text[:, None] * heads + head) * longest + place[:, None]
            if block.inside is None:
                back.append(rows.ravel())
            else:
                inside = block.inside.numpy().ravel()
                back.append(rows[inside].ravel())
                vain.append(rows[~inside].ravel())
            first += texts * heads * longest
        return Layout(
            torch.from_numpy(np.concatenate(taken)),
            torch.from_numpy(np.concatenate(back)),
            torch.from_numpy(np.concatenate(vain)) if vain else None,
        )


def blocks_of(lengths: Ints, device: torch.device) -> Blocks:
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
    return Blocks(found)


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
    if torch.is_autocast_enabled(device.type):
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


def _added(allowed: Tensor, dtype: torch.dtype) -> Tensor:
    """0 where allowed, else -inf: added in a tenth of the time that masking takes."""
    return torch.zeros(allowed.shape, dtype=dtype).masked_fill_(~allowed, float("-inf"))


def _product(one: Tensor, other: Tensor, factor: float, out: Tensor | None = None) -> Tensor:
    """factor * one @ other for each of a batch; a product of MKL takes the factor for nothing."""
    into = one.new_empty(len(one), one.shape[1], other.shape[2]) if out is None else out
    return torch.baddbmm(into, one, other, beta=0, alpha=factor, out=into)


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
        with torch.autocast("cpu", enabled=False):
            for index, (block, (a, b, c, o)) in enumerate(_parts(blocks, heads, q, k, v, out)):
                scores = _product(a, b.transpose(1, 2), scale)
                unseen = blocks.unseen(index, causal, window, scores.dtype)
                if unseen is not None:
                    scores.view(block.texts, heads, block.longest, block.longest).add_(unseen)
                weight = torch.softmax(scores, -1)
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
