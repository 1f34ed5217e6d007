"""Long items cut into parts that a model can read, and what the parts earned put back together."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from luthier.clicks.sessions import Ints
from luthier.errors import DataError

#: Text → parts.
Splitter = Callable[[str], list[str]]

_CODE = re.compile(r"```.*?```", re.DOTALL)
#: Behind a full stop and its kin, with what closes the sentence; of Chinese and Japanese too.
_SENTENCE = re.compile(r"(?<=[.!?…])[\"')\]»”]*\s+|(?<=[。！？])")
_LIST_ITEM = re.compile(r"^\d+\.\s")


class NoSplitter:
    """One part: the text."""

    def __call__(self, text: str) -> list[str]:
        return [text]


class SeparatorSplitter:
    """Parts between separators, which are tried one after the other; empty parts are no parts.

    >>> SeparatorSplitter([";", ","])("a, b; c;")
    ['a', 'b', 'c']
    """

    def __init__(self, separators: Sequence[str] = (";",)) -> None:
        if not separators or not all(separators):
            raise DataError("a separator is a text that is not empty")
        self.separators = tuple(separators)

    def __call__(self, text: str) -> list[str]:
        parts = [text]
        for separator in self.separators:
            parts = [piece for part in parts for piece in part.split(separator)]
        return [part.strip() for part in parts if part.strip()] or [text]


class DummySentenceSplitter:
    """Sentences by their full stops; blocks of code between ``` and items of numbered lists stay
    whole."""

    def __call__(self, text: str) -> list[str]:
        parts: list[str] = []
        last = 0
        for code in _CODE.finditer(text):
            parts += self._sentences(text[last : code.start()])
            parts.append(code[0])
            last = code.end()
        return parts + self._sentences(text[last:]) or [text]

    def _sentences(self, text: str) -> list[str]:
        parts = []
        for line in text.split("\n"):
            pieces = [line] if _LIST_ITEM.match(line) else _SENTENCE.split(line)
            parts += [piece.strip() for piece in pieces if piece.strip()]
        return parts


class Tokenizer(Protocol):
    """What is asked of a tokenizer; those of transformers do it."""

    model_max_length: int

    def tokenize(self, text: str) -> list[Any]: ...


class TokenGroupTextSplitter:
    """Blocks joined with spaces to parts as long as may be, none above ``max_tokens``.

    tokenizer: the model's. blocks_splitter: makes the blocks. max_tokens: default what the
    tokenizer's model takes, less the tokens that it adds itself. split_sentences: cut a block
    that is too long alone, by words, and a word that is, by characters; False leaves it whole.
    """

    def __init__(
        self, tokenizer: Tokenizer, blocks_splitter: Splitter, max_tokens: int | None = None,
        split_sentences: bool = True,
    ) -> None:  # fmt: skip
        if max_tokens is None:
            added = getattr(tokenizer, "num_special_tokens_to_add", lambda: 0)()
            max_tokens = tokenizer.model_max_length - added
        if max_tokens < 1:
            raise DataError(f"max_tokens is {max_tokens}", hint="a whole number from 1 on")
        self.tokenizer, self.blocks_splitter = tokenizer, blocks_splitter
        self.max_tokens, self.split_sentences = max_tokens, split_sentences

    def __call__(self, text: str) -> list[str]:
        return self._joined(self.blocks_splitter(text), self._cut_block) or [text]

    def _fits(self, text: str) -> bool:
        return len(self.tokenizer.tokenize(text)) <= self.max_tokens

    def _joined(self, blocks: Sequence[str], cut: Callable[[str], list[str]]) -> list[str]:
        """Blocks in as few parts as a greedy pass finds; those that do not fit alone are cut."""
        parts: list[str] = []
        part = ""
        for block in blocks:
            longer = f"{part} {block}" if part else block
            if self._fits(longer):
                part = longer
                continue
            if part:
                parts.append(part)
            part = block
            if not self._fits(block):
                *done, part = cut(block)
                parts += done
        return [*parts, part] if part else parts

    def _cut_block(self, block: str) -> list[str]:
        if not self.split_sentences:
            return [block]
        return self._joined(block.split(), self._cut_word) or [block]

    def _cut_word(self, word: str) -> list[str]:
        """Halves of halves, until they fit or are one character."""
        if len(word) < 2 or self._fits(word):
            return [word]
        middle = len(word) // 2
        return self._cut_word(word[:middle]) + self._cut_word(word[middle:])


@dataclass(frozen=True)
class Parts:
    """Texts, and of which item each is: texts [p], owner int64 [p], ascending."""

    texts: list[str]
    owner: Ints
    items: int


def split_items(texts: Sequence[str], splitter: Splitter) -> Parts:
    """All items' parts. Every item has one at least."""
    parts = [splitter(text) or [text] for text in texts]
    owner = np.repeat(np.arange(len(parts)), [len(found) for found in parts])
    return Parts([piece for found in parts for piece in found], owner, len(parts))


def aggregate(values: Any, parts: Parts, how: str = "mean") -> Any:
    """What parts earned, as what their items did: mean, max or min.

    values: float [p] or [p, d] of the parts → [items] or [items, d]. A click on a part is one
    on its item: "max". Raises DataError.
    """
    if len(values) != len(parts.owner):
        raise DataError(f"{len(values)} values of {len(parts.owner)} parts")
    if not parts.items:
        return np.zeros((0, *np.shape(values)[1:]))
    starts = np.searchsorted(parts.owner, np.arange(parts.items))
    ufuncs: dict[str, np.ufunc] = {"mean": np.add, "max": np.maximum, "min": np.minimum}
    if how not in ufuncs:
        raise DataError(f"no aggregation is called '{how}'", hint="mean, max or min")
    found = ufuncs[how].reduceat(np.asarray(values, np.float64), starts, axis=0)
    if how == "mean":
        counts = np.bincount(parts.owner, minlength=parts.items)
        found = found / counts.reshape(-1, *[1] * (found.ndim - 1))
    return found
