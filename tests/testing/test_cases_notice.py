"""The cases are tests that can fail: a store that forgets and a door that drops are noticed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from luthier.errors import Problem, SpecError
from luthier.spec import JobSpec, parse_spec
from luthier.store.blobs import Store
from luthier.store.bundle import Bundle, write_bundle
from luthier.testing.doors import DoorCase, Word
from luthier.testing.stores import StoreCase


class Trusting(Store):
    """Gives out what it has without looking at it, and copies in place."""

    def blob(self, sha256: str) -> Path:
        return self.blobs / sha256

    def put_blob(self, file: Path) -> str:
        name = super().put_blob(file)
        (self.blobs / name).write_bytes(file.read_bytes())
        return name

    def artifact(self, id_or_prefix: str) -> Path:
        return self.artifacts / id_or_prefix

    def publish(self, bundle: Bundle, public: bool) -> str:
        write_bundle(self.artifacts / bundle.id, lambda folder: None, bundle.meta)
        return bundle.id


class TrustingCase(StoreCase):
    opens = "unused"


def test_a_store_that_verifies_nothing_fails(tmp_path: Path) -> None:
    case, store = TrustingCase(), Trusting(tmp_path / "store")
    (tmp_path / "file").write_bytes(b"rows")
    bundle = write_bundle(tmp_path / "b", lambda f: (f / "weights").write_bytes(b"1"), {"step": 3})  # type: ignore[arg-type,return-value]
    for failing in (
        lambda: case.test_a_changed_blob_is_refused_until_it_is_put_again(store, tmp_path / "file"),
        lambda: case.test_what_names_no_blob_is_not_found(store, tmp_path / "file", "0" * 64),
        lambda: case.test_publishing_twice_is_the_same_as_once(store, bundle),
    ):
        with pytest.raises((AssertionError, pytest.fail.Exception, OSError)):
            failing()


class Dropping(DoorCase):
    base = {"model": "m", "rows": "a.csv"}  # noqa: RUF012
    reaches = (Word("model", "n", "model.name"), Word("seed", 7, "training.seed"))

    def door(self, model: str, rows: str, seed: int = 42, **words: Any) -> JobSpec:  # type: ignore[override]
        return parse_spec({"model": {"name": model}, "data": {"train": {"uri": rows}}})


def test_a_door_that_drops_words_fails() -> None:
    case = Dropping()
    model, seed = case.reaches
    case.test_each_word_reaches_its_leaf(model)
    for failing in (
        lambda: case.test_each_word_reaches_its_leaf(seed),
        case.test_every_word_of_its_signature_is_accounted_for,  # rows is not
        lambda: case.test_a_misspelt_word_names_the_right_one("seed"),
        case.test_a_word_like_no_other_is_an_error,
        case.test_every_leaf_can_be_said,
    ):
        with pytest.raises((AssertionError, pytest.fail.Exception)):
            failing()


class Refusing(Dropping):
    refused = {"seed": (1, "chosen by the server")}  # noqa: RUF012
    reason = "chosen by the server"

    def door(self, **words: Any) -> JobSpec:  # type: ignore[override]
        raise SpecError([Problem("seed", self.reason)])


def test_a_refusal_must_give_its_reason() -> None:
    case = Refusing()
    case.test_each_refused_word_says_why()
    case.reason = "no"
    with pytest.raises(AssertionError):
        case.test_each_refused_word_says_why()
