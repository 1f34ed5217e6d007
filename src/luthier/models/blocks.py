"""Texts of different lengths that lie one after another, in blocks that are attended to together.

Texts come sorted by length, in blocks [n, l] of like length. A block of one length is a view of the
same memory, without a mask, and computes nothing for padding. Lengths that differ little share a
block all the same where the padding costs less than a block does.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from luthier.models.ragged import Texts
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
            allowed = allowed_keys(block, causal, window, torch.device("cpu"))
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


def allowed_keys(
    block: Block, causal: bool, window: int | None, device: torch.device
) -> Tensor | None:
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
