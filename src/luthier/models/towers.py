"""Two towers: queries through one encoder, items through another, in one space.

They begin as two copies of one model and train apart. Saved they are a sentence-transformers
``Router`` with the routes "query" and "document", so that ``SentenceTransformer(folder)`` has
``encode_query`` and ``encode_document``.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from luthier.errors import ModelError
from luthier.models.folder import ROUTER, is_router
from luthier.models.text import TextModel
from luthier.models.tokens import Tokens

if TYPE_CHECKING:
    from luthier.models.batching import Progress
    from luthier.models.execution import Execution
    from luthier.models.freezing import Prefix
    from luthier.spec import ModelSpec

ROUTES = ("query", "document")
#: Names of parameters of the queries' tower begin with it.
QUERY = "query_tower."


class TwoTowers(nn.Module):
    """Two text models of one width. What asks no side is asked of the items'."""

    adapter = None  # of low rank: for one encoder only

    def __init__(self, query_tower: TextModel, item_tower: TextModel) -> None:
        super().__init__()
        if query_tower.dim != item_tower.dim:
            message = f"towers of width {query_tower.dim} and {item_tower.dim} share no space"
            raise ModelError(message)
        self.query_tower, self.item_tower = query_tower, item_tower

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name.startswith("_") or name not in _OF_ITEMS:
                raise
            return getattr(self.item_tower, name)

    @property
    def execution(self) -> Execution | None:
        """How both run."""
        return self.item_tower.execution

    @execution.setter
    def execution(self, value: Execution | None) -> None:
        self.query_tower.execution = self.item_tower.execution = value

    @property
    def prefix(self) -> Prefix | None:
        """The stored output of what does not train: the same of both, for they began alike."""
        return self.item_tower.prefix

    @prefix.setter
    def prefix(self, value: Prefix | None) -> None:
        self.query_tower.prefix = self.item_tower.prefix = value

    def tokens(self, texts: Sequence[str]) -> Tokens:
        """Token ids, the same for both."""
        return self.item_tower.tokens(texts)

    def embed(self, tokens: Tokens) -> torch.Tensor:
        """Vectors of items."""
        return self.item_tower.embed(tokens)

    def encode(
        self, texts: Sequence[str], batch_size: int = 32, normalize: bool = True,
        progress: Progress | None = None,
    ) -> np.ndarray:  # fmt: skip
        """Vectors of items, [n, dim]."""
        return self.item_tower.encode(texts, batch_size, normalize, progress)

    def encode_query(
        self, texts: Sequence[str], batch_size: int = 32, normalize: bool = True,
        progress: Progress | None = None,
    ) -> np.ndarray:  # fmt: skip
        """Vectors of queries, [n, dim]."""
        return self.query_tower.encode(texts, batch_size, normalize, progress)

    def depths(self) -> list[tuple[str, nn.Parameter, int]]:
        """As ``TextModel.depths``, of both."""
        towers = (QUERY, self.query_tower), ("item_tower.", self.item_tower)
        return [(at + n, p, d) for at, tower in towers for n, p, d in tower.depths()]

    def save(self, folder: Path) -> None:
        """Write a folder that ``SentenceTransformer(folder)`` opens."""
        from sentence_transformers import SentenceTransformer
        from sentence_transformers.sentence_transformer.modules import Router

        from luthier.models.loading import quietly

        query, items = self.query_tower, self.item_tower
        router = Router.for_query_document(
            list(query.sentence_transformer.children()), list(items.sentence_transformer.children())
        )
        whole = SentenceTransformer(
            modules=[router],
            device=str(items.device),
            prompts={"query": query.prompt, "document": items.prompt},
            similarity_fn_name=items.sentence_transformer.similarity_fn_name,
        )
        with query.fresh_tokenizer():
            pass
        with items.fresh_tokenizer(), quietly():
            try:
                whole.save(str(folder), create_model_card=False)
            except OSError as error:
                raise ModelError(f"cannot be written ({error})", where=str(folder)) from error


#: What ``TwoTowers`` has from the items' tower.
_OF_ITEMS = frozenset(
    {
        "dim", "max_length", "tokenizer", "device", "encoder", "token_embedding", "layers",
        "layer_list", "fixed_layers", "prompt", "prompt_length", "has_types", "calls",
        "sentence_transformer", "token_lengths", "tokenize", "pad",
    }
)  # fmt: skip


def load_towers(spec: ModelSpec, *, artifact: Path | None, device: str) -> TwoTowers:
    """Two copies of the model that ``spec`` describes; or the two that a folder or artifact has.

    Raises as ``load_text_model``.
    """
    from luthier.models.catalog import resolve
    from luthier.models.loading import load_text_model

    place = artifact if artifact is not None else resolve(spec.name).path
    if place is None or not is_router(place):
        model = load_text_model(spec, artifact=artifact, device=device)
        return TwoTowers(copy.deepcopy(model), model)
    towers = open_towers(place, device=device)
    _prepare(towers, spec, place)
    return towers


def open_towers(folder: Path, *, device: str = "auto") -> TwoTowers:
    """Open a folder that ``TwoTowers.save`` wrote."""
    from sentence_transformers import SentenceTransformer

    from luthier.models.catalog import Located
    from luthier.models.loading import open_modules, placed

    whole = open_modules(Located(str(folder), path=folder))
    routes = getattr(whole[0], "sub_modules", {})
    if set(routes) != set(ROUTES) or len(whole) > 1:
        message = f"has the routes {', '.join(routes)}, not query and document alone"
        raise ModelError(message, where=str(folder / ROUTER))
    found = []
    for route in ROUTES:
        prompt = (whole.prompts or {}).get(route) or ""
        tower = SentenceTransformer(
            modules=list(routes[route].children()),
            device="cpu",
            prompts={route: prompt} if prompt else None,
            default_prompt_name=route if prompt else None,
            similarity_fn_name=whole.similarity_fn_name,
        )
        found.append(TextModel(placed(tower, device, str(folder))))
    return TwoTowers(*found)


def _prepare(towers: TwoTowers, spec: ModelSpec, folder: Path) -> None:
    """What a spec asks of towers that were saved: their heads are there already."""
    from luthier.models.freezing import fix_layers
    from luthier.models.loading import freeze_all_but_heads

    for name in ("pooler", "pooler_options", "dropout", "attn_implementation"):
        if spec.options.get(name) is not None:
            message = f"cannot be changed by '{name}': its two towers are as they were saved"
            raise ModelError(message, where=str(folder), hint=f"leave out {name}")
    if spec.output_dim is not None and spec.output_dim != towers.dim:
        message = f"its towers have vectors of width {towers.dim}, not {spec.output_dim}"
        raise ModelError(message, where=str(folder), hint="leave out output_dim")
    for tower in (towers.query_tower, towers.item_tower):
        length = spec.options.get("max_seq_length")
        if length is not None:
            tower.tokenizer.model_max_length = min(length, tower.tokenizer.model_max_length)
        if spec.freeze:
            freeze_all_but_heads(tower.sentence_transformer, str(folder))
        if spec.num_fixed_layers:
            fix_layers(tower, spec.num_fixed_layers, str(folder))
