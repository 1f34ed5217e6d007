"""From texts to tokens and padded batches: what every model of texts shares."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from luthier.models.tokens import Tokens

#: A fast tokenizer keeps its padding and truncation as state, and refuses two threads at once.
#: One lock for all of them, because a lock of its own would make a model impossible to copy.
_TOKENIZING = threading.Lock()


class Tokenizing:
    """Texts as tokens.

    tokenizer: a transformers tokenizer. prompt: what is put before every text, often nothing.
    prompt_length: the prompt's tokens, when pooling leaves them out; else 0. has_types: whether
    token types say more than nothing.
    """

    tokenizer: Any
    prompt: str = ""
    prompt_length: int = 0
    has_types: bool = False

    @property
    def max_length(self) -> int:
        """Tokens, special ones included, beyond which a text is cut."""
        # Tokenizers write "no limit" as 1e30.
        return int(min(self.tokenizer.model_max_length, sys.maxsize))

    def tokens(self, texts: Sequence[str]) -> Tokens:
        """Token ids of texts, cut at ``max_length``. May be called from several threads."""
        batch = [self.prompt + text for text in texts] if self.prompt else list(texts)
        if not batch:
            return Tokens(np.zeros(0, np.int32), np.zeros(0, np.int64))
        limit = self.max_length
        options = {
            "padding": False,
            "truncation": "longest_first",
            "max_length": limit if limit < sys.maxsize else None,
            "return_attention_mask": False,
            "return_token_type_ids": self.has_types,
        }
        with _TOKENIZING:
            backend = getattr(self.tokenizer, "backend_tokenizer", None)
            if backend is not None and not self.has_types and len(batch) > 1:
                # transformers makes three times the work of what the tokenizer does itself; it
                # is asked about one text, which also sets the tokenizer up, and must agree.
                first = self.tokenizer(batch[:1], **options)["input_ids"][0]
                ids = [found.ids for found in backend.encode_batch_fast(batch)]
                if ids[0] == first:
                    return Tokens.of(ids)
            encoded = self.tokenizer(batch, **options)
        return Tokens.of(encoded["input_ids"], encoded.get("token_type_ids"))

    def pad(self, tokens: Tokens) -> dict[str, Tensor]:
        """A padded batch on the CPU: int64 tensors [n, tokens], as ``tokenize`` gives them."""
        tokenizer, longest = self.tokenizer, int(tokens.lengths.max())
        left = tokenizer.padding_side == "left"
        places = np.arange(longest)
        if left:
            inside = places >= (longest - tokens.lengths)[:, None]
        else:
            inside = places < tokens.lengths[:, None]

        def filled(values: Any, padding: int) -> Tensor:
            array = np.full(inside.shape, padding, dtype=np.int64)
            array[inside] = values
            return torch.from_numpy(array)

        features = {"input_ids": filled(tokens.values, tokenizer.pad_token_id)}
        if "token_type_ids" in tokenizer.model_input_names:
            types = 0 if tokens.types is None else tokens.types
            features["token_type_ids"] = filled(types, tokenizer.pad_token_type_id)
        features["attention_mask"] = torch.from_numpy(inside.astype(np.int64))
        if self.prompt_length:
            features["prompt_length"] = torch.full((len(tokens),), self.prompt_length)
        return features

    def tokenize(self, texts: Sequence[str]) -> dict[str, Tensor]:
        """Tokenize a batch on the CPU.

        Returns int64 tensors [n, tokens], padded to the longest of the batch and cut at
        ``max_length``. May be called from several threads.
        """
        return self.pad(self.tokens(texts))

    def token_lengths(self, texts: Sequence[str]) -> np.ndarray:
        """Tokens of each text before cutting, special ones included: int64 [n].

        ``(lengths > model.max_length).mean()`` is the share of texts that are cut.
        """
        if not len(texts):
            return np.zeros(0, dtype=np.int64)
        batch = [self.prompt + text for text in texts] if self.prompt else list(texts)
        with _TOKENIZING:
            encoded = self.tokenizer(
                batch, padding=False, truncation=False, return_attention_mask=False, verbose=False
            )
        return np.fromiter((len(ids) for ids in encoded["input_ids"]), np.int64, len(batch))

    @contextmanager
    def fresh_tokenizer(self) -> Iterator[None]:
        """Without what the tokenizer remembers of its last batch, and without another batch."""
        with _TOKENIZING:
            backend = getattr(self.tokenizer, "backend_tokenizer", None)
            if backend is not None:
                backend.no_truncation()
                backend.no_padding()
            yield


def has_types(tokenizer: Any) -> bool:
    """Whether token types say more than nothing: XLNet marks its closing token with them."""
    if "token_type_ids" not in tokenizer.model_input_names:
        return False
    return any(tokenizer("a", return_token_type_ids=True)["token_type_ids"])
