"""What a served model takes and gives, a task a row: columns in, columns out, parameters.

Plain tables and JSON; neither torch nor MLflow is imported.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from luthier.errors import Problem, SpecError, nearest
from luthier.registry import find
from luthier.spec.processing import GENERATION, ProcessingSpec, check_generation


@dataclass(frozen=True)
class Served:
    """The columns of one task. inputs: of text; ``optional`` ones may be left out. sample: a
    row, for the example that MLflow keeps where none is given."""

    inputs: tuple[str, ...]
    sample: dict[str, str]
    outputs: tuple[str, ...] = ("prediction", "scores")
    optional: tuple[str, ...] = ()
    generates: bool = False


#: A white pixel, as PNG.
_PIXEL = (
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAIAAACQd1PeAAAADElEQVR4nGP4//8/AAX+Av4N70a4AAAAAElFTkSuQmCC"
)
_SENTENCE = "The cabin by the lake has a red roof."
_CHAT = '[{"role": "user", "content": "What is red?"}]'
_TEXT = ("prediction",)


#: Task → its columns. The columns that go in have the names of the task's roles. All hold text:
#: tokens: words between spaces, or a JSON list of them; messages: a JSON list of
#: ``{"role", "content"}``, or what the user says; image: base64 (bytes are taken as well).
#: prediction: the label, a JSON list (of labels or of tags), or the text. scores: JSON.
#: An embedding is a list of numbers.
SERVED: dict[str, Served] = {
    "text-classification": Served(
        ("sentence1", "sentence2"), {"sentence1": _SENTENCE}, optional=("sentence2",)
    ),
    "token-classification": Served(("tokens",), {"tokens": _SENTENCE}, _TEXT),
    "question-answering": Served(
        ("question", "context"), {"question": "What is red?", "context": _SENTENCE}
    ),
    "summarization": Served(("document",), {"document": _SENTENCE}, _TEXT, generates=True),
    "translation": Served(("source",), {"source": _SENTENCE}, _TEXT, generates=True),
    "text-generation": Served(("text",), {"text": "The cabin"}, _TEXT, generates=True),
    "chat-completion": Served(("messages",), {"messages": _CHAT}, _TEXT, generates=True),
    "image-classification": Served(("image",), {"image": _PIXEL}),
    "embedding": Served(("text",), {"text": _SENTENCE}, ("embedding",)),
}

#: What only a served model has. unanswerable: a question may have no answer in its context,
#: which is then "". normalize: embeddings of length 1. device: a torch device, or auto.
#: batch_size: rows at a time.
SERVING: dict[str, Any] = {"device": "auto", "batch_size": 8}
_OF_TASK: dict[str, dict[str, Any]] = {
    "question-answering": {"unanswerable": False},
    "embedding": {"normalize": False},
}
#: Fields of ProcessingSpec that mean nothing once the columns are those of the signature.
_NOT_SERVED = ("columns", "pad_to_max_length")


def options_of(task: str) -> dict[str, Any]:
    """What a served model of a task can be told, with the defaults: the fields of
    ProcessingSpec that the task uses, and those of ``SERVING``."""
    served(task)
    own = SERVING | _OF_TASK.get(task, {})
    if task == "embedding":
        return own
    used = [n for n in find("task", task).facts["processing"] if n not in _NOT_SERVED]
    defaults = ProcessingSpec().model_dump()
    return {name: defaults[name] for name in used} | own


#: What transformers' generate() does when told nothing; only the first is ours, its own is 20.
_GENERATION = {
    "max_new_tokens": 128,
    "min_new_tokens": 0,
    "num_beams": 1,
    "do_sample": False,
    "temperature": 1.0,
    "top_k": 50,
    "top_p": 1.0,
    "repetition_penalty": 1.0,
    "length_penalty": 1.0,
    "no_repeat_ngram_size": 0,
    "early_stopping": False,
}

_SAMPLING, _BEAMS = ("temperature", "top_k", "top_p"), ("length_penalty", "early_stopping")
_OFF_AT_ZERO = ("min_new_tokens", "no_repeat_ngram_size")


def served(task: str) -> Served:
    """The columns of a task. Raises SpecError with the nearest name."""
    if task not in SERVED:
        hint = nearest(task, SERVED) or f"known: {', '.join(SERVED)}"
        raise SpecError([Problem("task", f"no task '{task}' is served", hint)])
    return SERVED[task]


def checked(task: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """The options, those that are left out at their defaults. Raises SpecError."""
    known = options_of(task)
    problems = [
        Problem(
            f"options.{name}",
            f"a served model of {task} has no such option",
            nearest(name, known) or f"it has: {', '.join(known)}",
        )
        for name in options
        if name not in known
    ]
    given = {name: value for name, value in options.items() if name in known}
    try:
        ProcessingSpec(**{n: v for n, v in given.items() if n in ProcessingSpec.model_fields})
    except ValidationError as error:
        problems += [
            Problem(f"options.{'.'.join(map(str, item['loc']))}", str(item["msg"]))
            for item in error.errors(include_url=False)
        ]
    if problems:
        raise SpecError(problems)
    return known | given


def processing_words(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options that are fields of ProcessingSpec."""
    return {n: v for n, v in options.items() if n in ProcessingSpec.model_fields}


def generation_defaults(model_folder: Path, options: Mapping[str, Any]) -> dict[str, Any]:
    """Every generation parameter: as the options say (``max_target_length`` included), else as
    the model's generation_config.json does, else as transformers does."""
    given = dict(options.get("generation") or {})
    if options.get("max_target_length"):
        given.setdefault("max_new_tokens", options["max_target_length"])
    file = model_folder / "generation_config.json"
    config = json.loads(file.read_text("utf-8")) if file.is_file() else {}
    known = {name: config[name] for name in _GENERATION if _fits(name, config.get(name))}
    if "max_new_tokens" not in known and _fits("max_new_tokens", config.get("max_length")):
        known["max_new_tokens"] = config["max_length"]
    merged = _GENERATION | known | given
    return {name: type(_GENERATION[name])(value) for name, value in merged.items()}


def _fits(name: str, value: Any) -> bool:
    if value is None:
        return False
    try:
        check_generation({name: value})
    except ValueError:
        return False
    return True


def generation_words(params: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters as keywords of generate(): without those that the others switch off, of which
    transformers would complain. Raises SpecError for a value out of range."""
    words = {name: value for name, value in params.items() if name in GENERATION}
    try:
        check_generation(words)
    except ValueError as error:
        raise SpecError([Problem("params", str(error))]) from None
    off = [name for name in _OFF_AT_ZERO if not words.get(name)]
    if not words.get("do_sample"):
        off += _SAMPLING
    if words.get("num_beams", 1) == 1:
        off += _BEAMS
    return {name: value for name, value in words.items() if name not in off}
