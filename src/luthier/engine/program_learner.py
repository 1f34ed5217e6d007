"""Learning with the model of a configuration file, plain or beside a memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.modules import activation

from luthier.batches.arithmetic import Rows
from luthier.engine.device import Device
from luthier.engine.items import Items, Stacked, stacked
from luthier.engine.program import moved
from luthier.engine.pupil import RowPupil
from luthier.errors import CorruptBundle, TrainingError
from luthier.models.depths import depths_of, layers_of
from luthier.updaters.classes import features_into, last_linear
from luthier.updaters.updater import Seen, among

#: The weights of a model, in its folder.
WEIGHTS = "model.safetensors"


class ProgramModel(nn.Module):
    """A module as the engine sees it."""

    adapter: Any = None
    execution = "padded"

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, inputs: Any) -> Any:
        return called(self.module, inputs)

    @property
    def layers(self) -> int:
        return layers_of(self.module)

    def depths(self) -> list[tuple[str, nn.Parameter, int]]:
        return depths_of(self, self.module)

    def save(self, folder: Path) -> None:
        """Write ``model.safetensors``: the state dict of the module, shared tensors twice."""
        folder.mkdir(parents=True, exist_ok=True)
        state = {n: t.detach().cpu().contiguous().clone() for n, t in self.state().items()}
        save_file(state, folder / WEIGHTS)

    def state(self) -> dict[str, Tensor]:
        """What is saved: the tensors of the state dict."""
        return {n: t for n, t in self.module.state_dict().items() if isinstance(t, Tensor)}

    def fits(self, folder: Path) -> bool:
        """Whether what is saved there has the names of this model's tensors."""
        with safe_open(folder / WEIGHTS, "pt") as saved:
            return set(saved.keys()) == set(self.state())

    def restore(self, folder: Path) -> None:
        """Read it back. Raises CorruptBundle where it is of another model."""
        saved = load_file(folder / WEIGHTS)
        try:
            self.module.load_state_dict(saved, strict=True)
        except RuntimeError as error:
            raise CorruptBundle(
                f"the state is of another model than model_fn makes: {error}",
                where=str(folder / WEIGHTS),
                hint="model_fn must build the architecture that the state was saved from",
            ) from error


def called(module: nn.Module, inputs: Any) -> Any:
    """A module's output for a tensor, a tuple (as arguments) or a mapping (as keywords)."""
    if isinstance(inputs, Mapping):
        return module(**inputs)
    if isinstance(inputs, tuple | list):
        return module(*inputs)
    return module(inputs)


class ProgramLearner(RowPupil):
    """A module and its loss on items; what the loop trains, and what updaters learn with."""

    def __init__(
        self,
        model: ProgramModel,
        items: Items,
        loss: Callable[[Any, Any], Tensor],
        device: Device,
        *,
        features: bool = False,
    ) -> None:
        self.model: Any = model
        self.items, self.device = items, device
        self.objective: nn.Module = loss if isinstance(loss, nn.Module) else nn.Module()
        self.counted(items.old, items.new)
        self._loss, self._features = loss, features

    # --- what the loop asks -------------------------------------------------------------------

    def fetch(self, rows: np.ndarray) -> Any:
        return self.items.batch(rows)

    def size(self, batch: Any) -> int:
        return len(batch[1])

    def backward(self, batch: Any, micro: int | None) -> float:
        seen = self.see(batch)
        loss = self.losses(seen).mean()
        self.device.backward(loss)
        return loss.item()

    def loss(self, batch: Any) -> float:
        with torch.no_grad():
            return self.losses(self.see(batch)).mean().item()

    def mode(self, training: bool) -> None:
        self.model.train(training)

    def modules(self) -> Iterable[nn.Module]:
        return self.model, self.objective

    # --- what an updater asks -----------------------------------------------------------------

    def see(self, batch: Any, model: nn.Module | None = None) -> Seen:
        inputs, targets = moved(batch[0], self.device.torch), moved(batch[1], self.device.torch)
        through = self.model if model is None else model
        with self.device.autocast():
            if not self._features:
                scores = _scores(through(inputs))
                return Seen((inputs, targets), scores, counts=_scored(scores, targets))
            with Watched(through) as caught:
                scores = _scores(through(inputs))
        return Seen((inputs, targets), scores, tuple(caught), counts=_scored(scores, targets))

    def losses(self, seen: Seen, allowed: Tensor | None = None) -> Tensor:
        loss = self._loss(among(seen.scores.float(), allowed), seen.batch[1])
        return loss.flatten(1).mean(1) if loss.dim() > 1 else loss

    def certainty(self, seen: Seen) -> Tensor:
        labels = self.labels(seen)
        if labels is None:  # of anything else: the smaller its loss
            return -self.losses(seen)
        return seen.scores.softmax(1).gather(1, labels[:, None])[:, 0]

    def labels(self, seen: Seen) -> Tensor | None:
        targets = seen.batch[1]
        whole = isinstance(targets, Tensor) and targets.dim() == 1
        return targets if whole and not targets.is_floating_point() else None

    # --- what an update asks ------------------------------------------------------------------

    def labels_of(self, rows: Rows) -> Rows | None:
        """The classes of rows without sending them through the model; None where they have none."""
        found = self.items.targets(rows)
        if not all(isinstance(y, int) and not isinstance(y, bool) for y in found):
            return None
        return np.array(found, dtype=np.int64)

    def bytes_of(self, rows: Rows) -> Rows:
        one = self.remember(rows[:1]).columns.values()  # they are all alike
        return np.full(len(rows), sum(column.nbytes for column in one), dtype=np.int64)

    def features_of(self, batch: Any) -> Tensor:
        """What goes into the last layer for these rows (n, d)."""
        with features_into(last_linear(self.model)) as caught:
            self.see(batch)
        return caught[-1]

    def remember(self, rows: Rows) -> Stacked:
        """The raw items of these rows."""
        return stacked(self.items.raw(rows))


class Watched:
    """Collects what the inner layers of a module give: those that it names itself
    (``intermediate_layers``), else the outermost children that have parameters, without the last,
    whose output is the scores; of one that an activation follows, what that makes of it."""

    def __init__(self, model: nn.Module) -> None:
        inner = model.module if isinstance(model, ProgramModel) else model
        named = getattr(inner, "intermediate_layers", None)
        layers = list(named()) if callable(named) else []
        self._layers, self._found = layers or _inner_layers(inner), list[Tensor]()

    def __enter__(self) -> list[Tensor]:
        def keep(_module: nn.Module, _given: Any, output: Any) -> None:
            if isinstance(output, Tensor):
                self._found.append(output)

        self._handles = [layer.register_forward_hook(keep) for layer in self._layers]
        return self._found

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()


def _inner_layers(module: nn.Module) -> list[nn.Module]:
    children = list(module.children())
    layers = [m for m in children if any(True for _ in m.parameters())]
    while len(layers) == 1 and len(list(layers[0].children())) > 0:
        children = list(layers[0].children())
        layers = [m for m in children if any(True for _ in m.parameters())]
    after = dict(pairwise(children))
    return [after[m] if _activates(after.get(m)) else m for m in layers[:-1]]


def _activates(module: nn.Module | None) -> bool:
    if module is None or any(True for _ in module.parameters()):
        return False
    return type(module).__name__ in activation.__all__


def _scored(scores: Tensor, targets: Any) -> Tensor | None:
    """Which tokens (n, t) have a target, of scores (n, t, v): all but -100, as torch ignores it."""
    words = isinstance(targets, Tensor) and not targets.is_floating_point()
    if scores.dim() != 3 or not words or targets.shape != scores.shape[:2]:
        return None
    scored: Tensor = targets != -100
    return scored


def _scores(output: Any) -> Tensor:
    scores = getattr(output, "logits", output)
    if not isinstance(scores, Tensor):
        raise TrainingError(
            f"the model gave {type(output).__name__}, not a tensor of scores",
            hint="return logits (rows, classes), or an object with .logits",
        )
    return scores
