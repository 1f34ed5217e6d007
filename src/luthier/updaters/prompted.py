"""Transformers that stay as they are, and the prompts that are trained in front of them.

A model of ``transformers`` that takes ``input_ids`` or ``pixel_values`` is given further tokens,
vectors that are trained. Which ones follows from the query of a row: what the transformer, without
any prompt, makes of its first token.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Last(list[Tensor]):
    """What was seen last. A copy of a model begins without: tensors of a graph cannot be copied."""

    def __deepcopy__(self, memo: dict[int, Any]) -> Last:
        return Last()

    def keep(self, value: Tensor) -> None:
        self[:] = [value]


class PromptedTransformer(nn.Module):
    """What both kinds share. Subclasses choose prompts, and make scores of hidden states.

    transformer: a model without a head; it gets no gradient, and runs without dropout. Called
    with ``input_ids`` (n, t) and an ``attention_mask``, or with images (n, channels, h, w), as
    one tensor or by name. queried: the queries (n, d) of the last call.
    """

    def __init__(self, transformer: nn.Module) -> None:
        super().__init__()
        self.transformer: Any = transformer.requires_grad_(False).eval()
        self.queried = Last()

    @property
    def dim(self) -> int:
        return int(self.transformer.config.hidden_size)

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        self.transformer.eval()
        return self

    def forward(self, inputs: Tensor | None = None, **named: Any) -> Tensor:
        given = named if inputs is None else {_name_of(inputs): inputs}
        with torch.no_grad():
            query = self.transformer(**given).last_hidden_state[:, 0]
        self.queried.keep(query)
        return self.scores(query, given)

    def scores(self, query: Tensor, given: Mapping[str, Tensor]) -> Tensor:
        """Logits (n, classes) of rows with these queries (n, d)."""
        raise NotImplementedError

    def prompted(self, given: Mapping[str, Tensor], prompts: Tensor) -> tuple[Tensor, Tensor]:
        """Hidden states behind the prompts (n, p, d), and that of the row's first token (n, d)."""
        count = prompts.shape[1]
        if "pixel_values" in given:  # behind the patches, which have their positions already
            handle = self.transformer.embeddings.register_forward_hook(
                lambda _module, _given, output: torch.cat([output, prompts.to(output)], dim=1)
            )
            try:
                hidden = self.transformer(**given).last_hidden_state
            finally:
                handle.remove()
            return hidden[:, -count:], hidden[:, 0]
        ids = given["input_ids"]
        words = self.transformer.get_input_embeddings()(ids)
        mask = given.get("attention_mask")
        mask = torch.ones_like(ids) if mask is None else mask
        hidden = self.transformer(
            inputs_embeds=torch.cat([prompts.to(words), words], dim=1),
            attention_mask=torch.cat([mask.new_ones(len(mask), count), mask], dim=1),
        ).last_hidden_state
        return hidden[:, :count], hidden[:, count]


class PromptPool(nn.Module):
    """Prompts (pool_size, prompt_size, dim), each with a key; a row takes those nearest to it.

    pulled: of the last call, the mean over rows of Σ (1 - cos(query, key)) over the keys taken.
    """

    def __init__(self, dim: int, pool_size: int, selection_size: int, prompt_size: int) -> None:
        super().__init__()
        if not 0 < selection_size <= pool_size:
            raise ValueError(f"{selection_size} prompts of a pool of {pool_size}")
        self.selection_size = selection_size
        self.prompts = nn.Parameter(torch.empty(pool_size, prompt_size, dim).uniform_(-1, 1))
        self.keys = nn.Parameter(torch.empty(pool_size, dim).uniform_(-1, 1))
        self.pulled = Last()

    def forward(self, query: Tensor) -> Tensor:
        """Prompts (n, selection_size · prompt_size, dim) for queries (n, dim)."""
        near = F.normalize(query, dim=1) @ F.normalize(self.keys, dim=1).T
        best = near.topk(self.selection_size, dim=1)
        self.pulled.keep((1 - best.values).sum(1).mean())
        return self.prompts[best.indices].flatten(1, 2)


class LearningToPromptTransformer(PromptedTransformer):
    """A pool of prompts in front of a frozen transformer; the head reads the prompts' states.

    Wang et al. 2022, Learning to Prompt for Continual Learning, section 4. To be updated by L2P.
    """

    def __init__(
        self,
        transformer: nn.Module,
        num_outputs: int = 10,
        pool_size: int = 10,
        pool_selection_size: int = 5,
        prompt_size: int = 5,
    ) -> None:
        super().__init__(transformer)
        self.pool = PromptPool(self.dim, pool_size, pool_selection_size, prompt_size)
        self.head = nn.Linear(self.dim, num_outputs)

    def scores(self, query: Tensor, given: Mapping[str, Tensor]) -> Tensor:
        states, _ = self.prompted(given, self.pool(query))
        found: Tensor = self.head(states.mean(1))
        return found


class SPromptTransformer(PromptedTransformer):
    """Prompts and a head for each domain, which is known by the nearest of its centroids.

    A domain is the data of one update. Rows that are trained on are of the current one; of any
    other row the domain is that of the centroid nearest to its query, by the sum of absolute
    differences. Wang et al. 2022, S-Prompts Learning with Pre-trained Transformers, section 3.
    To be updated by S-Prompt.

    domains: the most there can be. clusters_per_domain: centroids of each.
    """

    def __init__(
        self,
        transformer: nn.Module,
        num_outputs: int = 10,
        domains: int = 20,
        prompt_size: int = 10,
        clusters_per_domain: int = 5,
    ) -> None:
        super().__init__(transformer)
        shape = (prompt_size, self.dim)
        self.prompts = nn.ParameterList(
            nn.Parameter(torch.empty(shape).uniform_(-1, 1)) for _ in range(domains)
        )
        self.heads = nn.ModuleList(nn.Linear(self.dim, num_outputs) for _ in range(domains))
        self.centroids: Tensor
        self.known: Tensor
        self.register_buffer("centroids", torch.zeros(domains, clusters_per_domain, self.dim))
        self.register_buffer("known", torch.zeros(domains, dtype=torch.bool))
        self.current = 0

    def domains_of(self, query: Tensor) -> Tensor:
        """The domain of each row (n,), by its query (n, d)."""
        if self.training or not self.known.any():
            return torch.full((len(query),), self.current, device=query.device)
        places = self.known.nonzero()[:, 0]
        distances = torch.cdist(query.float(), self.centroids[places].flatten(0, 1).float(), p=1)
        return places[distances.argmin(1) // self.centroids.shape[1]]

    def scores(self, query: Tensor, given: Mapping[str, Tensor]) -> Tensor:
        domains = self.domains_of(query)
        prompts = torch.stack([self.prompts[d] for d in domains.tolist()])
        _, first = self.prompted(given, prompts)
        found = [self.heads[d](row) for d, row in zip(domains.tolist(), first, strict=True)]
        return torch.stack(found)


def _name_of(inputs: Tensor) -> str:
    return "pixel_values" if inputs.is_floating_point() else "input_ids"
