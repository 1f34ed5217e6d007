"""The page of a search: its table of trials and three plots, in one file that works offline."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from luthier.search.summary import Summary, Trial

_STYLE = """
body{font:15px/1.5 system-ui,sans-serif;max-width:960px;margin:2em auto;padding:0 1em;color:#222}
table{border-collapse:collapse;font-size:13px}td,th{padding:2px 10px;text-align:right;
border-bottom:1px solid #ddd}tr.best{background:#e8f4e8;font-weight:600}
svg{width:100%;height:auto;background:#fafafa;border:1px solid #eee}text{font:11px system-ui}
.muted{color:#777}@media(prefers-color-scheme:dark){body{background:#181818;color:#ddd}
svg{background:#222;border-color:#333}text{fill:#ddd}tr.best{background:#243824}
td,th{border-color:#333}}
"""
_WIDTH, _HEIGHT, _EDGE = 900, 260, 60


def page(summary: Summary) -> str:
    """The page as HTML."""
    metric = summary.metrics[0]
    parts = [
        f"<h1>{_text(summary.name)}</h1>",
        _said(summary),
        f"<h2>Best {_text(metric)} so far</h2>",
        _history(summary),
        "<h2>What mattered</h2>",
        _importance(summary),
        "<h2>Every trial, line by line</h2>",
        _parallel(summary),
        "<h2>Trials</h2>",
        _table(summary),
    ]
    head = f"<meta charset='utf-8'><title>{_text(summary.name)}</title><style>{_STYLE}</style>"
    return f"<!doctype html><html lang='en'><head>{head}</head><body>{''.join(parts)}</body></html>"


def _text(value: Any) -> str:
    return html.escape(f"{value:.4g}" if isinstance(value, float) else str(value))


def _said(summary: Summary) -> str:
    best = summary.best
    if best is None:
        return "<p>No trial finished.</p>"
    values = ", ".join(f"{_text(k)} = {_text(v)}" for k, v in best.values.items())
    scores = ", ".join(f"{_text(k)} {_text(v)}" for k, v in (best.scores or {}).items())
    front = [t.number for t in summary.front()]
    more = (
        f"<p>Pareto front: trials {', '.join(map(str, front))}.</p>"
        if len(summary.metrics) > 1
        else ""
    )
    # Where the page lies beside its run, in a home, this leads to the model's own report.
    report = f"../../artifacts/{best.artifact_id}/luthier/report.html"
    link = f" <a href='{_text(report)}'>Its report</a>." if best.artifact_id else ""
    said = f"Trial {best.number} of {len(summary.trials)}: {scores}, with {values}."
    return f"<p>{said}{link}</p>{more}"


def _scale(values: Sequence[float], low: float, high: float, log: bool = False) -> list[float]:
    """Values mapped to low..high; all the same: the middle."""
    found = [math.log(v) for v in values] if log and min(values) > 0 else list(values)
    least, most = min(found), max(found)
    if least == most:
        return [(low + high) / 2] * len(found)
    return [low + (v - least) / (most - least) * (high - low) for v in found]


def _svg(inner: str, height: int = _HEIGHT, label: str = "") -> str:
    return (
        f"<svg viewBox='0 0 {_WIDTH} {height}' role='img' aria-label='{_text(label)}'>{inner}</svg>"
    )


def _history(summary: Summary) -> str:
    points = summary.history()
    if not points:
        return "<p class='muted'>No trial is complete.</p>"
    xs = _scale([p["number"] for p in points], _EDGE, _WIDTH - 20)
    values = [p["value"] for p in points] + [p["best"] for p in points]
    ys = _scale(values, _HEIGHT - 30, 20)
    dots = "".join(
        f"<circle cx='{x:.1f}' cy='{y:.1f}' r='4' fill='#4a7fb5'><title>trial {p['number']}: "
        f"{_text(p['value'])}</title></circle>"
        for p, x, y in zip(points, xs, ys, strict=False)
    )
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in zip(xs, ys[len(points) :], strict=True))
    axis = _axis(min(values), max(values))
    best = f"<polyline points='{line}' fill='none' stroke='#c0504d' stroke-width='2'/>"
    return _svg(best + dots + axis, label="values and the best so far")


def _axis(least: float, most: float) -> str:
    return (
        f"<text x='4' y='24'>{_text(most)}</text><text x='4' y='{_HEIGHT - 28}'>{_text(least)}"
        "</text>"
    )


def _importance(summary: Summary) -> str:
    shares = summary.importance()
    if not shares:
        return "<p class='muted'>Too few trials are complete to say.</p>"
    bars = ""
    for row, (name, share) in enumerate(sorted(shares.items(), key=lambda item: -item[1])):
        y = 10 + 24 * row
        bars += (
            f"<text x='{_WIDTH * 0.42:.0f}' y='{y + 12}' text-anchor='end'>{_text(name)}</text>"
            f"<rect x='{_WIDTH * 0.43:.0f}' y='{y}' height='16' fill='#4a7fb5' "
            f"width='{max(share, 0) * _WIDTH * 0.45:.0f}'/>"
            f"<text x='{_WIDTH * 0.44 + max(share, 0) * _WIDTH * 0.45:.0f}' y='{y + 12}'>"
            f"{share:.0%}</text>"
        )
    return _svg(bars, 24 * len(shares) + 16, "importance of the parameters")


def _parallel(summary: Summary) -> str:
    trials = [t for t in summary.trials if t.scores]
    paths = [p for p in dict.fromkeys(k for t in trials for k in t.values)
             if all(p in t.values for t in trials)]  # fmt: skip
    if not trials or not paths:
        return "<p class='muted'>Nothing to compare.</p>"
    columns = [*paths, summary.metrics[0]]
    xs = [_EDGE + i * (_WIDTH - 2 * _EDGE) / max(1, len(columns) - 1) for i in range(len(columns))]
    places = [_places(trials, name, summary) for name in columns]
    good = _scale([(t.scores or {})[summary.metrics[0]] for t in trials], 0, 1)
    if summary.directions[0] == "minimize":
        good = [1 - g for g in good]
    lines = "".join(
        f"<polyline fill='none' stroke='hsl({220 - 220 * g:.0f},65%,50%)' stroke-width="
        f"'{1 + 2 * g:.1f}' points='"
        + " ".join(f"{x:.1f},{p[i]:.1f}" for x, p in zip(xs, places, strict=True))
        + f"'><title>trial {t.number}</title></polyline>"
        for i, (t, g) in enumerate(zip(trials, good, strict=True))
    )
    axes = "".join(
        f"<line x1='{x:.1f}' x2='{x:.1f}' y1='20' y2='{_HEIGHT - 30}' stroke='#999'/>"
        f"<text x='{x:.1f}' y='{_HEIGHT - 10}' text-anchor='middle'>"
        f"{_text(name.rpartition('.')[2])}</text>"
        for x, name in zip(xs, columns, strict=True)
    )
    return _svg(lines + axes, label="parallel coordinates")


def _places(trials: Sequence[Trial], name: str, summary: Summary) -> list[float]:
    if name == summary.metrics[0]:
        values: list[Any] = [(t.scores or {})[name] for t in trials]
    else:
        values = [t.values[name] for t in trials]
    node = summary.space.get(name, {})
    if not all(isinstance(v, int | float) and not isinstance(v, bool) for v in values):
        kinds = list(dict.fromkeys(map(str, values)))
        values = [kinds.index(str(v)) for v in values]
    return _scale(values, _HEIGHT - 30, 20, bool(node.get("log")))


def _table(summary: Summary) -> str:
    paths = list(dict.fromkeys(k for t in summary.trials for k in t.values))
    head = ["trial", "state", *summary.metrics, *(p.rpartition(".")[2] for p in paths), "s"]
    rows = ""
    for trial in summary.trials:
        cells = [trial.number, trial.state]
        cells += [(trial.scores or {}).get(m, "") for m in summary.metrics]
        cells += [trial.values.get(p, "") for p in paths]
        cells += [round(trial.seconds, 1)]
        best = " class='best'" if trial is summary.best else ""
        title = f" title='{_text(trial.error)}'" if trial.error else ""
        rows += f"<tr{best}{title}>" + "".join(f"<td>{_text(c)}</td>" for c in cells) + "</tr>"
    titles = "".join(f"<th>{_text(h)}</th>" for h in head)
    return f"<table><thead><tr>{titles}</tr></thead><tbody>{rows}</tbody></table>"
