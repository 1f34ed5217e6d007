"""The page about models says what the cards say."""

from __future__ import annotations

from pathlib import Path

from luthier.models.catalog import CARDS, list_model_options, list_models
from luthier.registry import find

PAGE = (Path(__file__).parents[2] / "docs" / "models.md").read_text(encoding="utf-8")


def test_every_model_has_its_row() -> None:
    rows = [line for line in PAGE.splitlines() if line.startswith("| `") and "/" in line]
    expected = []
    for name in list_models("text-to-text"):
        facts = find("model", name).facts
        size = f"{facts['params_millions']:g} M"
        cells = (f"`{name}`", str(facts["dim"]), size, facts["languages"], f"`{facts['hub_id']}`")
        expected.append(f"| {' | '.join(cells)} |")
        assert facts["license"] == "Apache-2.0"
    assert rows == expected


def test_every_option_and_pooler_is_explained() -> None:
    (options,) = list_model_options("bert-base-en").values()
    for option in options:
        assert f"| `{option['name']}` |" in PAGE
    poolers = ", ".join(f"`{card.name}`" for card in CARDS if card.kind == "pooler")
    assert f": {poolers}. None keeps" in PAGE
