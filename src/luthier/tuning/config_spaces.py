"""Ranges for a search, and the default ranges of every updater. Imports no torch.

The words are Syne Tune's: ``uniform``, ``loguniform``, ``randint`` and ``lograndint`` (upper bounds
are included), ``choice``, ``ordinal``. Its own objects and Optuna's distributions are understood
as well (``as_domain``).
"""

from __future__ import annotations

import math
from typing import Any

from luthier.errors import NotFound, SpecError, nearest
from luthier.registry import cards
from luthier.tuning.domains import (
    Categorical,
    Domain,
    Float,
    Integer,
    Ordinal,
    choice,
    from_json,
    lograndint,
    loguniform,
    ordinal,
    randint,
    refused,
    to_json,
    uniform,
)

__all__ = [
    "Categorical",
    "Domain",
    "Float",
    "Integer",
    "Ordinal",
    "as_domain",
    "choice",
    "config_space",
    "from_json",
    "lograndint",
    "loguniform",
    "ordinal",
    "randint",
    "to_json",
    "uniform",
]

_LEARNER: dict[str, Any] = {
    "optimizer": "SGD",
    "momentum": choice([0.0, 0.9, 0.99]),
    "weight_decay": loguniform(1e-6, 1e-2),
    "learning_rate": loguniform(0.001, 0.5),
    "batch_size": 64,
    "max_epochs": 50,
}
_MEMORY: dict[str, Any] = {"memory_size": 1000}
_REPLAY: dict[str, Any] = {**_MEMORY, "batch_memory_frac": 0.5}
_ONE: dict[str, Any] = {"loss_normalization": False, "loss_weight": 1.0}
_POOLED: dict[str, Any] = {
    "alpha": loguniform(0.01, 10.0),
    "distillation_type": choice(["spatial", "pixel", "channel", "width", "height", "gap"]),
}
_SOFTENED: dict[str, Any] = {
    "alpha": loguniform(0.1, 10.0),
    "temperature": ordinal([1.0, 2.0, 4.0]),
}


def _grid(start: float, end: float, step: float) -> list[float]:
    return [round(start + step * i, 8) for i in range(round((end - start) / step) + 1)]


#: What each updater's space has besides ``_LEARNER``. ER, DER, Super-ER, Offline-ER and RD are as
#: Renate published them; ``ema_memory_update_gamma`` is only with those that note something. The
#: others keep those ranges of memory and optimizer, and search around the values of their papers.
_OWN: dict[str, dict[str, Any]] = {
    "FineTuning": {},
    "ER": {**_REPLAY, "alpha": 0.5, "loss_normalization": False, "loss_weight": 0.5},
    "ER-ACE": {**_REPLAY, "alpha": uniform(0.0, 1.0), **_ONE},
    "DER": {**_REPLAY, "alpha": uniform(0.0, 1.0), "beta": uniform(0.0, 1.0), **_ONE},
    "POD-ER": {**_REPLAY, **_POOLED, **_ONE},
    "CLS-ER": {
        **_REPLAY,
        "alpha": uniform(0.0, 1.0),
        "beta": choice(_grid(0, 1, 0.05)),
        "stable_model_update_weight": choice([0.99, 0.999]),
        "plastic_model_update_weight": choice([0.99, 0.999]),
        "stable_model_update_probability": uniform(0.01, 0.49),
        "plastic_model_update_probability": uniform(0.5, 1.0),
        **_ONE,
    },
    "Super-ER": {
        **_REPLAY,
        "der_alpha": uniform(0.0, 1.0),
        "der_beta": uniform(0.0, 1.0),
        "sp_shrink_factor": choice(_grid(0.3, 1, 0.1)),
        "sp_sigma": choice([0.0, 1e-5, 1e-4, 1e-3, 1e-2]),
        "cls_alpha": choice(_grid(0, 1, 0.05)),
        "cls_stable_model_update_weight": 0.999,
        "cls_plastic_model_update_weight": 0.999,
        "cls_stable_model_update_probability": uniform(0.01, 0.49),
        "cls_plastic_model_update_probability": uniform(0.5, 1.0),
        "loss_normalization": True,
        "ema_memory_update_gamma": uniform(0.95, 1.0),
    },
    "Offline-ER": {**_REPLAY, "loss_weight_new_data": choice([0.25, 0.5, 0.75])},
    "RD": _REPLAY,
    "GDumb": _MEMORY,
    "Joint": {},
    "EWC": {"ewc_lambda": loguniform(0.1, 1e4)},
    "LwF": _SOFTENED,
    "L2-SP": {"alpha": loguniform(1e-4, 1.0)},
    "iCaRL": {**_MEMORY, **_SOFTENED},
    "NCM": {},
    "RanPAC": {"projected": ordinal([0, 500, 2000, 10000])},
    "LoRA": {
        "lora_r": ordinal([4, 8, 16]),
        "lora_alpha": 8.0,
        "lora_dropout": choice([0.0, 0.1]),
        "orthogonality": choice([0.0, 0.5]),
    },
    "L2P": {"pull": choice([0.1, 0.5, 1.0])},
    "S-Prompt": {},
}


def _key(name: str) -> str:
    return name.replace("-", "").replace("_", "").lower()


def config_space(updater: str) -> dict[str, Any]:
    """The default ranges for an updater: values and ranges by name, a new dict each time.

    Capitals and hyphens do not count. An updater of a plugin gets the ranges of the optimizer,
    and of the memory where it has one. Raises NotFound.

    >>> config_space("ER")["learning_rate"]
    Float(lower=0.001, upper=0.5, log=True, step=None)
    """
    known = {_key(name): name for name in _OWN}
    name = known.get(_key(updater))
    if name is not None:
        return {**_LEARNER, **_OWN[name], "updater": name}
    others = {_key(card.name): card for card in cards("updater")}
    card = others.get(_key(updater))
    if card is None:
        names = sorted({*_OWN, *(card.name for card in others.values())})
        hint = nearest(updater, names) or f"known: {', '.join(names)}"
        raise NotFound(f"no updater is called '{updater}'", hint=hint)
    return {**_LEARNER, **(_MEMORY if card.facts.get("memory") else {}), "updater": card.name}


def as_domain(value: Any) -> Domain | None:
    """A range of ours for a range of ours, of Syne Tune's or of Optuna's; None for a fixed value.

    Raises SpecError for a range that cannot be expressed here, such as a normal distribution.
    """
    if isinstance(value, Float | Integer | Categorical):
        return value
    names = {kind.__name__ for kind in type(value).__mro__}
    module = type(value).__module__
    if module.startswith("ray."):
        raise refused(
            "this is a range of Ray Tune's, whose upper bounds are not included",
            "write luthier.tuning's uniform, loguniform, randint (upper bound included), choice",
        )
    if "BaseDistribution" in names:
        return _of_optuna(value)
    if "FiniteRange" in names:
        return Ordinal(tuple(_values_of(value)))
    if hasattr(value, "categories") and "Categorical" in names:
        kind = Ordinal if any(name.startswith("Ordinal") for name in names) else Categorical
        return kind(tuple(value.categories))
    if hasattr(value, "lower") and hasattr(value, "upper") and names & {"Float", "Integer"}:
        return _of_syne_tune(value, Integer if "Integer" in names else Float)
    if "Domain" in names or (hasattr(value, "get_sampler") and hasattr(value, "sample")):
        raise _unknown(type(value).__name__)
    return None


def _unknown(what: str) -> SpecError:
    return refused(
        f"a {what} is no range that can be searched here",
        "uniform, loguniform, randint, lograndint, choice, ordinal",
    )


def _of_syne_tune(value: Any, kind: type[Float] | type[Integer]) -> Domain:
    """A range of Syne Tune's, which says by the class of its sampler how it is drawn from."""
    sampler = value.get_sampler() if hasattr(value, "get_sampler") else value.sampler
    drawn = "Uniform" if sampler is None else type(sampler).__name__.lstrip("_")
    step = None
    if drawn == "Quantized" and type(sampler.sampler).__name__.lstrip("_") == "Uniform":
        step = sampler.q
        places = value.lower / step
        if abs(places - round(places)) < 1e-9:  # else they round to values outside of the range
            drawn = "Uniform"
    if drawn not in ("Uniform", "LogUniform"):
        raise _unknown(f"{type(value).__name__} drawn as {drawn}")
    more = {} if step is None else {"step": step}
    return kind(value.lower, value.upper, drawn == "LogUniform", **more)


def _values_of(value: Any) -> list[Any]:
    """Syne Tune's ``FiniteRange``: ``size`` values from lower to upper, evenly or by logarithm."""
    low, high = value.lower, value.upper
    if value.log_scale:
        low, high = math.log(low), math.log(high)
    steps = max(1, value.size - 1)
    found = [low + (high - low) * i / steps for i in range(value.size)]
    if value.log_scale:
        found = [min(max(math.exp(each), value.lower), value.upper) for each in found]
    return list(dict.fromkeys(map(round, found))) if value.cast_int else found


def _of_optuna(value: Any) -> Domain:
    name = type(value).__name__
    if name == "CategoricalDistribution":
        return Categorical(tuple(value.choices))
    if name.startswith("Int"):
        return Integer(value.low, value.high, bool(value.log), value.step or 1)
    if hasattr(value, "low") and hasattr(value, "high"):
        return Float(value.low, value.high, bool(value.log), value.step)
    raise _unknown(name)
