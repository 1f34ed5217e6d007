"""A text encoder as the engine sees it: tokens in, one vector a text out, and how deep each
parameter lies."""

from __future__ import annotations

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
from luthier.models.allocator import give_back
from luthier.models.batching import Progress, check_texts
from luthier.models.depths import depths_of, layer_list, layers_of
from luthier.models.execution import Execution, embed, encode
from luthier.models.freezing import Prefix, embed_above, fixed_modules
from luthier.models.tokenizing import Tokenizing, has_types
from luthier.models.tokens import Tokens

#: Texts that ``encode`` tokenizes and sorts by length together; bounds its memory.
_TOKENIZED_TOGETHER = 16_384


class TextModel(Tokenizing, nn.Module):
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
        self.has_types = has_types(sentence_transformer.tokenizer)

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
                    give_back()
                    if progress:
                        progress(done)
        return found

    def depths(self) -> list[tuple[str, nn.Parameter, int]]:
        """Name, parameter and layer depth of every parameter, for layer-wise learning rates.

        0 is the embeddings, 1 to L the encoder's layers, L + 1 whatever follows them (final
        norm, pooler, pooling, heads). Layers are the longest outermost ``ModuleList`` of the
        encoder; one that shares its layers (ALBERT) has as many as it stores.
        """
        return depths_of(self, self.encoder)

    @property
    def layer_list(self) -> str:
        """Name of the encoder's list of layers; empty where it has none."""
        return layer_list(self.encoder)

    @property
    def layers(self) -> int:
        """Depth of the encoder's last layer: what ``depths`` puts above it is L + 1."""
        return layers_of(self.encoder)

    def save(self, folder: Path) -> None:
        """Write a folder that ``SentenceTransformer(folder)`` opens.

        The same weights write the same bytes: what the tokenizer remembers of its last batch
        is forgotten first. Adapters are merged. A GeM pooling needs luthier installed, and
        ``trust_remote_code``.
        """
        from luthier.models.loading import quietly

        with self.fresh_tokenizer(), quietly(), merged(self):
            try:
                self.sentence_transformer.save(str(folder), create_model_card=False)
            except OSError as error:
                raise ModelError(f"cannot be written ({error})", where=str(folder)) from error

    def save_tokenizer(self, folder: Path) -> None:
        """Write the tokenizer alone."""
        with self.fresh_tokenizer():
            self.tokenizer.save_pretrained(str(folder))


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
