"""The door of clicks: Embedding Studio's parameters and settings become a JobSpec.

Pure functions: no torch, no I/O. What a parameter changes of the data (which sessions, how many
non-clicks) is a *variant* of the data, made before; which one is a choice of the search like any
other: it sets ``data.train``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from luthier.clicks.parameters import OF_DATA, FineTuningParams
from luthier.clicks.settings import EarlyStopping, FineTuningSettings
from luthier.doors.clicks_data import ClickData, Part, Variant
from luthier.doors.clicks_search import data_variants, point_of, read_params
from luthier.errors import NotFound, Problem, SpecError
from luthier.registry import Card, find
from luthier.spec import JobSpec, Source, parse_spec

__all__ = ["ClickData", "Part", "Variant", "clicks_spec", "data_variants", "params_of"]


def clicks_spec(
    model: str,
    params: FineTuningParams | Mapping[str, Any],
    settings: FineTuningSettings,
    data: ClickData,
    *,
    artifact: str | None = None,
    seed: int = 42,
    device: str = "auto",
    precision: str = "fp32",
    limit: int = 10,
    weighting: str | None = None,
    search: Mapping[str, Any] | None = None,
    initial: Sequence[Mapping[str, Any]] = (),
) -> JobSpec:
    """The job that parameters and settings describe.

    params: one set, or a name → choices, a range (``hp.*``, ``loguniform``, …) or a value: then it
    is a search, by TPE unless ``search`` (settings of ``SearchSpec`` by name) says another.
    weighting: of losses by pairs, "positive" where weights are inverse propensities of clicks.
    initial: sets of parameters that are tried first, those of earlier searches; what of them this
    space has not makes such a set be left out. Raises SpecError with every problem.
    """
    problems: list[Problem] = []
    space: dict[str, Any] = {}
    if isinstance(params, FineTuningParams):
        first = params
    else:
        space, first = read_params(params, settings, data, problems)
    base = _one(model, artifact, first, settings, data, problems)
    base["objective"] = _objective(first, settings, weighting, problems)
    base["callbacks"] = _callbacks(settings, data, limit, problems)
    base["training"] |= {"seed": seed, "device": device, "precision": precision}
    if space:
        found = {"algorithm": "tpe", "sampling_seed": seed, **dict(search or {})}
        points = [p for p in (point_of(each, space, params, data) for each in initial) if p]
        unique = [p for i, p in enumerate(points) if p not in points[:i]]
        base["search"] = {"space": space, "initial": unique, **found}
    elif (search or initial) and isinstance(params, FineTuningParams):
        hint = "give choices: {'query_lr': [1e-5, 1e-4], …}"
        problems.append(Problem("initial_params", "there is nothing to search", hint))
    try:
        spec = parse_spec(base)
    except SpecError as error:
        raise SpecError([*problems, *error.problems]) from None
    if problems:
        raise SpecError(problems)
    return spec


# --- one job ----------------------------------------------------------------------------------


def _one(
    model: str,
    artifact: str | None,
    params: FineTuningParams,
    settings: FineTuningSettings,
    data: ClickData,
    problems: list[Problem],
) -> dict[str, Any]:
    part = data.parts.get((params.not_irrelevant_only, params.negative_downsampling))
    if part is None:
        problems.append(Problem("negative_downsampling", "there are no data of this variant"))
        part = Part(Source(uri="missing"), 1)
    training: dict[str, Any] = {
        "optim": settings.optimizer,
        "optim_args": {"weight_decay": params.items_weight_decay},
        "learning_rate": params.items_lr,
        "query_learning_rate": params.query_lr,
        "query_weight_decay": params.query_weight_decay,
        "examples_order": _order(params),
        "num_train_epochs": settings.num_epochs,
        "per_device_train_batch_size": settings.batch_size,
        "gradient_accumulation_steps": settings.gradient_accumulation_steps,
        "eval_steps": settings.eval_steps(part.rows),
        **_schedule(settings),
    }
    return {
        "model": {
            "name": model,
            "artifact": artifact,
            "num_fixed_layers": params.num_fixed_layers,
            "towers": settings.towers,
        },
        "data": {"train": part.train, "eval": data.eval},
        "training": training,
    }


def _order(params: FineTuningParams) -> list[int]:
    """All examples from the first to the last step are no curriculum, and need no scores."""
    numbers = [int(kind) for kind in params.examples_order]
    return [] if set(numbers) == {11} else numbers


def _schedule(settings: FineTuningSettings) -> dict[str, Any]:
    if settings.step_size is None:
        return {}
    kwargs = {"step_size": settings.step_size, "gamma": settings.gamma}
    return {"lr_scheduler_type": "step", "lr_scheduler_kwargs": kwargs, "scheduler_step": "batch"}


def _objective(
    params: FineTuningParams,
    settings: FineTuningSettings,
    weighting: str | None,
    problems: list[Problem],
) -> dict[str, Any]:
    """The loss with what the parameters say of it; a word that the loss lacks is a problem."""
    loss = settings.loss_func
    try:
        card: Card | None = find("loss", loss.name)
    except NotFound as error:
        problems.append(Problem("loss_func", error.message, error.hint))
        card = None
    takes = {option.name for option in card.options} if card else set()
    options = dict(loss.options)
    if weighting is not None and "weighting" in takes:
        options.setdefault("weighting", weighting)
    if params.margin is not None:
        options["margin"] = params.margin
    if "similarity" in takes:
        options.setdefault("similarity", settings.ranker_name)
    elif settings.ranker_name != "cosine" and card:
        problems.append(Problem("ranker", f"{card.name} compares by its own similarity",
                                "leave it COSINE_SIMILARITY"))  # fmt: skip
    defaults = FineTuningParams.model_fields
    for name in ("min_abs_difference_threshold", "max_abs_difference_threshold"):
        value = getattr(params, name)
        if name in takes:
            options[name] = value
        elif value != defaults[name].default:
            options[name] = value  # the check below says that the loss lacks it
    if card is not None:
        for name in sorted(set(options) - takes):
            hint = f"{name}=None" if name == "margin" else f"it takes {', '.join(sorted(takes))}"
            problems.append(Problem(name, f"{card.name} has no {name}", hint))
            del options[name]
    return {"loss": loss.name, "loss_options": options}


def _callbacks(
    settings: FineTuningSettings, data: ClickData, limit: int, problems: list[Problem]
) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    if data.queries is not None:
        found.append({
            "kind": "evaluation", "query_data": data.queries, "index_data": data.index,
            "limit": limit, "distance": settings.ranker_name, "exclude_self": False,
        })  # fmt: skip
    if (calculated := data.calculated) is not None and calculated.calculators:
        found.append({
            "kind": "calculators", "calculators": calculated.calculators,
            "train_data": calculated.train, "test_data": calculated.test,
            "distance": settings.ranker_name,
        })  # fmt: skip
    stop = settings.early_stopping
    if stop is not None and _measured(stop, data, problems):
        found.append({"kind": "early_stopping", "monitor": stop.measured_as, "mode": stop.mode,
                      "patience": stop.patience, "min_delta": stop.min_delta})  # fmt: skip
    return found


def _measured(stop: EarlyStopping, data: ClickData, problems: list[Problem]) -> bool:
    """Whether something measures the monitor; where not, ``strict`` makes it a problem."""
    name = stop.measured_as
    names = data.calculated.names if data.calculated is not None else frozenset()
    there = {"train_loss": True, "val_loss": data.eval is not None}.get(name, name in names)
    if not name.startswith(("train_", "test_", "val_")):  # those are of losses and calculators
        there = there or data.queries is not None
    if not there and stop.strict:
        hint = "hold sessions out, or strict=False"
        if data.calculated is not None and name not in ("train_loss", "val_loss"):
            hint = f"calculators measure {', '.join(sorted(names)) or 'nothing'}"
            hint += "".join(f"; {kind}: {why}" for kind, why in data.calculated.left.items())
        problems.append(Problem("early_stopping.monitor", f"nothing measures '{name}'", hint))
    return there


def params_of(
    spec: JobSpec, parts: Mapping[str, Variant], otherwise: Mapping[str, Any]
) -> dict[str, Any]:
    """The parameters of a job that this door made: the inverse of ``clicks_spec``.

    parts: the URI of each variant's data. otherwise: what the job does not say.
    """
    training, options = spec.training, spec.objective.loss_options
    found: dict[str, Any] = {
        **otherwise,
        "num_fixed_layers": spec.model.num_fixed_layers,
        "query_lr": training.query_learning_rate or training.learning_rate,
        "items_lr": training.learning_rate,
        "query_weight_decay": training.query_weight_decay or 0.0,
        "items_weight_decay": training.optim_args.get("weight_decay", 0.0),
        "margin": options.get("margin"),
        "examples_order": list(training.examples_order) or [11],
    }
    for name in ("min_abs_difference_threshold", "max_abs_difference_threshold"):
        if name in options:
            found[name] = options[name]
    if spec.data.train.uri in parts:
        found |= dict(zip(OF_DATA, parts[spec.data.train.uri], strict=True))
    return found
