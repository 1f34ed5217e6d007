"""More texts of one text: other cases, misspellings, one after the other. Which ones is a function
of the seed and the text, so the same on every machine and in every order."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from luthier.batches.arithmetic import derive, numbers, permutation
from luthier.clicks.splitters import Parts
from luthier.errors import DataError

#: The neighbours of each key of a QWERTY keyboard.
_ROWS = ("1234567890", "qwertyuiop", "asdfghjkl", "zxcvbnm")


def _neighbours() -> dict[str, str]:
    found: dict[str, str] = {}
    for y, row in enumerate(_ROWS):
        for x, key in enumerate(row):
            near = [(y, x - 1), (y, x + 1), (y - 1, x), (y - 1, x + 1), (y + 1, x - 1), (y + 1, x)]
            found[key] = "".join(
                _ROWS[b][a] for b, a in near if 0 <= b < len(_ROWS) and 0 <= a < len(_ROWS[b])
            )
    return found


_NEAR = _neighbours()


class Augmentation(Protocol):
    """Makes several texts of one; the first is the text itself unless it was not selected."""

    def transform(self, text: str) -> list[str]: ...


class _Selecting:
    """Keeps some of what was made: all at 1, a share below, so many above."""

    def __init__(self, selection_size: float = 1.0, seed: int = 0) -> None:
        if selection_size <= 0:
            raise DataError(f"selection_size is {selection_size}", hint="it is above 0")
        self.selection_size, self.seed = selection_size, seed

    def transform(self, text: str) -> list[str]:
        """The texts that are made of this one, without repetitions."""
        made = list(dict.fromkeys(self._made(text)))
        size = self.selection_size
        if size == 1 or size >= len(made):
            return made
        count = max(1, int(len(made) * size) if size < 1 else int(size))
        chosen = permutation(derive(type(self).__name__, self.seed, text), len(made))[:count]
        return [made[i] for i in sorted(chosen.tolist())]

    def _made(self, text: str) -> list[str]:
        raise NotImplementedError


class ChangeCases(_Selecting):
    """The text, in lower case, in upper case.

    >>> ChangeCases(5).transform("Red hat")
    ['Red hat', 'red hat', 'RED HAT']
    """

    def _made(self, text: str) -> list[str]:
        return [text, text.lower(), text.upper()]


class Misspellings(_Selecting):
    """The text, and a misspelt one for each error rate: the chance of a letter or digit to be
    mistyped, by a neighbour on the keyboard, left out, doubled, or swapped with the next."""

    def __init__(
        self, selection_size: float = 1.0, error_rates: Sequence[float] = (0.1, 0.2), seed: int = 0
    ) -> None:
        super().__init__(selection_size, seed)
        if not error_rates or not all(0 <= rate <= 1 for rate in error_rates):
            raise DataError(f"error_rates are {list(error_rates)}", hint="from 0 to 1")
        self.error_rates = tuple(error_rates)

    def _made(self, text: str) -> list[str]:
        return [text, *(misspelt(text, rate, self.seed) for rate in self.error_rates)]


def misspelt(text: str, error_rate: float, seed: int = 0) -> str:
    """A text with typing errors.

    >>> misspelt("comfortable", 0.0)
    'comfortable'
    """
    key = derive("misspelt", seed, error_rate, text)
    words = numbers(key, 2 * len(text)).reshape(2, -1) if text else np.zeros((2, 0), np.uint64)
    hit = words[0] < np.uint64(min(error_rate * 2.0**64, 2.0**64 - 2049))
    out: list[str] = []
    skip = False
    for place, letter in enumerate(text):
        if skip:
            skip = False
            continue
        near = _NEAR.get(letter.lower())
        if not hit[place] or near is None:
            out.append(letter)
            continue
        kind, which = divmod(int(words[1][place]), 4)[::-1]
        if kind == 0:
            typed = near[which % len(near)]
            out.append(typed.upper() if letter.isupper() else typed)
        elif kind == 2:
            out.append(letter * 2)
        elif kind == 3 and place + 1 < len(text):
            out += [text[place + 1], letter]
            skip = True
    return "".join(out) or text


class AugmentationsComposition(_Selecting):
    """Each on what the one before made.

    >>> AugmentationsComposition([ChangeCases(), ChangeCases()]).transform("a")
    ['a', 'A']
    """

    def __init__(
        self, augmentations: Sequence[Augmentation], selection_size: float = 1.0, seed: int = 0
    ) -> None:
        super().__init__(selection_size, seed)
        self.augmentations = tuple(augmentations)

    def _made(self, text: str) -> list[str]:
        texts = [text]
        for augmentation in self.augmentations:
            texts = [made for one in texts for made in augmentation.transform(one)]
        return texts


def augment_items(texts: Sequence[str], augmentation: Augmentation) -> Parts:
    """All items' texts, each with those that were made of it. For training; a test is of the
    items as they are."""
    made = [augmentation.transform(text) for text in texts]
    owner = np.repeat(np.arange(len(made)), [len(found) for found in made])
    return Parts([one for found in made for one in found], owner, len(made))
