"""What a task makes of rows: which columns it reads, how long texts may be, how it generates."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import Field, field_validator

from luthier.errors import nearest
from luthier.spec.options import Options
from luthier.spec.source import Frozen

#: What ``generation`` takes → (kind, least, whether the least itself is refused, most). The names
#: are those of transformers' GenerationConfig.
GENERATION: dict[str, tuple[type, float | None, bool, float | None]] = {
    "max_new_tokens": (int, 1, False, None),
    "min_new_tokens": (int, 0, False, None),
    "num_beams": (int, 1, False, None),
    "do_sample": (bool, None, False, None),
    "temperature": (float, 0, True, None),
    "top_k": (int, 0, False, None),
    "top_p": (float, 0, True, 1),
    "repetition_penalty": (float, 0, True, None),
    "length_penalty": (float, None, False, None),
    "no_repeat_ngram_size": (int, 0, False, None),
    "early_stopping": (bool, None, False, None),
}
_SAMPLING, _BEAMS = ("temperature", "top_k", "top_p"), ("length_penalty", "early_stopping")


class ProcessingSpec(Frozen):
    """How rows become what a model learns from, whatever the task.

    columns: role → name of the column, where the names do not tell; which roles there are, a
    task's card says (``luthier.tasks.cards``). max_seq_length: in tokens; None is the model's
    own limit. max_target_length: of what is to be generated, in tokens; None is
    ``max_seq_length``. pad_to_max_length: every row is padded to the limit instead of to the
    longest of its batch. multi_label: a text may have any number of labels.
    doc_stride: tokens that two windows over one context share, at most half a window. n_best_size,
    max_answer_length: how many spans are looked at, and how many tokens one may have.
    source_prefix: goes before every source text (T5). source_lang, target_lang: the codes that
    a multilingual translation model knows. generation: see ``GENERATION``.
    """

    columns: dict[str, str] = Field(default_factory=dict)
    max_seq_length: int | None = Field(default=None, ge=4)
    max_target_length: int | None = Field(default=None, ge=2)
    pad_to_max_length: bool = False
    multi_label: bool = False
    doc_stride: int = Field(default=128, ge=0)
    n_best_size: int = Field(default=20, ge=1)
    max_answer_length: int = Field(default=30, ge=1)
    source_prefix: str = ""
    source_lang: str | None = None
    target_lang: str | None = None
    generation: Options = Field(default_factory=dict)

    @field_validator("columns")
    @classmethod
    def _named(cls, columns: dict[str, str]) -> dict[str, str]:
        for role, column in columns.items():
            if not column:
                raise ValueError(f"the column of '{role}' has no name")
        return columns

    @field_validator("generation")
    @classmethod
    def _known(cls, generation: dict[str, Any]) -> dict[str, Any]:
        check_generation(generation)
        return generation


def check_generation(generation: Mapping[str, Any]) -> None:
    """Raises ValueError that names every option which is unknown or out of its range."""
    wrong = [_wrong(name, value) for name, value in generation.items()]
    if any(wrong):
        raise ValueError("; ".join(filter(None, wrong)))


def idle(generation: Mapping[str, Any]) -> list[str]:
    """Options that the others switch off: what a user wrote, but nothing would heed.

    >>> idle({"temperature": 0.5, "num_beams": 2, "length_penalty": 2.0})
    ['temperature means nothing without do_sample=true']
    """
    found = []
    if not generation.get("do_sample"):
        found += [f"{n} means nothing without do_sample=true" for n in _SAMPLING if n in generation]
    if generation.get("num_beams", 1) == 1:
        found += [f"{n} means nothing with num_beams=1" for n in _BEAMS if n in generation]
    return found


def _wrong(name: str, value: Any) -> str | None:
    if name not in GENERATION:
        hint = nearest(name, GENERATION) or f"known: {', '.join(GENERATION)}"
        return f"generation has no option '{name}' ({hint})"
    kind, least, open_end, most = GENERATION[name]
    number = isinstance(value, int | float) and not isinstance(value, bool)
    fits = isinstance(value, bool) if kind is bool else number
    if kind is int:
        fits = number and isinstance(value, int)
    if not fits:
        word = {int: "a whole number", float: "a number", bool: "true or false"}[kind]
        return f"generation.{name} is {word}, not {value!r:.40}"
    if least is not None and (value < least or (open_end and value == least)):
        return f"generation.{name} must be {'more than' if open_end else 'at least'} {least:g}"
    if most is not None and value > most:
        return f"generation.{name} must be at most {most:g}"
    return None
