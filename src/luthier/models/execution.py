"""How a step's texts go through the encoder: packed, chunked or padded.

padded   one batch, padded to its longest text. The plain path: what others do.
chunked  sorted by length into a few padded batches. Works for every encoder.
packed   no padding at all (``packed.py``). Works for encoders whose attention can be replaced.

All three give the same vectors and gradients up to rounding. ``choose`` takes the fastest one
that proves itself on texts of the run.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor

from luthier.models.packed import NotPackable, Packing, first_position, packed
from luthier.models.tokens import Ints, Tokens, by_budget

if TYPE_CHECKING:
    from luthier.models.text import TextModel

#: Texts from which on ``encode`` compares before it chooses: for fewer it would not pay.
_WORTH_CHOOSING = 64

#: Tokens for which a text of a packed batch is counted when memory is budgeted. Measured with 32 to
#: 256 on two cores: 64 is as fast as 128 and takes a tenth less memory; 256 is a fifth slower, as
#: its activations leave the cache.
_ORDINARY_TOKENS = 64

Execution = Literal["packed", "chunked", "padded"]

#: Padded batches that a chunked step is cut into: more save padding, and make matrices so
#: small that the rest costs more than the padding did. Eight was fastest on two cores.
_CHUNKS = 8

#: What encoders and poolings raise when a row of packed texts is not what they expect.
_REFUSALS = (TypeError, ValueError, LookupError, AttributeError, RuntimeError)

#: Largest difference from the plain path, relative to the largest value: float32 rounding over
#: some twenty layers stays below it, and any real difference is above it.
_TOLERANCE = 2e-4

#: Texts on which the packed path is compared, the shortest and the longest among them.
_COMPARED = 6


def embed(model: TextModel, tokens: Tokens, execution: Execution) -> Tensor:
    """What the model makes of texts, in their order, with the gradient if one is wanted."""
    model.calls[execution] += 1
    if execution == "packed":
        return _packed(model, tokens)[0]
    if execution == "chunked":
        return _chunked(model, tokens)
    return _padded(model, tokens)


def choose(model: TextModel, sample: Tokens) -> tuple[Execution, str]:
    """The fastest execution that is right for this model, and why not a faster one ("").

    Packed execution is compared with the padded one on a few of the sampled texts, without
    dropout; an encoder that never calls the attention function, or calls it for less than it
    should, is found here and runs chunked.
    """
    order = np.argsort(sample.lengths, kind="stable")
    picked = np.unique(np.linspace(0, len(order) - 1, _COMPARED).astype(np.int64))
    few = sample.take(order[picked])
    from luthier.models.text import evaluating

    with evaluating(model), torch.no_grad(), torch.autocast(model.device.type, enabled=False):
        plain = _padded(model, few)
        try:
            found, calls = _packed(model, few)
        except NotPackable as error:
            return "chunked", str(error)
        except _REFUSALS as error:
            return (
                "chunked",
                f"{type(model.encoder).__name__} refuses packed texts ({str(error)[:100]})",
            )
    if not calls:
        return "chunked", f"{type(model.encoder).__name__} has an attention of its own"
    off = float((plain - found).abs().max() / plain.abs().max().clamp(min=1e-12))
    if not off <= _TOLERANCE:
        return "chunked", f"packed vectors of {type(model.encoder).__name__} differ by {off:.1e}"
    return "packed", ""


def encode(model: TextModel, tokens: Tokens, batch_size: int) -> Iterator[tuple[Ints, Tensor]]:
    """Vectors of texts, in batches: row numbers, and float32 vectors [rows, dim]."""
    if model.execution is None and len(tokens) >= _WORTH_CHOOSING:
        model.execution = choose(model, tokens)[0]
    if model.execution == "packed":
        batches = by_budget(tokens.lengths, batch_size * _ORDINARY_TOKENS)
    else:
        order = np.argsort(-tokens.lengths, kind="stable")
        batches = np.split(order, range(batch_size, len(order), batch_size))
    execution: Execution = "packed" if model.execution == "packed" else "padded"
    for rows in batches:
        yield rows, embed(model, tokens.take(rows), execution).float()


def _padded(model: TextModel, tokens: Tokens) -> Tensor:
    features = {k: v.to(model.device) for k, v in model.pad(tokens).items()}
    vectors: Tensor = model(features)
    return vectors


def _chunked(model: TextModel, tokens: Tokens) -> Tensor:
    most = max(int(tokens.lengths.max()), -(-tokens.total // _CHUNKS))
    chunks = by_budget(tokens.lengths, most)
    vectors = torch.cat([_padded(model, tokens.take(chunk)) for chunk in chunks])
    places = np.empty(len(tokens), dtype=np.int64)
    places[np.concatenate(chunks)] = np.arange(len(tokens))
    return vectors[torch.from_numpy(places).to(vectors.device)]


def _packed(model: TextModel, tokens: Tokens) -> tuple[Tensor, int]:
    """Vectors, and the attention layers that came by."""
    encoder: Any = model.encoder
    packing = Packing.of(tokens, model.device)
    features = packing.features(first_position(encoder), model.device)
    if model.prompt_length:
        features["prompt_length"] = torch.tensor([model.prompt_length])
    with packed(encoder, packing):
        vectors = model(features)
    return packing.restore(vectors), packing.calls
