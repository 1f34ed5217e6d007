"""The tables of losses and miners in docs/objectives.md, written from the cards.

python -m luthier.objectives.table docs/objectives.md
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path

from luthier import registry
from luthier.objectives.papers import REFUSED
from luthier.registry import Card

FORMS = ("labelled", "pairs", "triplets", "scored", "margin", "rankings")
_BEGIN, _END = "<!-- begin: {} -->", "<!-- end: {} -->"


def losses_table() -> str:
    """Which loss fits which data: one line a loss, ours first."""
    head = ["loss", *FORMS, "miner", "learns", "batches", "options (default)"]
    return _table(head, (_loss_row(card) for card in registry.cards("loss")))


def _loss_row(card: Card) -> list[str]:
    facts = card.facts
    learns = facts.get("learns", False)
    if facts.get("wraps"):
        cells = ["as the wrapped one"] * 3
    else:
        cells = [
            "yes" if facts.get("takes_miner") else "",
            f"with {learns}" if isinstance(learns, str) else "yes" if learns else "",
            _batches(card),
        ]
    fits = ["yes" if form in card.forms else "" for form in FORMS]
    return [f"`{card.name}`", *fits, *cells, _options(card)]


def _batches(card: Card) -> str:
    if card.facts.get("in_batch_negatives"):
        return "no text twice"
    if "labelled" not in card.forms:
        return "random"
    forced = " (always)" if card.facts.get("sampler_forced") else ""
    return f"{card.facts['sampler']}{forced}"


def _options(card: Card) -> str:
    shown = [
        f"{o.name} (required)" if o.required else f"{o.name} ({o.default})"
        for o in card.options
        if not o.name.startswith(("distance", "reducer"))
    ]
    parts = [o.name for o in card.options if o.name in ("distance", "reducer")]
    return ", ".join(shown + parts)


def miners_table() -> str:
    """What each miner picks."""
    rows = ([f"`{c.name}`", c.summary, _options(c)] for c in registry.cards("miner"))
    return _table(["miner", "picks", "options (default)"], rows)


def papers_table() -> str:
    """What each loss does, and where it comes from."""
    rows = ([f"`{c.name}`", c.summary, c.paper] for c in registry.cards("loss"))
    return _table(["loss", "in one line", "paper"], rows)


def refused_table() -> str:
    """What pytorch-metric-learning has and a job cannot name."""
    return _table(["name", "why not"], ([f"`{n}`", why] for n, why in REFUSED.items()))


def _table(head: list[str], rows: Iterable[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def filled(text: str) -> str:
    """The document with its tables as the cards have them now."""
    for name, table in {
        "losses": losses_table,
        "miners": miners_table,
        "papers": papers_table,
        "refused": refused_table,
    }.items():
        begin, end = _BEGIN.format(name), _END.format(name)
        before, _, rest = text.partition(begin)
        _, _, after = rest.partition(end)
        text = f"{before}{begin}\n{table()}\n{end}{after}"
    return text


if __name__ == "__main__":
    path = Path(sys.argv[1])
    path.write_text(filled(path.read_text("utf-8")), "utf-8")
