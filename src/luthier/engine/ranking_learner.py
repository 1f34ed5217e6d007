"""What the loop trains on rankings: a batch's queries and items, each text once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import Tensor

from luthier.data.rankings import Rankings
from luthier.engine.device import Device
from luthier.engine.learner import EmbeddingLearner, Rows
from luthier.models.tokens import Ints, Tokens, by_budget
from luthier.objectives import Embedded
from luthier.objectives.lists import Lists, Phase

if TYPE_CHECKING:
    from luthier.objectives import Objective


@dataclass(frozen=True)
class RankedBatch:
    """Searches as tokens.

    columns: the different queries, and the different items. queries: int64 [n], of each row its
    query in the first column. lists: which items each row has, by their place in the second.
    row_tokens: int64 [n], tokens of each row with all its items.
    """

    columns: tuple[Tokens, Tokens]
    queries: Tensor
    lists: Lists
    row_tokens: Ints

    def __len__(self) -> int:
        return len(self.queries)


class RankingLearner(EmbeddingLearner):
    """A text model, or two towers, under an objective of rankings.

    query_scale: what the gradient that flows through the queries is multiplied by. Where one
    model has both sides and plain gradient steps, that is a learning rate of its own.
    phase: which pairs count at the present step; evaluations count all.
    """

    dataset: Rankings

    def __init__(
        self, model: Any, objective: Objective, dataset: Rankings, device: Device, *,
        query_scale: float = 1.0,
    ) -> None:  # fmt: skip
        super().__init__(model, objective, dataset, device)
        self.reads = dataset.catalogue
        self.texts = lambda role, rows: model.tokens(self.reads.texts(role, rows))
        self.query_scale = query_scale
        self.phase: Callable[[], Phase | None] = lambda: None

    @property
    def texts_a_row(self) -> float:
        return 1.0 + float(self.dataset.sizes.mean())

    def read_by(self, rows: Rows | None) -> Rows | None:
        part = self.dataset if rows is None else self.dataset.take(rows)
        used = part.used()
        return None if len(used) == len(self.reads) else used

    def fetch(self, rows: np.ndarray) -> RankedBatch:  # type: ignore[override]
        shown = self.dataset.shown(rows)
        queries, query = np.unique(shown.queries, return_inverse=True)
        items, item = np.unique(shown.items, return_inverse=True)
        columns = self.texts("text", queries), self.texts("text", items)
        row_tokens = columns[0].lengths[query] + np.bincount(
            shown.rows, columns[1].lengths[item], len(rows)
        ).astype(np.int64)
        lists = Lists(
            torch.from_numpy(shown.rows),
            torch.from_numpy(item),
            torch.from_numpy(shown.relevance).float(),
            torch.from_numpy(shown.weight).float(),
            torch.from_numpy(shown.queries),
            None if shown.score is None else torch.from_numpy(shown.score),
            None if shown.irrelevant is None else torch.from_numpy(shown.irrelevant),
        )
        return RankedBatch(columns, torch.from_numpy(query), lists, row_tokens)

    def compare(self, columns: Sequence[Tensor], batch: RankedBatch) -> Tensor:  # type: ignore[override]
        queries, items = columns
        if self.query_scale != 1.0 and queries.requires_grad:
            queries = cast(Tensor, cast(Any, Scaled).apply(queries, self.query_scale))
        queries = queries[batch.queries.to(queries.device)]
        lists = batch.lists
        if torch.is_grad_enabled():
            lists = Lists(**{**vars(lists), "phase": self.phase()})
        loss: Tensor = self.objective(Embedded((queries, items), lists=lists))
        return loss

    def embed_columns(self, batch: Any, model: Any) -> Sequence[Tensor]:
        query_tower, item_tower = sides(model)
        if query_tower is item_tower:
            return super().embed_columns(batch, model)
        queries, items = batch.columns
        return [query_tower.embed(queries).float(), item_tower.embed(items).float()]

    def _model_of(self, texts: Ints, batch: Any) -> Any:
        return sides(self.model)[0 if texts[0] < len(batch.columns[0]) else 1]

    def _chunks(self, batch: Any, micro: int) -> list[np.ndarray]:
        queries, items = (column.lengths for column in batch.columns)
        towers = sides(self.model)
        if self.model.execution == "padded":
            most = micro * int(torch.bincount(batch.lists.rows).max())
            return [*_cut(0, len(queries), micro), *_cut(len(queries), len(items), most)]
        budget = micro * int(batch.row_tokens.max())
        if towers[0] is towers[1]:
            return by_budget(np.concatenate([queries, items]), budget)
        moved = [texts + len(queries) for texts in by_budget(items, budget)]
        return [*by_budget(queries, budget), *moved]


class Scaled(torch.autograd.Function):
    """The same forward; the gradient times a number."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, by: float) -> Tensor:
        ctx.by = by
        return values.view_as(values)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient * ctx.by, None


def sides(model: Any) -> tuple[Any, Any]:
    """What embeds queries, and what embeds items."""
    tower = getattr(model, "query_tower", None)
    return (model, model) if tower is None else (tower, model.item_tower)


def _cut(start: int, count: int, size: int) -> Iterable[np.ndarray]:
    return (
        np.arange(start + first, start + min(first + size, count))
        for first in range(0, count, size)
    )
