"""What a served model takes and gives, a task a row: columns in, columns out, parameters.

Plain tables and JSON; neither torch nor MLflow is imported.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from luthier.errors import Problem, SpecError, nearest
from luthier.spec.processing import GENERATION, check_generation


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
    "token-classification": Served(("tokens",), {"tokens": _SENTENCE}),
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

#: Fields of ProcessingSpec, and what only serving has, that a served model acts on.
#: threshold: of a label's probability, with multi_label. unanswerable: a question may have no
#: answer in its context, which is then "". normalize: embeddings of length 1. device: a torch
#: device or auto. batch_size: rows at a time.
OPTIONS: dict[str, Any] = {
    "max_seq_length": None,
    "multi_label": False,
    "threshold": 0.5,
    "doc_stride": 128,
    "n_best_size": 20,
    "max_answer_length": 30,
    "unanswerable": False,
    "source_prefix": "",
    "source_lang": None,
    "target_lang": None,
    "generation": {},
    "normalize": False,
    "device": "auto",
    "batch_size": 8,
}

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


def checked(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options, those that are left out at their defaults. Raises SpecError."""
    problems = [
        Problem(f"options.{name}", "a served model has no such option", nearest(name, OPTIONS))
        for name in options
        if name not in OPTIONS
    ]
    try:
        check_generation(options.get("generation") or {})
    except ValueError as error:
        problems.append(Problem("options.generation", str(error)))
    if problems:
        raise SpecError(problems)
    return OPTIONS | dict(options)


def generation_defaults(model_folder: Path, given: Mapping[str, Any]) -> dict[str, Any]:
    """Every generation parameter: as given, else as the model's generation_config.json says,
    else as transformers does."""
    file = model_folder / "generation_config.json"
    config = json.loads(file.read_text("utf-8")) if file.is_file() else {}
    known = {name: config[name] for name in _GENERATION if _fits(name, config.get(name))}
    if "max_new_tokens" not in known and _fits("max_new_tokens", config.get("max_length")):
        known["max_new_tokens"] = config["max_length"]
    merged = _GENERATION | known | dict(given)
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
