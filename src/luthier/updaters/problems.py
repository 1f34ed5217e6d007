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
    "published": ("best", "working", "stable", "plastic"),
    "distillation_type": ("spatial", "pixel", "channel", "width", "height", "gap"),
}
#: Kinds of jobs whose rows have one score each: logits of classes, or vectors.
_WHOLE = ("embedding", "text-classification", "image-classification")
#: Those whose rows have scores of a vocabulary, or of the places of a context.
_WRITTEN = ("text-generation", "chat-completion", "summarization", "question-answering")
_SHARES = ("probability", "update_weight", "shrink_factor", "weight_new_data", "gamma", "dropout")
_POSITIVE = ("temperature", "loss_weight_new_data", "lora_r", "lora_alpha", "ridge")


def problems(spec: JobSpec) -> list[Problem]:
    """Everything that is wrong with the update of a job."""
    update = spec.update
    if update.updater is None:
        return _without_an_updater(spec)
    try:
        card = find("updater", update.updater)
    except NotFound as error:
        return [Problem("updater", error.message, error.hint)]
    unknown = card.unknown_options(update.updater_options, "updater_options")
    merge = merge_problems(update, card)
    if spec.task != "program":
        merge += _elsewhere(spec, card)
    return [*unknown, *_values(card, update), *_memory(card, update), *merge]


def _without_an_updater(spec: JobSpec) -> list[Problem]:
    if spec.data.probe is None:
        return []
    message = "a probe is scored before and after an update, and this job is none"
    return [Problem("data.probe", message, "give update=…, or evaluate on eval_data")]


def _elsewhere(spec: JobSpec, card: Card) -> list[Problem]:
    """What is not for encoders, or not for this task."""
    update, kind = spec.update, spec.task
    found = []
    several = spec.training.gradient_accumulation_steps > 1
    if several:
        message = "an update takes its steps whole"
        found.append(Problem("gradient_accumulation_steps", message, "give a larger batch_size"))
    if update.probe_budget is not None and spec.data.probe is None:
        message = "there is no probe to lose anything"
        found.append(Problem("probe_budget", message, "give probe_data"))
    reason = _unfit(spec, card)
    if reason:
        hint = "use ER" if kind not in _WHOLE else "use DER, ER or another updater"
        found.append(Problem("updater", f"{card.name} {reason}", hint))
    return found


def _unfit(spec: JobSpec, card: Card) -> str | None:
    """Why an updater is not for this job's rows."""
    if card.facts["program"]:
        return "is for the models of configuration files"
    if spec.task == "translation":
        return "would be judged row by row, and BLEU and chrF are of all rows together"
    classes = spec.task in _WHOLE and spec.task != "embedding" and not spec.processing.multi_label
    if card.facts["labels"] and not classes:
        return f"is for rows of one class each; this job is '{spec.task}'"
    written = card.facts["rows"] == "written" and spec.task in _WRITTEN
    if card.facts["rows"] and spec.task not in _WHOLE and not written:
        return f"compares the scores of whole rows, of which '{spec.task}' has none"
    return None


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
    if spec.data.probe is not None:
        message = "the probe of a configuration file is a function of it"
        found.append(Problem("data.probe", message, "define probe_data_fn"))
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
