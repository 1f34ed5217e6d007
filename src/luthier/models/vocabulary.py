"""Active vocabulary: only those rows of the token table train that training texts look up.

A row that no text looks up has a gradient of zero in every step. Where the optimizer leaves such
a row where it is, training the others alone is the same training (bit for bit, but for the
rounding of a clipped norm), without the gradient, the moments and the pass over the rest of the
table, which is most of a multilingual model.

The module stays where it is, under its names and with its whole table, so that checkpoints,
saving, evaluation and layer-wise rates see no difference.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from luthier.models.tokens import Ints

if TYPE_CHECKING:
    from luthier.models.text import TextModel

#: torch's optimizers that do not move what never had a gradient, shown for each by a test. ASGD
#: decays it (``lambd``); LBFGS mixes rows by inner products, whose rounding then differs;
#: SparseAdam already steps rows alone.
EXACT = (
    "Adadelta",
    "Adagrad",
    "Adam",
    "AdamW",
    "Adamax",
    "NAdam",
    "RAdam",
    "RMSprop",
    "Rprop",
    "SGD",
)

#: Their weight decay where none is given; 0 for all others.
_DECAYS = {"AdamW": 1e-2}


@dataclass
class _Rows:
    """What trains.

    vectors: [a, d]. ids: the token of each, int64 [a]. place: token → its row, -1 for those
    that do not train, int64 [vocabulary]. padding: the row that never trains, if one does not.
    """

    vectors: nn.Parameter
    ids: Tensor
    place: Tensor
    padding: int | None


class ActiveEmbedding(nn.Embedding):
    """A token table of which some rows train; a module becomes one by a change of its class.

    ``weight`` is the whole table. Its trained rows are brought up to date whenever its state
    is read, and by ``whole``.
    """

    rows: _Rows

    def forward(self, input: Tensor) -> Tensor:
        """Vectors of any tokens; gradients go to the active rows."""
        rows = self.rows
        places = rows.place[input]
        unknown = places < 0
        if not bool(unknown.any()):
            return nn.functional.embedding(places, rows.vectors, rows.padding)
        known = nn.functional.embedding(places.clamp(min=0), rows.vectors, rows.padding)
        others = nn.functional.embedding(input, self.weight.detach())
        return torch.where(unknown.unsqueeze(-1), others, known)

    def fill(self) -> None:
        """Write the active rows into the table."""
        with torch.no_grad():
            self.weight[self.rows.ids] = self.rows.vectors

    def _save_to_state_dict(self, *words: Any) -> None:
        self.fill()
        super()._save_to_state_dict(*words)


def inexact(optimizer: str, options: Mapping[str, Any]) -> str:
    """Why this optimizer would move rows that no text looks up; "" where it would not."""
    if optimizer not in EXACT:
        return f"{optimizer} needs the whole table"
    decay = options.get("weight_decay", _DECAYS.get(optimizer, 0))
    if decay:
        return f"weight_decay={decay:g} decays the whole table"
    if options.get("eps", 1) == 0:
        return "eps=0 divides nothing by nothing in the whole table"
    return ""


def unfit(model: TextModel) -> str:
    """Why the model's table cannot be trained in part; "" where it can."""
    embedding = model.token_embedding
    if type(embedding) is not nn.Embedding:
        return f"its table is a {type(embedding).__name__}"
    weight = embedding.weight
    if not weight.requires_grad:
        return "its table does not train"
    users = [n for n, p in model.named_parameters(remove_duplicate=False) if p is weight]
    if len(users) != 1:
        return f"its table is also {users[-1]}"
    if embedding.max_norm is not None or embedding.scale_grad_by_freq or embedding.sparse:
        return "its table rescales or counts what is looked up"
    return ""


def activate(model: TextModel, ids: Ints) -> None:
    """Train only the rows of these tokens (sorted, distinct), and that of padding."""
    embedding = model.token_embedding
    device, vocabulary = embedding.weight.device, embedding.num_embeddings
    chosen = torch.zeros(vocabulary, dtype=torch.bool)
    chosen[torch.from_numpy(ids).long()] = True
    for padding in (embedding.padding_idx, model.tokenizer.pad_token_id):
        if padding is not None:
            chosen[padding] = True
    active = chosen.nonzero().squeeze(1)
    place = torch.full((vocabulary,), -1, dtype=torch.int64)
    place[active] = torch.arange(len(active))
    fixed = None if embedding.padding_idx is None else int(place[embedding.padding_idx])
    active = active.to(device)
    vectors = nn.Parameter(embedding.weight.detach()[active].clone())
    embedding.__class__ = ActiveEmbedding
    cast(ActiveEmbedding, embedding).rows = _Rows(vectors, active, place.to(device), fixed)


def trained(model: TextModel) -> list[tuple[str, nn.Parameter, int]]:
    """``model.depths()``, with the active rows in place of the table."""
    embedding = model.token_embedding
    if not isinstance(embedding, ActiveEmbedding):
        return model.depths()
    rows, table = embedding.rows.vectors, embedding.weight
    return [(n, rows if p is table else p, depth) for n, p, depth in model.depths()]


def whole(model: TextModel) -> None:
    """Put the trained rows into the table and make it an ordinary one again."""
    embedding: nn.Module = model.token_embedding
    if isinstance(embedding, ActiveEmbedding):
        embedding.fill()
        del embedding.rows
        embedding.__class__ = nn.Embedding  # type: ignore[assignment]
