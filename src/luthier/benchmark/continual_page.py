"""What ``luthier bench continual`` found: a page with drawings, Markdown, and Renate beside it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from luthier.benchmark.continual import summaries
from luthier.evaluation.curves import interval_bars
from luthier.evaluation.heat_map import Point, curves_of, heat_map
from luthier.evaluation.page import style
from luthier.store import atomic

#: Renate 0.5's own code on the class-incremental scenario, on two cores: mean accuracy at the end,
#: forgetting, seconds of the five updates. 3 seeds of digits, 2 of mnist; the last two were
#: recorded of mnist only.
RENATE: dict[str, dict[str, tuple[float, float | None, float | None]]] = {
    "digits": {
        name: (accuracy, None, None)
        for name, accuracy in {
            "FineTuning": 0.191, "ER": 0.910, "Offline-ER": 0.915, "CLS-ER": 0.922,
            "DER": 0.934, "Super-ER": 0.932, "GDumb": 0.828, "Joint": 0.906,
        }.items()
    },
    "mnist": {
        "FineTuning": (0.151, 0.99, 3.7), "ER": (0.786, 0.248, 18.0),
        "Offline-ER": (0.807, 0.217, 30.0), "CLS-ER": (0.811, 0.220, 24.0),
        "DER": (0.856, 0.159, 25.0), "Super-ER": (0.874, 0.133, 54.0),
        "GDumb": (0.771, 0.115, 6.6), "Joint": (0.908, 0.037, 38.0),
    },
}  # fmt: skip

_HEADINGS = ("updater", "accuracy", "forgetting", "seconds", "memory", "Renate", "its forgetting",
             "its seconds")  # fmt: skip
MARK = "\n<!-- Written by hand from here on; the program keeps it. -->\n"

_INTRODUCTION = """\
Five updates each, one head for all ten classes, a perceptron with one hidden layer of 200, SGD at
0.05 with momentum 0.9, batches of 32 of which half are remembered rows. digits: 1,797 of 8 x 8,
memory 100, 10 epochs an update; mnist: 10,000 of 28 x 28, memory 200, 5 epochs. A fifth of the rows
is held out, another one for each seed. Accuracy is the mean over the five chunks after the last
update, forgetting how far the first four are below their best, seconds are for all five updates:
reading, training, measuring, committing the state. ± is half a 95% interval over seeds
(Student's t). Joint trains a new model on all rows there ever were, which no other may keep.
Renate's figures are its own code's by the same protocol, measured once, on two cores: 3 seeds of
digits, 2 of mnist."""


def renate(entry: Mapping[str, Any]) -> tuple[float | None, float | None, float | None]:
    """Renate's accuracy, forgetting and seconds, where they were measured."""
    if entry["scenario"] != "class-incremental" or entry["quick"]:
        return None, None, None
    return RENATE[entry["data"]].get(entry["updater"], (None, None, None))


def rows(entries: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """One a summary, best first, as text."""
    found = []
    for e in sorted(entries, key=lambda e: -e["average"]):
        accuracy, forgetting, seconds = renate(e)
        found.append(
            [
                e["updater"],
                _mean(e["average"], e["average_half"]),
                _mean(e["forgetting"], e["forgetting_half"]),
                f"{e['seconds']:.1f}",
                f"{e['memory_bytes'] / 1000:,.0f} kB" if e["memory_bytes"] else "–",
                _number(accuracy, ".3f"),
                _number(forgetting, ".3f"),
                _number(seconds, ".1f"),
            ]
        )
    return found


def groups(entries: Sequence[Mapping[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
    """Summaries by scenario and data set: ``"class-incremental, digits"``."""
    found: dict[str, list[Mapping[str, Any]]] = {}
    for entry in entries:
        found.setdefault(f"{entry['scenario']}, {entry['data']}", []).append(entry)
    return found


def markdown(found: Sequence[Mapping[str, Any]]) -> str:
    """The tables of finished cells, with what was measured where."""
    entries = summaries([dict(cell) for cell in found])
    parts = [_INTRODUCTION, ""]
    for title, group in groups(entries).items():
        shown = rows(group)
        kept = _told(shown)
        seeds = " to ".join(map(str, sorted({e["seeds"] for e in group})))
        parts += [f"## {title}", "", f"{seeds} seeds", ""]
        parts += [f"| {' | '.join(_HEADINGS[i] for i in kept)} |"]
        parts += ["|" + "|".join("---" if i == 0 else "---:" for i in kept) + "|"]
        parts += [f"| {' | '.join(row[i] for i in kept)} |" for row in shown]
        parts.append("")
    return "\n".join([*parts, _where(found)]) + "\n"


def _told(shown: Sequence[Sequence[str]]) -> list[int]:
    """Columns that say something: those of Renate only where it was measured."""
    return [i for i in range(len(_HEADINGS)) if i < 5 or any(row[i] != "–" for row in shown)]


def _where(found: Sequence[Mapping[str, Any]]) -> str:
    if not found:
        return "Nothing has been measured yet."
    kinds = ("date", "commit", "machine", "threads")
    said = [sorted({str(cell.get(kind)) for cell in found}) for kind in kinds]
    dates, commits, machines, threads = (", ".join(each) for each in said)
    return f"Measured {dates}; commit {commits}; {machines}; torch threads: {threads}."


def html(found: Sequence[Mapping[str, Any]]) -> str:
    """One page that needs nothing else: no script, no request, light and dark."""
    entries = summaries([dict(cell) for cell in found])
    sections = [_section(title, group) for title, group in groups(entries).items()]
    policy = "default-src 'none'; style-src 'unsafe-inline'"
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        f"<title>continual learning · luthier</title>\n<style>\n{style()}</style>\n</head>\n"
        "<body>\n<main>\n<header><h1>Continual learning: updaters beside one another</h1>\n"
        f"<p>{escape(_INTRODUCTION)}</p></header>\n{''.join(sections)}"
        f'<p class="soft">{escape(_where(found))}</p>\n</main>\n</body>\n</html>\n'
    )


def _section(title: str, group: Sequence[Mapping[str, Any]]) -> str:
    best = sorted(group, key=lambda e: -e["average"])
    bars = []
    for e in best:
        bars.append(_bar(e["updater"], "after", e["average"], e["average_half"]))
        if (theirs := renate(e)[0]) is not None:
            bars.append(_bar("Renate's", "bm25", theirs, math.nan))
    shown = rows(group)
    kept = _told(shown)
    head = "".join(f"<th>{escape(_HEADINGS[i])}</th>" for i in kept)
    lines = "".join(
        "<tr>" + "".join(f"<td>{escape(row[i])}</td>" for i in kept) + "</tr>\n" for row in shown
    )
    table = f'<div class="scroll"><table>\n<tr>{head}</tr>\n{lines}</table></div>'
    drawn = "".join(f"<div>{_of_updater(entry)}</div>\n" for entry in best)
    bars_drawn = interval_bars(bars, f"accuracy after five updates: {title}", left=92, step=20)
    return (
        f"<section>\n<h2>{escape(title)}</h2>\n"
        "<h3>accuracy after five updates, with 95% intervals</h3>\n"
        f'<div style="max-width: 560px">{bars_drawn}</div>\n{table}\n</section>\n'
        f'<section>\n<h2>{escape(title)}: each updater</h2>\n<div class="two">\n{drawn}</div>\n'
        "</section>\n"
    )


def _of_updater(entry: Mapping[str, Any]) -> str:
    name = escape(entry["updater"])
    named = (("accuracy", "average"), ("forgetting", "forgetting"))
    curves = [(label, _points(entry["curves"][key])) for label, key in named]
    matrix = heat_map(entry["matrix"], f"{entry['updater']}: accuracy by update and chunk")
    drawn = curves_of(curves, f"{entry['updater']}: accuracy and forgetting", "update")
    return f"<h3>{name}</h3>{matrix}{drawn}"


def _points(curve: Sequence[Sequence[float]]) -> list[Point]:
    found = []
    for x, mean, half in curve:
        width = half if math.isfinite(half) else 0.0
        low = max(mean - width, min(mean, 0.0))
        found.append((float(x), mean, low, max(mean, min(mean + width, 1.0))))
    return found


def _bar(name: str, kind: str, value: float, half: float) -> tuple[str, str, float, float, float]:
    width = half if math.isfinite(half) else 0.0
    return name, kind, value, max(0.0, value - width), min(1.0, value + width)


def write(found: Sequence[Mapping[str, Any]], folder: Path) -> list[Path]:
    """``continual.html``, ``continual.md`` and ``continual.json`` in a folder."""
    atomic.make_folder(folder)
    data = {"cells": list(found), "summaries": summaries([dict(cell) for cell in found])}
    texts = {
        "continual.html": html(found),
        "continual.md": f"# Continual learning\n\n{markdown(found)}",
        "continual.json": json.dumps(plain(data), indent=1, sort_keys=True) + "\n",
    }
    for name, text in texts.items():
        atomic.write_bytes(folder / name, text.encode())
    return [folder / name for name in texts]


def merge(found: Sequence[Mapping[str, Any]], page: Path) -> None:
    """Merge cells into a page of the documentation and its neighbour ``.json``; a cell replaces
    the older one of its name, and what is written by hand stays."""
    data = page.with_suffix(".json")
    known = json.loads(data.read_text()) if data.exists() else {}
    for cell in found:
        known[f"{cell['data']}/{cell['scenario']}/{cell['updater']}/{cell['seed']}"] = dict(cell)
    data.write_text(json.dumps(plain(known), sort_keys=True).replace("}, ", "},\n") + "\n")
    by_hand = page.read_text(encoding="utf-8").partition(MARK)[2] if page.exists() else ""
    head = ("# Continual learning, measured\n\nWritten by `luthier bench continual --write`; the "
            f"same data for programs: [{data.name}]({data.name}).\n\n")  # fmt: skip
    cells = [known[name] for name in sorted(known)]
    page.write_text(head + markdown(cells) + MARK + by_hand, encoding="utf-8")


def plain(value: Any) -> Any:
    """JSON data: what is not finite becomes null."""
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _mean(mean: float, half: float) -> str:
    return f"{mean:.3f}" + (f" ± {half:.3f}" if math.isfinite(half) else "")


def _number(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form)
