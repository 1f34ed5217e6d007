"""Low-rank adapters for the time of an update; afterwards the weights are plain again."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from luthier.batches.arithmetic import derive
from luthier.errors import ModelError
from luthier.updaters.classes import last_linear
from luthier.updaters.updater import Part, Pupil, Seen, Term, Weights


@dataclass
class LowRank(Part):
    r"""An update trains adapters on the linear layers, and the last linear layer as it is.

    h = W x + alpha / r · B A x; at the end W ← W + alpha / r · B A, so that the published model
    has the state dict that it had. With orthogonality > 0

    term = orthogonality · Σ_layers Σ_i ‖A_i A^T‖², A_i those of the updates before

    Paper: Hu et al. 2021, LoRA, equation 3; Wang et al. 2023, Orthogonal Subspace Learning for
    Language Model Continual Learning (O-LoRA), equations 7 and 8.
    """

    changes_model: ClassVar[bool] = True
    r: int = 8
    alpha: float = 8.0
    dropout: float = 0.0
    orthogonality: float = 0.0
    seed: int = 0
    _before: dict[str, Tensor] = field(default_factory=dict, init=False)  # (rows of all A_i, in)

    def attach(self, model: nn.Module, updates: int) -> None:
        from peft import LoraConfig, inject_adapter_in_model

        head = last_linear(model)
        names = [n for n, m in model.named_modules() if type(m) is nn.Linear and m is not head]
        inside = {n for n, m in model.named_modules() if isinstance(m, nn.MultiheadAttention)}
        names = [n for n in names if n.rpartition(".")[0] not in inside]
        if not names:
            raise ModelError(
                "the model has no linear layer but its last: there is nothing to adapt",
                hint="use another updater",
            )
        config = LoraConfig(
            r=self.r,
            lora_alpha=self.alpha,
            lora_dropout=self.dropout,
            target_modules="|".join(map(re.escape, names)),
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(derive(self.seed, "lora", updates)) % 2**63)
            inject_adapter_in_model(config, model)
        for weight in head.parameters():
            weight.requires_grad_(True)

    def start(self, pupil: Pupil, past: dict[str, Any] | None = None) -> None:
        self._before = dict(past["before"]) if past else {}

    def terms(self, pupil: Pupil, new: Seen, replayed: Seen | None) -> Iterable[Term]:
        if not self.orthogonality or not self._before:
            return ()
        products = [
            (self._before[name].to(a) @ a.T).square().sum()
            for name, a in _downward(pupil.model)
            if name in self._before
        ]
        return (Term("orthogonality", self.orthogonality, torch.stack(products).sum()),)

    def detach(self, model: nn.Module) -> None:
        found = {name: a.detach().clone() for name, a in _downward(model)}
        if self.orthogonality:
            before = self._before
            self._before = {
                n: torch.cat([before[n].to(a), a]) if n in before else a for n, a in found.items()
            }
        for parent, name, layer in list(_layers(model)):
            layer.merge(safe_merge=True)
            setattr(parent, name, layer.get_base_layer())
        for weight in model.parameters():
            weight.requires_grad_(True)

    def plain(self, model: nn.Module, weights: Weights) -> Weights:
        found = {n.replace(".base_layer.", "."): t for n, t in weights.items() if ".lora_" not in n}
        names = {id(module): name for name, module in model.named_modules()}
        for _, _, layer in _layers(model):
            name = f"{names[id(layer)]}.weight"
            found[name] = found[name] + layer.get_delta_weight("default").detach()
        return found

    def state(self) -> dict[str, Any]:
        return {"before": self._before}

    def restore(self, state: dict[str, Any]) -> None:
        self._before = dict(state["before"])

    def hand_on(self) -> dict[str, Any]:
        return self.state()


def _layers(model: nn.Module) -> Iterator[tuple[nn.Module, str, Any]]:
    """Parent, name and module of each layer that has an adapter."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    for parent in model.modules():
        if isinstance(parent, BaseTunerLayer):
            continue
        for name, child in parent.named_children():
            if isinstance(child, BaseTunerLayer):
                yield parent, name, child


def _downward(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The name of each adapted layer, and its A (r, in)."""
    for name, module in model.named_modules():
        if hasattr(module, "lora_A") and "default" in module.lora_A:
            yield name, module.lora_A["default"].weight
