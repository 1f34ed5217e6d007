"""DoorCase: the law of every door, that no word is dropped in silence.

    class TestMyDoor(DoorCase):
        base = {"model": "bert-base-en", "rows": "train.csv"}
        reaches = (Word("rows", "other.csv", "data.train", becomes=Source(uri="other.csv")), …)

        def door(self, **words): ...  # → JobSpec

Each parameter of the door's signature reaches a leaf of the spec, is refused with a reason, or
is said to be beside the job; and each leaf of the spec can be said.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import pytest

from luthier.errors import SpecError
from luthier.spec import JobSpec, leaves

_ITSELF = object()


@dataclass(frozen=True)
class Word:
    """A word of a door, a value that is not its default, and the leaf that this must reach.

    becomes: the value of the leaf; default the word's own. beside: words that it needs as
    company. A word that reaches several leaves has several of these.
    """

    name: str
    value: Any
    leaf: str
    becomes: Any = _ITSELF
    beside: Mapping[str, Any] = field(default_factory=dict)


class DoorCase:
    """Subclass with ``door``, ``base`` and ``reaches``; the rest where there is such a thing."""

    #: The least that the door must be told.
    base: ClassVar[Mapping[str, Any]]
    #: What each word does.
    reaches: ClassVar[Sequence[Word]]
    #: Word → a value that the door refuses whatever stands beside it, and a pattern of the reason.
    refused: ClassVar[Mapping[str, tuple[Any, str]]] = {}
    #: Words that name the run and do not describe the job.
    beside: ClassVar[Sequence[str]] = ()
    #: Leaf → why this door has no word for it.
    unsaid: ClassVar[Mapping[str, str]] = {}

    def door(self, **words: Any) -> JobSpec:
        """The spec that these words make. Raises SpecError."""
        raise NotImplementedError

    def public(self) -> Callable[..., Any]:
        """The function whose signature users see."""
        return self.door

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        """One test for each word of the subclass."""
        if "word" in metafunc.fixturenames:
            ids = [f"{word.name}-{word.leaf}" for word in self.reaches]
            metafunc.parametrize("word", self.reaches, ids=ids)
        if "name" in metafunc.fixturenames:
            metafunc.parametrize("name", sorted(self._known()))

    def _known(self) -> set[str]:
        return {word.name for word in self.reaches} | {*self.refused, *self.beside}

    def _parameters(self) -> dict[str, inspect.Parameter]:
        """The parameters that have names."""
        found = inspect.signature(self.public()).parameters
        kinds = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
        return {name: p for name, p in found.items() if p.kind not in kinds}

    def _says(self, **words: Any) -> JobSpec:
        return self.door(**{**self.base, **words})

    def test_every_word_of_its_signature_is_accounted_for(self) -> None:
        assert set(self._parameters()) - self._known() == set()
        twice = ({w.name for w in self.reaches} & {*self.refused}) | (
            {*self.refused} & {*self.beside}
        )
        assert twice == set()

    def test_each_word_reaches_its_leaf(self, word: Word) -> None:
        spec = self._says(**word.beside, **{word.name: word.value})
        assert _leaf(spec, word.leaf) == (word.value if word.becomes is _ITSELF else word.becomes)
        without = self._says(**word.beside)
        assert spec.id != without.id, "a word that changes nothing is dropped"
        assert _leaf(without, word.leaf) != _leaf(spec, word.leaf)

    def test_each_refused_word_says_why(self) -> None:
        for name, (value, reason) in self.refused.items():
            with pytest.raises(SpecError, match=reason) as caught:
                self._says(**{name: value})
            assert name in str(caught.value)

    def test_a_misspelt_word_names_the_right_one(self, name: str) -> None:
        middle = len(name) // 2
        wrong = name[:middle] + name[middle] + name[middle:]
        with pytest.raises(SpecError, match=f"did you mean '{name}'") as caught:
            self._says(**{wrong: 1})
        assert wrong in str(caught.value)

    def test_a_word_like_no_other_is_an_error(self) -> None:
        with pytest.raises(SpecError, match="zzyzx"):
            self._says(zzyzx=1)

    def test_a_default_that_is_said_is_the_default(self) -> None:
        """Also those that are false: 0, no and nothing count."""
        defaults = {
            name: parameter.default
            for name, parameter in self._parameters().items()
            if parameter.default is not inspect.Parameter.empty and name not in self.beside
        }
        assert self.door(**{**defaults, **self.base}).id == self._says().id

    def test_every_leaf_can_be_said(self) -> None:
        paths, said = set(leaves().values()), {word.leaf for word in self.reaches}
        assert said - paths == set(), "there are no such leaves"
        assert paths - said - set(self.unsaid) == set()
        assert said & set(self.unsaid) == set()


def _leaf(spec: JobSpec, path: str) -> Any:
    value: Any = spec
    for part in path.split("."):
        value = getattr(value, part)
    return value
