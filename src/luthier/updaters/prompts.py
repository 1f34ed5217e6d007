"""Updaters of prompted transformers: all that is learnt are prompts, their keys and a head."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from luthier.batches.arithmetic import below, derive, numbers
from luthier.errors import ModelError
from luthier.updaters.prompted import LearningToPromptTransformer, SPromptTransformer
from luthier.updaters.updater import Part, Pupil, Seen, Term

Model = TypeVar("Model", bound=nn.Module)

#: Rows of an update that its centroids are found on; k-means needs no more.
_CLUSTERED = 5000


@dataclass
class Pull(Part):
    """Keys are drawn to the queries that choose them.

    term = pull · mean_rows Σ (1 - cos(query, key)) over the keys that a row takes

    Paper: Wang et al. 2022, Learning to Prompt for Continual Learning, equation 5 (L2P).
    """

    pull: float = 0.5

    def attach(self, model: nn.Module, updates: int) -> None:
        prompted = the(model, LearningToPromptTransformer, "L2P")
        _only(model, [*prompted.pool.parameters(), *prompted.head.parameters()])

    def terms(self, pupil: Pupil, new: Seen, replayed: Seen | None) -> Iterable[Term]:
        (pulled,) = the(pupil.model, LearningToPromptTransformer, "L2P").pool.pulled
        return (Term("pull", self.pull, pulled),)


@dataclass
class Domains(Part):
    """An update is a domain: its prompts, its head, and centroids of its queries by k-means.

    Paper: Wang et al. 2022, S-Prompts Learning with Pre-trained Transformers, section 3.2.
    """

    seed: int = 0

    def attach(self, model: nn.Module, updates: int) -> None:
        prompted = the(model, SPromptTransformer, "S-Prompt")
        if updates >= len(prompted.prompts):
            raise ModelError(
                f"the model has prompts for {len(prompted.prompts)} domains, and this is the next",
                hint="make it with more: SPromptTransformer(…, domains=…)",
            )
        prompted.current = updates
        _only(model, [prompted.prompts[updates], *prompted.heads[updates].parameters()])

    @torch.no_grad()
    def start(self, pupil: Pupil, past: dict[str, Any] | None = None) -> None:
        prompted = the(pupil.model, SPromptTransformer, "S-Prompt")
        found: list[Tensor] = []
        for batch in pupil.rows(_CLUSTERED, at_once=64):
            pupil.see(batch)
            found += prompted.queried
        queries = torch.cat(found)
        key = derive(self.seed, "domain", pupil.updates)
        prompted.centroids[prompted.current] = centroids(queries, prompted.centroids.shape[1], key)
        prompted.known[prompted.current] = True


def centroids(points: Tensor, count: int, key: int, rounds: int = 50) -> Tensor:
    """Centres (count, d) of points (n, d), by Lloyd's algorithm from the seeds of k-means++.

    Arthur and Vassilvitskii 2007. The same for the same key; with fewer points than centres
    some centres are one.

    >>> sorted(centroids(torch.tensor([[0.0], [0.2], [9.8], [10.0]]), 2, 1).flatten().tolist())
    [0.10000000149011612, 9.899999618530273]
    """
    wide = points.double()
    chosen = [int(below(key, 1, len(points))[0])]
    chances = numbers(derive(key, "seeds"), count) / np.float64(2**64)
    for chance in chances[1:]:
        far = torch.cdist(wide, wide[chosen]).min(1).values.square()
        total = far.cumsum(0)
        place = int(torch.searchsorted(total, total[-1] * float(chance), right=True))
        chosen.append(min(place, len(points) - 1))
    centres = wide[chosen]
    for _ in range(rounds):
        nearest = torch.cdist(wide, centres).argmin(1)
        counts = torch.bincount(nearest, minlength=count).clamp(min=1)[:, None]
        moved = torch.zeros_like(centres).index_add(0, nearest, wide) / counts
        empty = torch.bincount(nearest, minlength=count) == 0
        moved[empty] = centres[empty]
        if torch.equal(moved, centres):
            break
        centres = moved
    return centres.to(points.dtype)


def the(model: nn.Module, kind: type[Model], updater: str) -> Model:
    """The module of that kind in a model. Raises ModelError where there is none."""
    found = [module for module in model.modules() if isinstance(module, kind)]
    if not found:
        raise ModelError(
            f"{updater} trains the prompts of a {kind.__name__}, and the model has none",
            hint=f"let model_fn return luthier.tuning.{kind.__name__}(transformer, num_outputs)",
        )
    return found[0]


def _only(model: nn.Module, trained: Iterable[nn.Parameter]) -> None:
    model.requires_grad_(False)
    for parameter in trained:
        parameter.requires_grad_(True)
