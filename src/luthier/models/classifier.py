"""A transformers model that gives each text a score a class, behind the surface that packed
execution needs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, cast

import torch
from torch import Tensor, nn

from luthier.models.depths import layer_list
from luthier.models.execution import Execution, embed
from luthier.models.tokenizing import Tokenizing, has_types
from luthier.models.tokens import Tokens


class SequenceClassifier(Tokenizing, nn.Module):
    """``AutoModelForSequenceClassification`` and its tokenizer.

    Heads read a text's first token ([CLS]) at the first place of its row. Packed, there is one
    row for all texts: what the last layer gives is cut down to the first token of each text,
    a row each, so that the head is the unmodified one.

    Attributes:
        model: the transformers model.
        execution, calls: as those of ``TextModel``.
    """

    def __init__(self, model: Any, tokenizer: Any) -> None:
        super().__init__()
        self.model = model
        self.tokenizer = tokenizer
        self.has_types = has_types(tokenizer)
        self.execution: Execution | None = None
        self.calls: Counter[str] = Counter()

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    @property
    def encoder(self) -> nn.Module:
        """The model without its head."""
        return cast(nn.Module, self.model.base_model)

    def forward(self, features: dict[str, Tensor]) -> Tensor:
        """Logits [n, classes]. ``features``: a padded batch, or a packed one (``packed.py``)."""
        given = dict(features)
        ends = given.pop("cu_seq_lens_q", None)
        given.pop("seq_idx", None)
        cut = nullcontext() if ends is None else _first_tokens(self.encoder, ends[:-1])
        with cut:
            logits: Tensor = self.model(**given).logits
        return logits

    def logits(self, tokens: Tokens) -> Tensor:
        """Logits [n, classes] of texts, in their order, by the model's ``execution``."""
        return embed(self, tokens, self.execution or "padded")


@contextmanager
def _first_tokens(encoder: nn.Module, starts: Tensor) -> Iterator[None]:
    """Let only the first token of each text leave the last layer: [1, total, d] → [n, 1, d]."""
    layers = cast(nn.ModuleList, encoder.get_submodule(layer_list(encoder)))

    def cut(_: nn.Module, __: Any, output: Any) -> Any:
        if isinstance(output, tuple):
            return output[0][0, starts].unsqueeze(1), *output[1:]
        return output[0, starts].unsqueeze(1)

    hook = layers[-1].register_forward_hook(cut)
    try:
        yield
    finally:
        hook.remove()
