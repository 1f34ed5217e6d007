"""What the work is, whoever does it: tokens that are no padding, and operations of the model.

Read from the model's files, without torch: the same number serves every side.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Shape:
    """A transformer encoder: parameters outside the tables of embeddings and the pooler, which
    a token does not pass through, layers, and width."""

    parameters: int
    layers: int
    hidden: int


@dataclass(frozen=True)
class Load:
    """Samples, tokens (no padding), tokens when each batch is padded to its longest text, and
    floating-point operations of the forward pass."""

    samples: int = 0
    tokens: int = 0
    padded_tokens: int = 0
    forward_operations: float = 0.0

    def __add__(self, other: Load) -> Load:
        return Load(
            self.samples + other.samples,
            self.tokens + other.tokens,
            self.padded_tokens + other.padded_tokens,
            self.forward_operations + other.forward_operations,
        )


def shape_of(model: Path) -> Shape:
    """The shape of a sentence-transformers folder. Raises KeyError for other layouts."""
    from safetensors import safe_open

    inner = model if (model / "config.json").exists() else model / "0_Transformer"
    config = json.loads((inner / "config.json").read_text())
    parameters = 0
    with safe_open(inner / "model.safetensors", framework="numpy") as weights:
        for name in weights.keys():  # noqa: SIM118 - the reader is no mapping
            if "embeddings.weight" in name or "pooler." in name:
                continue
            count = 1
            for length in weights.get_slice(name).get_shape():
                count *= length
            parameters += count
    return Shape(parameters, int(config["num_hidden_layers"]), int(config["hidden_size"]))


def positions_of(model: Path) -> int:
    """Positions of the model: no text can be longer."""
    return int(json.loads((model / "config.json").read_text())["max_position_embeddings"])


class Counter:
    """Counts the tokens of texts as the sides will cut them."""

    def __init__(self, model: Path, max_seq_length: int) -> None:
        from tokenizers import Tokenizer

        self._tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(max_seq_length)
        self._shape = shape_of(model)

    def load(self, texts: Sequence[str]) -> Load:
        """What one batch of texts asks of the model; it counts as no sample yet.

        Forward: 2 operations a parameter and token, and 4·d a layer for each pair of tokens
        of a text (scores and sums); a backward pass takes twice that (Kaplan et al. 2020,
        Scaling Laws for Neural Language Models, section 2.1).
        """
        lengths = [len(e.ids) for e in self._tokenizer.encode_batch(list(texts))]
        shape, tokens = self._shape, sum(lengths)
        attention = 4 * shape.hidden * shape.layers * sum(n * n for n in lengths)
        operations = float(2 * shape.parameters * tokens + attention)
        return Load(0, tokens, max(lengths, default=0) * len(lengths), operations)
