"""The parts that columns play in a task, and the names by which they are found. No torch."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

#: What a value of a role is. text: not empty. label: a word, a number or a truth value.
#: labels: any number of them (a list, or a text with commas). tokens, tags: a list of words (or
#: a text that writes one). answers: ``{"text": […], "answer_start": […]}``. texts, numbers: one
#: or a list. messages: a list of ``{"role", "content"}``. pair: ``{language: text}``.
#: image: bytes, base64, a path, or ``{"bytes", "path"}``.
RoleKind = Literal[
    "text", "label", "labels", "tokens", "tags", "answers", "texts", "numbers", "messages",
    "pair", "image",
]  # fmt: skip


@dataclass(frozen=True)
class Role:
    """A column's part.

    names: columns that are taken for it, in order of preference. target: what is to be
    predicted, which rows to predict on need not have. required: whether rows to learn from must.
    """

    name: str
    kind: RoleKind
    names: tuple[str, ...] = ()
    required: bool = True
    target: bool = False


@dataclass(frozen=True)
class Metric:
    """A number that a score has, and which way is better."""

    name: str
    greater_is_better: bool = True


def plain(name: str) -> str:
    """A column's name as roles compare it.

    >>> plain("Sentence-A ")
    'sentence_a'
    """
    return re.sub(r"[\s\-.]+", "_", name.strip().lower())
