"""A text encoder as the engine sees it: tokens in, one vector a text out, and how deep each
parameter lies."""

from __future__ import annotations

import sys
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from luthier.errors import ModelError
from luthier.models.adapters import merged
from luthier.models.batching import Progress, check_texts
from luthier.models.execution import Execution, embed, encode
from luthier.models.freezing import Prefix, embed_above, fixed_modules
from luthier.models.tokens import Tokens

#: A fast tokenizer keeps its padding and truncation as state, and refuses two threads at once.
#: One lock for all of them, because a lock of its own would make a model impossible to copy.
_TOKENIZING = threading.Lock()

#: Texts that ``encode`` tokenizes and sorts by length together; bounds its memory.
_TOKENIZED_TOGETHER = 16_384

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
        execution: how ``embed`` and ``encode`` run, see ``execution.py``; None until chosen.
        calls: how often each execution ran.
        fixed_layers: how many of the lowest layers, with the embeddings, do not train.
        adapter: peft's configuration of the adapters in it, see ``adapters.py``; or None.
        prefix: the stored output of the part that does not train, see ``freezing.py``.
        has_types: whether token types say more than nothing.
    """

    def __init__(self, sentence_transformer: Any) -> None:
        super().__init__()
        self.sentence_transformer = sentence_transformer
        self.prompt, self.prompt_length = _default_prompt(sentence_transformer)
        self.execution: Execution | None = None
        self.calls: Counter[str] = Counter()
        self.fixed_layers = 0
        self.prefix: Prefix | None = None
        self.adapter: Any = None
        self.has_types = _has_types(sentence_transformer.tokenizer)

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

    def forward(self, features: dict[str, Tensor]) -> Tensor:
        """Vectors [n, dim] of a tokenized batch on the model's device. Leaves it unchanged."""
        out = self.sentence_transformer(dict(features))
        embeddings: Tensor = out["sentence_embedding"]
        truncated = self.sentence_transformer.truncate_dim
        return embeddings[:, :truncated] if truncated else embeddings

    def train(self, mode: bool = True) -> TextModel:
        """Training mode for what trains; what is fixed stays in evaluation mode."""
        super().train(mode)
        if mode:
            for module in fixed_modules(self):
                module.eval()
        return self

    def embed(self, tokens: Tokens) -> Tensor:
        """Vectors [n, dim] of texts, in their order, by the model's ``execution``; from the
        stored ``prefix`` where the texts are in it."""
        if self.prefix is not None and tokens.stored is not None:
            self.calls["prefix"] += 1
            return embed_above(self, tokens, self.prefix)
        return embed(self, tokens, self.execution or "padded")

    def encode(
        self,
        texts: Sequence[str],
        batch_size: int = 32,
        normalize: bool = True,
        progress: Progress | None = None,
    ) -> np.ndarray:
        """Vectors of texts, in their order: float32 [n, dim].

        Runs without dropout and without gradients, whatever mode the model is in, and leaves
        the mode as it was. ``batch_size`` texts go through the model at once; packed, as many
        tokens as that many texts of ordinary length. ``normalize`` scales each vector to
        length 1. ``progress`` is told the number of texts done so far.

        Raises:
            DataError: an item is not a string.
        """
        check_texts(texts, batch_size)
        found = np.zeros((len(texts), self.dim), dtype=np.float32)
        done = 0
        with evaluating(self), torch.no_grad():
            for start in range(0, len(texts), _TOKENIZED_TOGETHER):
                tokens = self.tokens(texts[start : start + _TOKENIZED_TOGETHER])
                for rows, vectors in encode(self, tokens, batch_size):
                    out = nn.functional.normalize(vectors) if normalize else vectors
                    found[start + rows] = out.cpu().numpy()
                    done += len(rows)
                    if progress:
                        progress(done)
        return found

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
    def layer_list(self) -> str:
        """Name of the encoder's list of layers; empty where it has none."""
        return _layers_of(self.encoder).removesuffix(".")

    @property
    def layers(self) -> int:
        """Depth of the encoder's last layer: what ``depths`` puts above it is L + 1."""
        prefix = _layers_of(self.encoder)
        inside = (n for n, _ in self.encoder.named_parameters() if prefix and n.startswith(prefix))
        return max((_index_after(name, prefix) + 1 for name in inside), default=0)

    def save(self, folder: Path) -> None:
        """Write a folder that ``SentenceTransformer(folder)`` opens.

        The same weights write the same bytes: what the tokenizer remembers of its last batch
        is forgotten first. Adapters are merged. A GeM pooling needs luthier installed, and
        ``trust_remote_code``.
        """
        from luthier.models.loading import quietly

        with self._fresh_tokenizer(), quietly(), merged(self):
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


def _has_types(tokenizer: Any) -> bool:
    """Whether token types say more than nothing: XLNet marks its closing token with them."""
    if "token_type_ids" not in tokenizer.model_input_names:
        return False
    return any(tokenizer("a", return_token_type_ids=True)["token_type_ids"])


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
