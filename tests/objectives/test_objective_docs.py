"""The examples in the docstrings are true."""

from __future__ import annotations

import doctest
import importlib
import pkgutil

import pytest

import luthier.batches
import luthier.objectives

MODULES = [
    f"{package.__name__}.{found.name}"
    for package in (luthier.objectives, luthier.batches)
    for found in pkgutil.iter_modules(package.__path__)
]
LOSSES = {
    "multiple_negatives_ranking", "clip", "cosine_similarity", "cosent", "angle", "margin_mse",
    "matryoshka",
}  # fmt: skip


@pytest.mark.parametrize("name", MODULES)
def test_examples(name: str) -> None:
    ran = doctest.testmod(importlib.import_module(name))
    assert ran.failed == 0
    if name.rpartition(".")[2] in LOSSES:
        assert ran.attempted >= 2
