"""The command of a component: a template, read as a shell would, filled without a shell.

``$[[ … ]]`` is an optional part, ``${{inputs.x}}`` and ``${{outputs.y}}`` are values. The template
is cut into words first and the values are put in afterwards, so that nothing in a value (a space,
a quote, a ``$(…)``) can become more than the one word it stands in. What only a shell could do,
a pipe say, is refused.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from luthier.errors import Problem, SpecError

Side = Literal["inputs", "outputs"]

USE = re.compile(r"\$\{\{\s*(inputs|outputs)\.([\w.-]+?)\s*\}\}")
OPTIONAL = re.compile(r"(?<!\$)\$\[\[(.*?)\]\]", re.DOTALL)

#: What a shell would act on outside quotes, at the start of a word, and within double quotes.
_ACTS, _ACTS_FIRST, _ACTS_QUOTED = ";&|<>()$`*?[]{}\n", "~#", "$`"


@dataclass(frozen=True)
class Use:
    """A value that is to be put in."""

    side: Side
    name: str


#: A word of the command: text and values, one after the other.
Word = tuple["str | Use", ...]


def uses(template: str) -> Iterator[Use]:
    """Every value that a template speaks of, in order."""
    for side, name in USE.findall(template):
        yield Use(side, name)


def words(template: str, given: Collection[str]) -> list[Word]:
    """The words of a command when the inputs ``given`` have values.

    An optional part is dropped where an input in it has none. Raises SpecError for what only a
    shell could carry out, and for a quote that is left open.

    >>> words("run $[[--a '${{inputs.a}}']] $[[--b ${{inputs.b}}]]", {"a"})
    [('run',), ('--a',), (Use(side='inputs', name='a'),)]
    """

    def part(found: re.Match[str]) -> str:
        kept = all(use.side == "outputs" or use.name in given for use in uses(found[1]))
        return found[1] if kept else ""

    return _Reader(OPTIONAL.sub(part, template).strip()).words()


def fill(command: list[Word], values: Mapping[Use, str]) -> list[str]:
    """The words as a process gets them. Raises SpecError for a value that there is none of."""
    missing = [p for word in command for p in word if isinstance(p, Use) and p not in values]
    if missing:
        raise SpecError(
            [
                Problem("command", f"there is no value of {use.side}.{use.name}")
                for use in dict.fromkeys(missing)
            ]
        )
    return ["".join(p if isinstance(p, str) else values[p] for p in word) for word in command]


class _Reader:
    """Cuts a text into words by the quoting rules of a POSIX shell (2.2 Quoting)."""

    def __init__(self, text: str) -> None:
        self._text, self._at = text, 0
        self._quote = ""
        self._words: list[Word] = []
        self._word: list[str | Use] | None = None

    def words(self) -> list[Word]:
        while self._at < len(self._text):
            self._step()
        if self._quote:
            raise SpecError([Problem("command", f"a quote {self._quote} is left open")])
        self._close()
        return self._words

    def _step(self) -> None:
        found = USE.match(self._text, self._at)
        if found:
            self._add(Use("inputs" if found[1] == "inputs" else "outputs", found[2]))
            self._at = found.end()
            return
        sign = self._text[self._at]
        self._at += 1
        if self._quote == "'":
            self._quoted(sign)
        elif sign == "\\":
            self._escaped()
        elif self._quote:
            self._check(sign, _ACTS_QUOTED)
            self._quoted(sign)
        elif sign in "'\"":
            self._quote = sign
            self._add("")
        elif sign in " \t\r":
            self._close()
        else:
            self._check(sign, _ACTS if self._word is not None else _ACTS + _ACTS_FIRST)
            self._add(sign)

    def _quoted(self, sign: str) -> None:
        if sign == self._quote:
            self._quote = ""
        else:
            self._add(sign)

    def _escaped(self) -> None:
        after = self._text[self._at : self._at + 1]
        self._at += 1
        if self._quote and after not in ("$", "`", '"', "\\", "\n"):
            self._add("\\")
        if after != "\n":  # an escaped end of line is nothing
            self._add(after)

    def _check(self, sign: str, acts: str) -> None:
        if sign not in acts:
            return
        what = "a second line" if sign == "\n" else f"'{sign}'"
        message = f"{what} is for a shell, and none runs the command here"
        raise SpecError([Problem("command", message, "quote it, or call a script that does it")])

    def _add(self, piece: str | Use) -> None:
        word = self._word = [] if self._word is None else self._word
        if isinstance(piece, str) and word and isinstance(word[-1], str):
            word[-1] += piece
        elif piece or not word:
            word.append(piece)

    def _close(self) -> None:
        if self._word is not None:
            self._words.append(tuple(piece for piece in self._word if piece) or ("",))
        self._word = None
