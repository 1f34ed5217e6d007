"""Every updater can be built by its name, with the options of its card and no others."""

import inspect
from pathlib import Path

import pytest

from luthier.registry import cards
from luthier.updaters.build import build_memory, build_updater
from luthier.updaters.memory import MEMORIES

NAMES = [card.name for card in cards("updater")]


@pytest.mark.parametrize("name", NAMES)
def test_it_is_built_with_its_defaults(name) -> None:
    (card,) = (card for card in cards("updater") if card.name == name)
    updater = build_updater(name, {}, seed=3)
    assert updater.offers in ("online", "start", "end")
    assert card.summary
    memory = build_memory(name, None, 10, seed=3)
    assert (memory.size > 0) == (card.facts["memory"] is not None)
    assert card.facts["memory"] in (None, *MEMORIES)


OTHER = {
    "end": "online", "online": "end", "spatial": "gap", "mse": "huber", "best": "stable",
}  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_every_option_of_the_card_acts(name) -> None:
    """Each option, changed, changes the updater that is built."""
    (card,) = (card for card in cards("updater") if card.name == name)
    for option in card.options:
        other = {
            bool: lambda v: not v,
            float: lambda v: v / 2 + 0.01,
            int: lambda v: v + 1,
            str: OTHER.__getitem__,
            type(None): lambda _: 0.25,
        }[type(option.default)](option.default)
        assert state(build_updater(name, {option.name: other}, 0)) != state(
            build_updater(name, {}, 0)
        ), option.name


def state(updater) -> dict:
    own = {k: v for k, v in vars(updater).items() if k != "parts"}
    return own | {"parts": [dict(vars(part)) for part in updater.parts]}


def test_targets_take_exactly_the_options_of_their_cards() -> None:
    for card in cards("updater"):
        taken = inspect.signature(card.load()).parameters
        if not any(p.kind is p.VAR_KEYWORD for p in taken.values()):
            assert set(taken) == {option.name for option in card.options}


@pytest.mark.parametrize("name", NAMES)
def test_the_page_has_its_row(name) -> None:
    (card,) = (card for card in cards("updater") if card.name == name)
    shared = {"loss_weight", "loss_normalization", "offers", "asymmetric"}
    options = ", ".join(
        f"{o.name} ({str(o.default).lower() if isinstance(o.default, bool) else o.default})"
        for o in card.options
        if o.name not in shared
    )
    memory = card.facts["memory"] or ""
    row = f"| `{name}` | {card.summary} | {memory} | {options} | {card.paper} |"
    assert row in (Path(__file__).parents[2] / "docs" / "continual.md").read_text("utf-8")
