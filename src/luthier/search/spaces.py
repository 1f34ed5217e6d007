"""Ranges that are worth searching where nobody says better: by loss, task and updater.

Learning rates span what the papers of BERT (Devlin et al. 2019, A.3: 2e-5 to 5e-5), Sentence-BERT
and LoRA (Hu et al. 2022, table 9) use, with room on both sides; the ranges of a loss lie around
the value of its paper, which ``luthier models losses`` tells.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from luthier.errors import NotFound, nearest
from luthier.registry import cards
from luthier.tuning.config_spaces import config_space as updater_space
from luthier.tuning.domains import Domain, choice, loguniform, uniform

Ranges = dict[str, Any]

WHOLE_MODEL: Ranges = {"learning_rate": loguniform(5e-6, 2e-4)}
HEAD: Ranges = {"learning_rate": loguniform(1e-4, 1e-1)}
ADAPTER: Ranges = {"learning_rate": loguniform(5e-5, 2e-3)}

_MARGIN: Ranges = {"loss_options.margin": uniform(0.01, 0.5)}
_SCALE: Ranges = {"loss_options.scale": loguniform(5.0, 100.0)}
#: What a loss is searched by beside the learning rate.
OF_LOSSES: dict[str, Ranges] = {
    "TripletMarginLoss": _MARGIN,
    "MarginLoss": {"loss_options.margin": uniform(0.05, 0.5)},
    "ContrastiveLoss": {"loss_options.neg_margin": uniform(0.2, 1.5)},
    "NTXentLoss": {"loss_options.temperature": loguniform(0.01, 0.5)},
    "SupConLoss": {"loss_options.temperature": loguniform(0.01, 0.5)},
    "ArcFaceLoss": {
        "loss_options.margin": uniform(10.0, 40.0),  # degrees
        "loss_options.scale": loguniform(8.0, 128.0),
    },
    "CosFaceLoss": {
        "loss_options.margin": uniform(0.1, 0.6),
        "loss_options.scale": loguniform(8.0, 128.0),
    },
    "MultipleNegativesRankingLoss": _SCALE,
    "CoSENTLoss": _SCALE,
    "AnglELoss": _SCALE,
}
_WARMUP: Ranges = {"warmup_ratio": choice([0.0, 0.06, 0.1])}
#: What a task is searched by beside the learning rate.
OF_TASKS: dict[str, Ranges] = {
    "embedding": {},
    "text-classification": {"label_smoothing_factor": choice([0.0, 0.1])},
    "token-classification": {},
    "question-answering": {},
    "summarization": {"label_smoothing_factor": choice([0.0, 0.1])},
    "translation": {"label_smoothing_factor": choice([0.0, 0.1])},
    "text-generation": {},
    "chat-completion": {},
    "image-classification": {"label_smoothing_factor": choice([0.0, 0.1])},
}


def config_space(name: str) -> Ranges:
    """Default ranges for a loss, a task or an updater: a new dict of words to ranges each time.

    Raises NotFound with the nearest name.

    >>> sorted(config_space("TripletMarginLoss"))
    ['learning_rate', 'loss_options.margin']
    """
    losses = [card.name for card in cards("loss")]
    if name in losses:
        return {**WHOLE_MODEL, **_taken(name)}
    if name in OF_TASKS:
        return {**WHOLE_MODEL, **OF_TASKS[name]}
    try:
        return updater_space(name)
    except NotFound:
        known = [*losses, *OF_TASKS, *(card.name for card in cards("updater"))]
        hint = nearest(name, known) or "a loss, a task or an updater"
        raise NotFound(f"nothing to search is called '{name}'", hint=hint) from None


def default_space(job: Mapping[str, Any]) -> dict[str, Domain]:
    """The ranges for a job that is told as data."""
    model, adapter = job.get("model") or {}, job.get("adapter") or {}
    objective, training = job.get("objective") or {}, job.get("training") or {}
    task = job.get("task") or "embedding"
    rates = HEAD if model.get("freeze") else ADAPTER if adapter.get("lora_r") else WHOLE_MODEL
    found = {**rates, **OF_TASKS.get(task, {})}
    if task == "embedding":
        found |= _taken(objective.get("loss") or "TripletMarginLoss")
    if training.get("lr_scheduler_type", "constant") != "constant":
        found |= _WARMUP
    return found


def _taken(loss: str) -> Ranges:
    """The ranges of a loss, of the options that its card has."""
    card = next((c for c in cards("loss") if c.name == loss), None)
    options = {option.name for option in card.options} if card else set()
    ranges = OF_LOSSES.get(loss, {})
    return {word: r for word, r in ranges.items() if word.partition(".")[2] in options}
