"""Packed execution: a step's texts one after another through the unmodified encoder.

Padded to the longest text of a batch, most of what an encoder computes is padding. Here the
tokens of all texts form one long row; positions start anew at each text, and attention, which
is the only place where tokens meet, keeps texts apart (``attention.py``). The encoder is the
one of transformers, called as it is: it finds the attention function in transformers' registry.

Encoders that do not call that function compute nonsense without an error (they would let texts
see each other). Hence ``Packing.calls``, and the comparison in ``execution.py`` before use.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from luthier.models.attention import block_attention
from luthier.models.blocks import Blocks, blocks_of
from luthier.models.tokens import Ints, Tokens

#: The name under which transformers knows our attention.
NAME = "luthier_packed"

#: What an attention layer may ask for beyond the plain formula, and this module does not do.
_FOREIGN = ("softcap", "position_bias", "s_aux", "head_mask", "cache")


class NotPackable(Exception):
    """This encoder's attention does something that packed execution does not know."""


@dataclass
class Packing:
    """Texts sorted by length, as one row.

    order: the text at each place, int64 [n]. blocks: texts of like length. calls: how often an
    attention layer came here, counted.
    """

    tokens: Tokens
    order: Ints
    blocks: Blocks
    calls: int = 0

    @classmethod
    def of(cls, tokens: Tokens, device: torch.device | str = "cpu") -> Packing:
        """Sort texts by length, and into blocks of like length."""
        order = np.argsort(tokens.lengths, kind="stable")
        packed = tokens.take(order)
        return cls(packed, order, blocks_of(packed.lengths, torch.device(device)))

    def features(self, first_position: int, device: torch.device) -> dict[str, Tensor]:
        """What the encoder and sentence-transformers' pooling take: input_ids and
        position_ids [1, total], and where texts begin and end."""
        lengths, ends = self.tokens.lengths, self.tokens.ends
        positions = np.arange(self.tokens.total) - np.repeat(ends - lengths, lengths)
        text = np.repeat(np.arange(len(lengths)), lengths)
        arrays = {
            "input_ids": self.tokens.values.astype(np.int64)[None],
            "position_ids": (positions + first_position)[None],
            "seq_idx": text[None],
            "cu_seq_lens_q": np.concatenate([[0], ends]),
        }
        if self.tokens.types is not None:
            arrays["token_type_ids"] = self.tokens.types.astype(np.int64)[None]
        return {name: torch.from_numpy(array).to(device) for name, array in arrays.items()}

    def restore(self, vectors: Tensor) -> Tensor:
        """Rows in the order of the texts, from rows in the order of the packing."""
        places = np.empty_like(self.order)
        places[self.order] = np.arange(len(places))
        return vectors[torch.from_numpy(places).to(vectors.device)]


_current: ContextVar[Packing | None] = ContextVar("packing", default=None)


@contextmanager
def packed(encoder: nn.Module, packing: Packing) -> Iterator[None]:
    """While it lasts, the encoder's attention keeps the texts of ``packing`` apart."""
    _register()
    config: Any = encoder.config
    before = config._attn_implementation
    token = _current.set(packing)
    config._attn_implementation = NAME
    try:
        yield
    finally:
        config._attn_implementation = before
        _current.reset(token)


def first_position(encoder: nn.Module) -> int:
    """The position of a text's first token: RoBERTa's kin count from the padding index on."""
    for name, module in encoder.named_modules():
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding):
            return 0 if module.padding_idx is None else module.padding_idx + 1
    return 0


def _register() -> None:
    from transformers import AttentionInterface, AttentionMaskInterface

    if NAME not in AttentionInterface._global_mapping:
        AttentionInterface.register(NAME, _attention)
        AttentionMaskInterface.register(NAME, _no_mask)


def _no_mask(*_: Any, **__: Any) -> None:
    """Blocks need no mask."""


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    is_causal: bool | None = None,
    sliding_window: int | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """The function of transformers' registry: query [1, heads, total, width], and out
    [1, total, heads, width]."""
    packing = _current.get()
    asked = [name for name in _FOREIGN if others.get(name) is not None]
    if packing is None or asked or attention_mask is not None or query.shape[0] != 1:
        raise NotPackable(f"{type(module).__name__}: {', '.join(asked) or 'a mask of its own'}")
    packing.calls += 1
    if key.shape[1] != query.shape[1]:  # grouped queries
        key, value = (t.repeat_interleave(query.shape[1] // t.shape[1], 1) for t in (key, value))
    query, key, value = (t.squeeze(0).transpose(0, 1).contiguous() for t in (query, key, value))
    out = block_attention(
        query,
        key,
        value,
        packing.blocks,
        scale=query.shape[-1] ** -0.5 if scaling is None else scaling,
        dropout=dropout,
        causal=bool(getattr(module, "is_causal", False) if is_causal is None else is_causal),
        window=sliding_window,
    )
    return out.unsqueeze(0), None
