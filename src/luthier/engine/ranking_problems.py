"""Words of rankings in a job: where they mean nothing, and what does not go with them. Imports no
torch."""

from __future__ import annotations

from luthier.errors import NotFound, Problem
from luthier.registry import find
from luthier.spec import CalculatorCallback, JobSpec

_ONLY = "is for rankings"


def problems(spec: JobSpec, form: str | None) -> list[Problem]:
    """What is wrong, for data of ``form`` (None: not known yet)."""
    if form == "rankings" and spec.task == "embedding":
        return [*_beside_rankings(spec), *_rates(spec)]
    known = form is not None or spec.task != "embedding"
    return [*_beside_others(spec), *_rates(spec)] if known else _rates(spec)


def _beside_others(spec: JobSpec) -> list[Problem]:
    hint = "give rows with query, items and relevance, or leave it out"
    training = spec.training
    given = {
        "model.towers": spec.model.towers == "two",
        "training.query_learning_rate": training.query_learning_rate is not None,
        "training.query_weight_decay": training.query_weight_decay is not None,
        "training.examples_order": bool(training.examples_order),
        "callbacks.calculators": any(isinstance(c, CalculatorCallback) for c in spec.callbacks),
    }
    return [Problem(field, _ONLY, hint) for field, there in given.items() if there]


def _beside_rankings(spec: JobSpec) -> list[Problem]:
    found = _calculators(spec)
    if spec.update.updater is not None:
        message = "searches are not remembered: no updater learns on with rankings"
        hint = "train on the new searches from the last artifact (model_artifact)"
        found.append(Problem("update.updater", message, hint))
    if spec.training.sampler == "class":
        message = "searches have no classes"
        found.append(Problem("training.sampler", message, "use sampler='auto'"))
    if spec.model.towers == "two":
        if spec.adapter.lora_r is not None:
            message = "adapters are for one encoder, and there are two towers"
            found.append(Problem("adapter.lora_r", message, "use num_fixed_layers, or one tower"))
        if spec.output.to_onnx:
            message = "one graph holds one encoder, and there are two towers"
            found.append(Problem("output.to_onnx", message, "leave it out, or use one tower"))
    return found


def _calculators(spec: JobSpec) -> list[Problem]:
    """Of each callback of calculators: what they are to work on, and whether there are such."""
    found = []
    for number, callback in enumerate(spec.callbacks):
        if not isinstance(callback, CalculatorCallback):
            continue
        if callback.train_data is None and callback.test_data is None:
            message = "there are no searches to score: train_data, test_data or both"
            hint = "rankings: query, items, relevance"
            found.append(Problem(f"callbacks.{number}", message, hint))
        for each in callback.calculators:
            if each.code is not None:
                continue
            try:
                find("calculator", each.name)
            except NotFound as error:
                field = f"callbacks.{number}.calculators"
                found.append(Problem(field, error.message, error.hint))
    return found


def _rates(spec: JobSpec) -> list[Problem]:
    """What an optimizer can do of two rates and decays."""
    training, name = spec.training, spec.training.optim
    rate, decay = training.query_learning_rate, training.query_weight_decay
    try:
        takes = {option.name for option in find("optimizer", name).options}
    except NotFound:
        return []  # told elsewhere
    found = []
    if decay is not None and "weight_decay" not in takes:
        message = f"{name} has no weight decay"
        found.append(Problem("training.query_weight_decay", message, "use Adam or AdamW"))
    if spec.model.towers == "two" and name in ("LBFGS", "SparseAdam"):
        message = f"{name} has one group of parameters, and two towers have two"
        found.append(Problem("training.optim", message, "use Adam"))
    if spec.model.towers == "shared" and rate is not None and name == "LBFGS":
        message = "LBFGS follows the gradient of the loss, not of its sides"
        found.append(Problem("training.query_learning_rate", message, "use Adam"))
    return found
