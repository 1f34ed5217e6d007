"""A run's position, and how it is put into a bundle and taken out again, bit for bit.

Tensors go to ``state.safetensors``, all else to ``state.json``: nothing is pickled.
"""

from __future__ import annotations

import json
import random
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

OURS = "luthier"  # the folder inside a bundle that holds everything that is not the model

_DTYPES = {str(getattr(torch, name)): getattr(torch, name) for name in ("float32", "float64")}


@dataclass
class History:
    """What happened at each step and each evaluation, in order."""

    losses: list[float] = field(default_factory=list)
    learning_rates: list[float] = field(default_factory=list)
    evaluations: list[dict[str, Any]] = field(default_factory=list)


@dataclass
class Position:
    """Where a run is. ``step`` counts inside the epoch, ``done`` over the whole run.

    ``micro`` is the number of rows that go through the model at once; it halves when memory
    runs out. ``decisions`` is what the callbacks remember, by callback.
    """

    epoch: int = 0
    step: int = 0
    done: int = 0
    micro: int | None = None
    finished: bool = False
    seconds: float = 0.0  # spent in steps so far, over all attempts
    decisions: dict[str, Any] = field(default_factory=dict)


def flatten(tree: Any, tensors: dict[str, Tensor], name: str) -> Any:
    """Replace each tensor in a tree of dicts and lists by a reference into ``tensors``."""
    if isinstance(tree, Tensor):
        # A copy each: safetensors refuses tensors that share memory.
        tensors[name] = tree.detach().cpu().contiguous().clone()
        return {"__tensor__": name}
    if isinstance(tree, dict):
        items = [[k, flatten(v, tensors, f"{name}.{k}")] for k, v in tree.items()]
        return {"__dict__": items}
    if isinstance(tree, list | tuple):
        values = [flatten(v, tensors, f"{name}.{i}") for i, v in enumerate(tree)]
        return {"__tuple__": values} if isinstance(tree, tuple) else values
    if isinstance(tree, torch.dtype):
        return {"__dtype__": str(tree)}
    if tree is None or isinstance(tree, bool | int | float | str):
        return tree
    raise TypeError(f"cannot save {type(tree).__name__} at {name}")


def unflatten(tree: Any, tensors: dict[str, Tensor]) -> Any:
    """The inverse of ``flatten``."""
    if isinstance(tree, list):
        return [unflatten(value, tensors) for value in tree]
    if not isinstance(tree, dict):
        return tree
    if "__tensor__" in tree:
        return tensors[tree["__tensor__"]]
    if "__tuple__" in tree:
        return tuple(unflatten(value, tensors) for value in tree["__tuple__"])
    if "__dtype__" in tree:
        return _DTYPES[tree["__dtype__"]]
    return {key: unflatten(value, tensors) for key, value in tree["__dict__"]}


def aligned(file: Path) -> dict[str, Tensor]:
    """The tensors of a file, each where torch would have put it: in the file they begin anywhere,
    and sums of products round otherwise there (LBFGS went on in other last bits on an AMD)."""
    return {name: tensor.clone() for name, tensor in load_file(file).items()}


def random_states() -> dict[str, Any]:
    """The state of every random generator that a step may draw from."""
    version, numbers, gauss = random.getstate()
    legacy: Any = np.random.get_state(legacy=True)
    kind, keys, *rest = legacy
    states: dict[str, Any] = {
        "python": [version, list(numbers), gauss],
        "numpy": [str(kind), torch.from_numpy(keys.astype(np.int64)), *rest],
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        states["cuda"] = list(torch.cuda.get_rng_state_all())
    return states


def restore_random_states(states: dict[str, Any]) -> None:
    """The inverse of ``random_states``."""
    version, numbers, gauss = states["python"]
    random.setstate((version, tuple(numbers), gauss))
    kind, keys, position, has_gauss, cached = states["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), position, has_gauss, cached))
    torch.set_rng_state(states["torch"])
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(states["cuda"])


def seed_everything(seed: int) -> None:
    """Seed Python, numpy and torch."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def write_state(folder: Path, position: Position, history: History, parts: dict[str, Any]) -> None:
    """Write position, history, random states and ``parts`` (trees of tensors) into ``folder``."""
    tensors: dict[str, Tensor] = {}
    saved = {
        "position": asdict(position),
        "random": flatten(random_states(), tensors, "random"),
        "parts": {name: flatten(tree, tensors, name) for name, tree in parts.items()},
    }
    save_file(tensors, folder / "state.safetensors")
    (folder / "state.json").write_text(json.dumps(saved))
    (folder / "history.json").write_text(json.dumps(asdict(history)))


def read_state(folder: Path) -> tuple[Position, History, dict[str, Any], dict[str, Any]]:
    """Position, history, parts, and random states (restore those last, just before a step)."""
    tensors = aligned(folder / "state.safetensors")
    saved = json.loads((folder / "state.json").read_text())
    history = History(**json.loads((folder / "history.json").read_text()))
    parts = {name: unflatten(tree, tensors) for name, tree in saved["parts"].items()}
    return Position(**saved["position"]), history, parts, unflatten(saved["random"], tensors)
