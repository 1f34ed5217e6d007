"""Measure pytorch-metric-learning and write what is true of it to objectives/pml.json.

    python scripts/generate_pml_cards.py            write the file
    python scripts/generate_pml_cards.py --check    exit 1 when the file is out of date

Nothing here is guessed from documentation: an option is listed when the constructor takes
it, a distance, a reducer or explicit tuples when a loss computes a finite value with them.
"""

from __future__ import annotations

import argparse
import inspect
import json
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytorch_metric_learning as pml
import torch
from pytorch_metric_learning import distances, losses, miners, reducers

from luthier.objectives import repairs
from luthier.objectives.papers import DISTANCES, LOSSES, MINERS, REDUCERS

FILE = Path(__file__).parents[1] / "src" / "luthier" / "objectives" / "pml.json"

DIM, CLASSES = 8, 4
LABELS = torch.tensor([0, 0, 1, 1, 2, 2, 3, 3])
#: Constructor parameters that we fill in, and what with.
FILLED = {
    "num_classes": "num_classes",
    "embedding_size": "dim",
    "descriptors_dim": "dim",
    "l": "dim",
}
VALUES = {"num_classes": CLASSES, "dim": DIM}
#: Parameters that are Python objects, not data, and their satellites.
OBJECTS = {
    "embedding_regularizer", "embedding_reg_weight", "weight_regularizer", "weight_reg_weight",
    "weight_init_func", "collect_stats", "distance", "reducer", "aggregation_func",
    "is_inverted",  # what a distance is, not a choice
}  # fmt: skip
#: A value for parameters that have no default.
REQUIRED = {
    "RankedListLoss": {"margin": 0.4, "Tn": 1},
    "ClassWeightedReducer": {"weights": [1.0] * 4},
}
#: Facts that a finite value does not show: histogram bins span cosines, not distances.
KNOWN = {"HistogramLoss": {"distances": ["CosineSimilarity", "DotProductSimilarity"]}}
#: Given so that the constructor is content where all options default to None.
CONTENT = {"ThresholdReducer": {"low": 0}}


def parameters(cls: type) -> Iterator[inspect.Parameter]:
    """Parameters of all constructors in the method resolution order, nearest first."""
    seen: set[str] = {"self"}
    for base in cls.__mro__:
        if "__init__" not in base.__dict__ or base is torch.nn.Module:
            continue
        for parameter in inspect.signature(base.__init__).parameters.values():
            named = parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL)
            if named and parameter.name not in seen:
                seen.add(parameter.name)
                yield parameter


def works(action: Callable[[], Any]) -> bool:
    """Whether the action raises nothing, and its value, if a tensor, is finite with gradients."""
    try:
        value = action()
        if isinstance(value, torch.Tensor) and value.requires_grad:
            value.backward()
    except (TypeError, ValueError, AssertionError, KeyError, NotImplementedError, RuntimeError):
        return False
    if not isinstance(value, torch.Tensor):
        return True
    return bool(torch.isfinite(value).all()) and value.requires_grad


def plain(value: Any) -> bool:
    return value is None or isinstance(value, bool | int | float | str)


def tensors(weights: Any) -> Any:
    return torch.tensor(weights) if isinstance(weights, list) else weights


def describe(cls: type) -> tuple[dict[str, Any], dict[str, Any]]:
    """(the card's entry, keyword arguments that construct the class)."""
    base: dict[str, Any] = {}
    fills, options, required = {}, {}, []
    given = REQUIRED.get(cls.__name__, {})
    for parameter in parameters(cls):
        name = parameter.name
        if name in OBJECTS:
            continue
        if name in FILLED and parameter.default is inspect.Parameter.empty:
            fills[name] = FILLED[name]
            base[name] = VALUES[FILLED[name]]
        elif name in given:
            required.append(name)
            base[name] = tensors(given[name])
    for parameter in parameters(cls):
        name, default = parameter.name, parameter.default
        if name in OBJECTS or name in base or not plain(default):
            continue
        if works(lambda name=name, default=default: cls(**base, **{name: default})) or (
            cls.__name__ in CONTENT and works(lambda name=name: cls(**base, **{name: 1}))
        ):
            options[name] = default
    entry: dict[str, Any] = {"options": options}
    if required:
        entry["required"] = required
    if fills:
        entry["fills"] = fills
    return entry, base | CONTENT.get(cls.__name__, {})


def embeddings() -> torch.Tensor:
    generator = torch.Generator().manual_seed(7)
    return torch.randn(len(LABELS), DIM, generator=generator, requires_grad=True)


def pair_tuple(count: int) -> tuple[torch.Tensor, ...]:
    rows = torch.arange(count)
    return rows, rows + 4, rows, (rows + 1) % 4 + 4


def measure_loss(cls: type) -> dict[str, Any]:
    """Options, what it learns, and with what it composes."""
    entry, base = describe(cls)

    def value(labels: torch.Tensor | None, indices: Any = None, **composed: Any) -> torch.Tensor:
        torch.manual_seed(0)
        return cls(**base, **composed)(embeddings(), labels, indices)

    entry["learns"] = bool(list(cls(**base).parameters()))
    if not works(lambda: value(LABELS)):  # VICReg compares rows; labels mean nothing to it
        assert works(lambda: cls(**base)(embeddings(), ref_emb=embeddings() * 1.1)), cls
        return entry | {"works_on": "rows"}
    entry["works_on"] = "labels"

    def uses_tuples(labels: torch.Tensor | None) -> bool:
        """Whether they are taken, and make a difference."""
        every, some = pair_tuple(4), pair_tuple(2)
        both = works(lambda: value(labels, every)) and works(lambda: value(labels, some))
        return both and value(labels, every).item() != value(labels, some).item()

    entry["takes_miner"] = uses_tuples(LABELS)
    entry["takes_tuples"] = uses_tuples(None)
    entry["distance"] = type(cls(**base).distance).__name__
    found = {
        name: lambda n=name: value(LABELS, distance=getattr(distances, n)()) for name in DISTANCES
    }
    fits = [name for name, compute in found.items() if works(compute)]
    # a loss whose value is the same at every distance does not use it (P2SGrad)
    ignored = len(fits) > 1 and len({found[name]().item() for name in fits}) == 1
    entry["distances"] = [] if ignored else fits
    # a loss that reduces itself ignores the reducer: the sum of its items equals their mean
    if value(LABELS, reducer=reducer("SumReducer")) != value(
        LABELS, reducer=reducer("MeanReducer")
    ):
        entry["reducers"] = [
            name for name in REDUCERS if works(lambda n=name: value(LABELS, reducer=reducer(n)))
        ]
    return entry | KNOWN.get(cls.__name__, {})


def measure_miner(cls: type) -> dict[str, Any]:
    entry, base = describe(cls)
    entry["distance"] = type(cls(**base).distance).__name__
    entry["distances"] = [
        name
        for name in DISTANCES
        if works(
            lambda n=name: (
                cls(**base, distance=getattr(distances, n)())(embeddings(), LABELS) and None
            )
        )
    ]
    return entry


def reducer(name: str) -> Any:
    cls = getattr(reducers, name)
    return cls(**describe(cls)[1])


def measured() -> dict[str, Any]:
    """The whole file."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # probing walks into every corner on purpose
        return {
            "version": pml.__version__,
            "losses": {
                n: measure_loss(getattr(repairs, n, None) or getattr(losses, n)) for n in LOSSES
            },
            "miners": {n: measure_miner(getattr(miners, n)) for n in MINERS},
            "distances": {n: describe(getattr(distances, n))[0] for n in DISTANCES},
            "reducers": {n: describe(getattr(reducers, n))[0] for n in REDUCERS},
        }


def text() -> str:
    return json.dumps(measured(), indent=1) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true")
    new = text()
    if parser.parse_args().check:
        return int(FILE.read_text() != new)
    FILE.write_text(new)
    return 0


if __name__ == "__main__":
    sys.exit(main())
