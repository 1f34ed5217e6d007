"""A text encoder as the engine sees it: tokens in, one vector a text out, and how deep each
parameter lies."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from luthier.errors import ModelError
from luthier.models.batching import Progress, check_texts, encode_in_batches

#: A fast tokenizer keeps its padding and truncation as state, and refuses two threads at once.
#: One lock for all of them, because a lock of its own would make a model impossible to copy.
_TOKENIZING = threading.Lock()

#: Parameters that feed all layers, wherever they are registered: T5 keeps the bias that its
#: layers share in the first of them, MPNet behind the last.
_BOTTOM = ("embed", "relative_attention_bias")


class TextModel(nn.Module):
    """A sentence-transformers model with the surface that training needs.

    Attributes:
        sentence_transformer: the model itself; what ``save`` writes.
        dim: width of the vectors.
        max_length: tokens, special ones included, beyond which a text is cut.
        prompt: what the model puts before every text, often nothing.
        prompt_length: the prompt's tokens, when pooling leaves them out; else 0.
    """

    def __init__(self, sentence_transformer: Any) -> None:
        super().__init__()
        self.sentence_transformer = sentence_transformer
        self.prompt, self.prompt_length = _default_prompt(sentence_transformer)

    @property
    def dim(self) -> int:
        width = next(
            w
            for module in reversed(list(self.sentence_transformer.children()))
            if (w := getattr(module, "get_embedding_dimension", lambda: None)())
        )
        truncated = self.sentence_transformer.truncate_dim
        return int(min(width, truncated) if truncated else width)

    @property
    def max_length(self) -> int:
        # Tokenizers write "no limit" as 1e30.
        return int(min(self.tokenizer.model_max_length, sys.maxsize))

    @property
    def tokenizer(self) -> Any:
        return self.sentence_transformer.tokenizer

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    @property
    def encoder(self) -> nn.Module:
        """The transformers model, without pooling and heads."""
        return cast(nn.Module, self.sentence_transformer[0].model)

    @property
    def token_embedding(self) -> nn.Embedding:
        """The table of token vectors."""
        return cast(nn.Embedding, cast(Any, self.encoder).get_input_embeddings())

    def tokenize(self, texts: Sequence[str]) -> dict[str, Tensor]:
        """Tokenize a batch on the CPU.

        Returns int64 tensors [n, tokens], padded to the longest of the batch and cut at
        ``max_length``. May be called from several threads.
        """
        batch = list(texts)
        if self.prompt:
            batch = [self.prompt + text for text in batch]
        limit = self.max_length
        with _TOKENIZING:
            encoded = self.tokenizer(
                batch,
                padding=True,
                truncation="longest_first",
                max_length=limit if limit < sys.maxsize else None,
                return_tensors="pt",
            )
        features = dict(encoded)
        if self.prompt_length:
            features["prompt_length"] = torch.full((len(batch),), self.prompt_length)
        return features

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

    def forward(self, features: dict[str, Tensor]) -> Tensor:
        """Vectors [n, dim] of a tokenized batch on the model's device. Leaves it unchanged."""
        out = self.sentence_transformer(dict(features))
        embeddings: Tensor = out["sentence_embedding"]
        truncated = self.sentence_transformer.truncate_dim
        return embeddings[:, :truncated] if truncated else embeddings

    def encode(
        self,
        texts: Sequence[str],
        batch_size: int = 32,
        normalize: bool = True,
        progress: Progress | None = None,
    ) -> np.ndarray:
        """Vectors of texts, in their order: float32 [n, dim].

        Runs without dropout and without gradients, whatever mode the model is in, and leaves
        the mode as it was. ``normalize`` scales each vector to length 1. ``progress`` is told
        the number of texts done so far.

        Raises:
            DataError: an item is not a string.
        """
        check_texts(texts, batch_size)
        if not len(texts):
            return np.zeros((0, self.dim), dtype=np.float32)
        device = self.device

        def vectors(batch: list[str]) -> np.ndarray:
            features = {k: v.to(device) for k, v in self.tokenize(batch).items()}
            out = self(features).float()
            found: np.ndarray = (nn.functional.normalize(out) if normalize else out).cpu().numpy()
            return found

        with evaluating(self), torch.no_grad():
            return encode_in_batches(texts, batch_size, vectors, progress)

    def depths(self) -> list[tuple[str, nn.Parameter, int]]:
        """Name, parameter and layer depth of every parameter, for layer-wise learning rates.

        0 is the embeddings, 1 to L the encoder's layers, L + 1 whatever follows them (final
        norm, pooler, pooling, heads). Layers are the longest outermost ``ModuleList`` of the
        encoder; one that shares its layers (ALBERT) has as many as it stores.
        """
        prefix, top = _layers_of(self.encoder), self.layers + 1
        below = True  # what is registered before the first layer feeds it
        of_parameter: dict[int, int] = {}
        for name, parameter in self.encoder.named_parameters():
            inside = bool(prefix) and name.startswith(prefix)
            below = below and not inside
            if below or any(word in name for word in _BOTTOM):
                depth = 0
            else:
                depth = _index_after(name, prefix) + 1 if inside else top
            of_parameter[id(parameter)] = depth
        return [(n, p, of_parameter.get(id(p), top)) for n, p in self.named_parameters()]

    @property
    def layers(self) -> int:
        """Depth of the encoder's last layer: what ``depths`` puts above it is L + 1."""
        prefix = _layers_of(self.encoder)
        inside = (n for n, _ in self.encoder.named_parameters() if prefix and n.startswith(prefix))
        return max((_index_after(name, prefix) + 1 for name in inside), default=0)

    def save(self, folder: Path) -> None:
        """Write a folder that ``SentenceTransformer(folder)`` opens.

        The same weights write the same bytes: what the tokenizer remembers of its last batch
        is forgotten first. A GeM pooling needs luthier installed, and ``trust_remote_code``.
        """
        from luthier.models.loading import quietly

        with self._fresh_tokenizer(), quietly():
            try:
                self.sentence_transformer.save(str(folder), create_model_card=False)
            except OSError as error:
                raise ModelError(f"cannot be written ({error})", where=str(folder)) from error

    def save_tokenizer(self, folder: Path) -> None:
        """Write the tokenizer alone."""
        with self._fresh_tokenizer():
            self.tokenizer.save_pretrained(str(folder))

    @contextmanager
    def _fresh_tokenizer(self) -> Iterator[None]:
        """Without what the tokenizer remembers of its last batch, and without another batch."""
        with _TOKENIZING:
            backend = getattr(self.tokenizer, "backend_tokenizer", None)
            if backend is not None:
                backend.no_truncation()
                backend.no_padding()
            yield


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode for a while; afterwards each module is in the mode that it was in."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def _layers_of(encoder: nn.Module) -> str:
    """Name, with a dot, of the longest ModuleList that lies in no other."""
    lists = {n: m for n, m in encoder.named_modules() if isinstance(m, nn.ModuleList) and len(m)}
    outermost = {
        n: len(m)
        for n, m in lists.items()
        if not any(n.startswith(f"{o}.") for o in lists if o != n)
    }
    return f"{max(outermost, key=lambda n: outermost[n])}." if outermost else ""


def _index_after(name: str, prefix: str) -> int:
    return int(name[len(prefix) :].split(".", 1)[0])


def _default_prompt(model: Any) -> tuple[str, int]:
    """The prompt that the model puts before every text, and its tokens when pooling skips it."""
    name = model.default_prompt_name
    prompt = (model.prompts.get(name) or "") if name is not None else ""
    skipped = any(getattr(module, "include_prompt", True) is False for module in model.children())
    if not prompt or not skipped:
        return prompt, 0
    ids = model.tokenizer(prompt)["input_ids"]
    # As sentence-transformers counts: a closing special token does not belong to the prompt.
    return prompt, len(ids) - (1 if ids and ids[-1] in model.tokenizer.all_special_ids else 0)
