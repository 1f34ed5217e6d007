"""A matrix of scores as inline SVG, and several curves in one frame. Colours are the page's."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from itertools import pairwise

from luthier.evaluation.curves import HEIGHT, WIDTH, _number, _open, _ticks

_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 74, 12, 26
#: As many curves as there are colours; further ones are dashed.
_COLOURS = 5
#: From this share of the colour on a number is written in the colour of the ground.
_DARK = 0.55
#: More columns than this, and numbers would not fit.
_MOST_NUMBERS = 12

#: A point of a curve: where, its value, and the ends of its interval.
Point = tuple[float, float, float, float]


def heat_map(
    matrix: Sequence[Sequence[float | None]],
    label: str,
    *,
    rows: str = "update",
    columns: str = "chunk",
    less_is_better: bool = False,
) -> str:
    """One square a score; the fuller the better. Rows may differ in length; None is left empty.

    Scores in 0..1 are shown as they are; others from the worst to the best.
    """
    known = [v for row in matrix for v in row if v is not None and math.isfinite(v)]
    if not known:
        return ""
    low, high = min(known), max(known)
    if low >= 0 and high <= 1 and not less_is_better:
        low, high = 0.0, 1.0
    width = max(len(row) for row in matrix)
    cell = (WIDTH - 60) / max(width, 5)
    tall = min(cell, 34.0)
    parts = [_open(label, 34 + tall * len(matrix))]
    for j in range(width):
        x = 56 + cell * (j + 0.5)
        name = f"{columns} 1" if j == 0 else str(j + 1)
        parts.append(f'<text x="{x:.1f}" y="14" text-anchor="middle">{escape(name)}</text>')
    for i, row in enumerate(matrix):
        y = 22 + tall * i
        middle = y + tall / 2 + 4
        name = f"{rows} 1" if i == 0 else str(i + 1)
        parts.append(f'<text x="50" y="{middle:.1f}" text-anchor="end">{escape(name)}</text>')
        for j, value in enumerate(row):
            if value is None or not math.isfinite(value):
                continue
            share = (value - low) / (high - low) if high > low else 1.0
            share = 1 - share if less_is_better else share
            x = 56 + cell * j
            parts.append(
                f'<rect class="cell" x="{x:.1f}" y="{y:.1f}" width="{cell - 2:.1f}" '
                f'height="{tall - 2:.1f}" rx="3" fill-opacity="{0.06 + 0.9 * share:.3f}">'
                f"<title>{escape(rows)} {i + 1}, {escape(columns)} {j + 1}: {value:.4f}</title>"
                "</rect>"
            )
            if width <= _MOST_NUMBERS:
                kind = ' class="over"' if share > _DARK else ""
                parts.append(
                    f'<text{kind} x="{x + cell / 2 - 1:.1f}" y="{middle:.1f}" '
                    f'text-anchor="middle">{_short(value)}</text>'
                )
    return "".join(parts) + "</svg>"


def curves_of(named: Sequence[tuple[str, Sequence[Point]]], label: str, x_label: str) -> str:
    """Several curves with the bands of their intervals, each named where it ends. Points that are
    not finite are left out."""
    kept = [(name, [p for p in points if all(map(math.isfinite, p))]) for name, points in named]
    kept = [(name, points) for name, points in kept if points]
    if not kept:
        return ""
    everything = [p for _, points in kept for p in points]
    ticks = _ticks(min(p[2] for p in everything), max(p[3] for p in everything))
    low = min(ticks[0], *(p[2] for p in everything))
    high = max(ticks[-1], *(p[3] for p in everything))
    first, last = min(p[0] for p in everything), max(p[0] for p in everything)

    def across(x: float) -> float:
        share = (x - first) / (last - first) if last > first else 0.5
        return _LEFT + share * (WIDTH - _LEFT - _RIGHT)

    def up(y: float) -> float:
        share = (y - low) / (high - low) if high > low else 0.5
        return HEIGHT - _BOTTOM - share * (HEIGHT - _TOP - _BOTTOM)

    parts = [_open(label, HEIGHT)]
    for tick in ticks:
        parts.append(
            f'<line class="grid" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{up(tick):.1f}" '
            f'y2="{up(tick):.1f}"/><text x="{_LEFT - 8}" y="{up(tick) + 4:.1f}" '
            f'text-anchor="end">{_number(tick)}</text>'
        )
    for edge, anchor, value in ((_LEFT, "start", first), (WIDTH - _RIGHT, "end", last)):
        parts.append(f'<text x="{edge}" y="{HEIGHT - 8}" text-anchor="{anchor}">{value:g}</text>')
    middle = (WIDTH + _LEFT - _RIGHT) / 2
    parts.append(f'<text x="{middle}" y="{HEIGHT - 8}" text-anchor="middle">')
    parts.append(f"{escape(x_label)}</text>")
    places = _apart([up(points[-1][1]) for _, points in kept])
    for i, ((name, points), y) in enumerate(zip(kept, places, strict=True)):
        kind = f"s{(i + 1) % _COLOURS}" + (" dashed" if i >= _COLOURS else "")
        if any(p[3] > p[2] for p in points):
            band = [(p[0], p[3]) for p in points] + [(p[0], p[2]) for p in reversed(points)]
            path = " ".join(f"{across(a):.1f},{up(b):.1f}" for a, b in band)
            parts.append(f'<polygon class="band" points="{path}"/>')
        path = " ".join(f"{across(p[0]):.1f},{up(p[1]):.1f}" for p in points)
        parts.append(f'<polyline class="{kind}" points="{path}"/>')
        x = WIDTH - _RIGHT + 6
        parts.append(f'<text class="{kind}" x="{x}" y="{y + 4:.1f}">{escape(name)}</text>')
    return "".join(parts) + "</svg>"


def _apart(places: Sequence[float], gap: float = 12.0) -> list[float]:
    """Heights of labels, moved as far as it takes for none to lie on another."""
    order = sorted(range(len(places)), key=lambda i: places[i])
    found = list(places)
    for before, i in pairwise(order):
        found[i] = max(found[i], found[before] + gap)
    excess = found[order[-1]] - (HEIGHT - _BOTTOM) if order else 0.0
    return [y - max(excess, 0.0) for y in found]


def _short(value: float) -> str:
    return f"{value:.2f}".replace("0.", ".") if 0 <= value < 1 else f"{value:.3g}"
