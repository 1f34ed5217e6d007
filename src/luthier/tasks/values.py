"""Single values of rows, checked: text, labels, words, tags, answers, conversations.

Each function gives the value as a task uses it, or raises ``Unfit`` with what is wrong; lists
may be written as text (JSON, or as Python writes them), which is how they stand in a CSV file.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Callable, Mapping
from typing import Any

from luthier.tasks.roles import RoleKind

Message = dict[str, Any]
_SPEAKERS = {"human": "user", "gpt": "assistant", "bot": "assistant", "model": "assistant"}


class Unfit(ValueError):
    """A value that its role cannot be. ``hint`` says what to do about it."""

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.message, self.hint = message, hint


def text(value: Any) -> str:
    """A text that is not empty."""
    if not isinstance(value, str):
        raise Unfit("the text is missing" if value is None else f"{_shown(value)} is not a text")
    if not value.strip():
        raise Unfit("the text is empty")
    return value


def label(value: Any) -> str:
    """A label as text: 1, 1.0 and "1" are the same label.

    >>> label(1.0), label(True), label("spam")
    ('1', 'true', 'spam')
    """
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    if isinstance(value, int):
        return str(value)
    if not isinstance(value, str):
        raise Unfit("the label is missing" if value is None else f"{_shown(value)} is not a label")
    if not value.strip():
        raise Unfit("the label is empty")
    return value


def labels(value: Any) -> list[str]:
    """Any number of labels: a list, or a text with commas between them; each once, in order."""
    if isinstance(value, str):
        listed = _list_in(value)
        value = listed if listed is not None else [v.strip() for v in value.split(",") if v.strip()]
    if not isinstance(value, list):
        raise Unfit(
            "the labels are missing" if value is None else f"{_shown(value)} is not a list",
            "a list of labels, [] where there are none",
        )
    return list(dict.fromkeys(label(item) for item in value))


def tokens(value: Any) -> list[str]:
    """Words: a list of them, or a text with spaces between them."""
    if isinstance(value, str):
        listed = _list_in(value)
        value = listed if listed is not None else value.split()
    if not isinstance(value, list):
        raise Unfit("the words are missing" if value is None else f"{_shown(value)} is not a list")
    if not value:
        raise Unfit("there are no words")
    for place, word in enumerate(value, 1):
        if not isinstance(word, str) or not word.strip():
            raise Unfit(f"word {place} is {_shown(word)}, not a text")
    return value


def tags(value: Any) -> list[str]:
    """A label for each word: a list, or a text with spaces between them."""
    if isinstance(value, str):
        listed = _list_in(value)
        value = listed if listed is not None else value.split()
    if not isinstance(value, list):
        raise Unfit("the tags are missing" if value is None else f"{_shown(value)} is not a list")
    return [label(item) for item in value]


def texts(value: Any) -> list[str]:
    """One text or a list of them."""
    if isinstance(value, str):
        listed = _list_in(value)
        value = listed if listed is not None else ([value] if value else [])
    if value is None:
        return []
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise Unfit(f"{_shown(value)} is neither a text nor a list of texts")
    return value


def numbers(value: Any) -> list[int]:
    """One whole number or a list of them."""
    if isinstance(value, str):
        listed = _list_in(value)
        value = listed if listed is not None else ([value] if value.strip() else [])
    if value is None:
        return []
    found = []
    for item in value if isinstance(value, list) else [value]:
        try:
            whole = int(item)
        except (TypeError, ValueError):
            whole = None
        if whole is None or isinstance(item, bool) or whole != float(item):
            raise Unfit(f"{_shown(item)} is not a whole number")
        found.append(whole)
    return found


def mapping(value: Any) -> dict[str, Any]:
    """An object, which may be written as text."""
    if isinstance(value, str):
        value = _written(value)
    if not isinstance(value, Mapping):
        raise Unfit(f"{_shown(value)} is not an object")
    return dict(value)


def messages(value: Any) -> list[Message]:
    """A conversation with at least one turn of the assistant.

    Turns are ``{"role", "content"}``; ``{"from": "human", "value"}`` is understood as well.
    """
    if isinstance(value, str):
        value = _written(value)
    if not isinstance(value, list) or not value:
        raise Unfit("there are no messages" if not value else f"{_shown(value)} is not a list")
    return [_message(item, place) for place, item in enumerate(value, 1)]


def conversation(value: Any) -> list[Message]:
    """Messages to learn from: the assistant speaks."""
    found = messages(value)
    if not any(message["role"] == "assistant" for message in found):
        raise Unfit("the assistant says nothing", 'a message with "role": "assistant" is learnt')
    return found


def _message(item: Any, place: int) -> Message:
    if not isinstance(item, Mapping):
        raise Unfit(f"message {place} is {_shown(item)}, not an object")
    known = {key: inner for key, inner in item.items() if inner is not None}
    if "role" not in known and "from" in known:
        speaker = str(known.pop("from"))
        known["role"] = _SPEAKERS.get(speaker, speaker)
        known["content"] = known.pop("value", None)
    if not isinstance(known.get("role"), str) or not known["role"]:
        raise Unfit(f"message {place} has no role")
    if not isinstance(known.get("content"), str) and "tool_calls" not in known:
        raise Unfit(f"message {place} has no content")
    return known


def _written(value: str) -> Any:
    """What a text writes, as JSON or as Python does; None for what is neither."""
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        pass
    try:
        return ast.literal_eval(value)
    except (ValueError, SyntaxError, MemoryError, RecursionError, TypeError):
        return None


def _list_in(value: str) -> list[Any] | None:
    if not value.lstrip().startswith("["):
        return None
    found = _written(value.strip())
    return found if isinstance(found, list) else None


def _shown(value: Any) -> str:
    return f"{value!r:.40}"


#: How the value of each kind of role is checked. An image is another matter (``images.py``).
PARSERS: dict[RoleKind, Callable[[Any], Any]] = {
    "text": text, "label": label, "labels": labels, "tokens": tokens, "tags": tags,
    "texts": texts, "numbers": numbers, "answers": mapping, "pair": mapping,
    "messages": messages,
}  # fmt: skip
