"""What is wrong with an update, as far as it shows without torch."""

from __future__ import annotations

from typing import Any

from luthier.errors import NotFound, Problem
from luthier.registry import Card, find
from luthier.spec import AdapterSpec, JobSpec, ObjectiveSpec, ProcessingSpec, UpdateSpec
from luthier.updaters.merge_words import merge_problems

_CHOICES: dict[str, tuple[str, ...]] = {
    "offers": ("online", "end"),
    "distance": ("mse", "huber"),
    "distillation_type": ("spatial", "pixel", "channel", "width", "height", "gap"),
}
_SHARES = ("probability", "update_weight", "shrink_factor", "weight_new_data", "gamma", "dropout")
_POSITIVE = ("temperature", "loss_weight_new_data", "lora_r", "lora_alpha", "ridge")


def problems(spec: JobSpec) -> list[Problem]:
    """Everything that is wrong with the update of a job."""
    update = spec.update
    if update.updater is None:
        return []
    if spec.task != "program":
        message = f"updates are for the models of configuration files; this job is '{spec.task}'"
        return [Problem("updater", message, "use luthier.tuning.run_training_job")]
    try:
        card = find("updater", update.updater)
    except NotFound as error:
        return [Problem("updater", error.message, error.hint)]
    unknown = card.unknown_options(update.updater_options, "updater_options")
    merge = merge_problems(update, card)
    if spec.task != "program":
        merge += _program_only(card, update)
    return [*unknown, *_values(card, update), *_memory(card, update), *merge]


def _program_only(card: Card, update: UpdateSpec) -> list[Problem]:
    """What is for the models of configuration files."""
    found = []
    if card.facts.get("program"):
        message = f"{card.name} is for the models of configuration files"
        found.append(Problem("updater", message, "use DER, ER or another updater"))
    if update.merge != "none":
        message = "weights are merged for the models of configuration files only"
        found.append(Problem("merge", message, "leave it out"))
    return found


def program_problems(spec: JobSpec) -> list[Problem]:
    """What a job of a configuration file has that means nothing there."""
    found = []
    groups: tuple[tuple[str, Any, type[Any]], ...] = (
        ("adapter", spec.adapter, AdapterSpec),
        ("processing", spec.processing, ProcessingSpec),
        ("objective", spec.objective, ObjectiveSpec),
    )
    for name, group, kind in groups:
        if group != kind():
            message = "means nothing to the model of a configuration file"
            found.append(Problem(name, message, "say it in model_fn, data_module_fn or loss_fn"))
    if spec.program.config_file is None:
        found.append(Problem("config_file", "a program needs a configuration file"))
    return [*found, *problems(spec)]


def _values(card: Card, update: UpdateSpec) -> list[Problem]:
    found = []
    defaults = {option.name: option.default for option in card.options}
    for name, value in update.updater_options.items():
        if name not in defaults:
            continue
        message = _wrong(name, value, defaults[name])
        if message:
            found.append(Problem(f"updater_options.{name}", f"{message}, not {value!r:.60}"))
    return found


def _wrong(name: str, value: Any, default: Any) -> str | None:
    choices = next((c for key, c in _CHOICES.items() if name.endswith(key)), None)
    if choices is not None:
        return None if value in choices else f"is one of {', '.join(choices)}"
    if isinstance(default, bool):
        return None if isinstance(value, bool | int) and value in (0, 1) else "is true or false"
    if value is None and default is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        return "is a number"
    if name in _POSITIVE:
        if value <= 0:
            return "is more than 0"
    elif value < 0:
        return "is 0 or more"
    if any(word in name for word in _SHARES) and value > 1:
        return "is at most 1"
    if isinstance(default, int) and not isinstance(value, int):
        return "is a whole number"
    return None


def _memory(card: Card, update: UpdateSpec) -> list[Problem]:
    policy = card.facts["memory"]
    if policy is None and (update.memory or update.memory_batch_size):
        message = f"{card.name} remembers no rows"
        return [Problem("memory", message, "use ER or another updater that replays")]
    if policy == "herding" and update.memory not in (None, "herding"):
        return [Problem("memory", f"{card.name} takes exemplars by herding", "leave it out")]
    if policy is not None and policy != "infinite" and not update.memory_size:
        return [Problem("memory_size", f"{card.name} needs rows to remember", "give 1 or more")]
    return []
