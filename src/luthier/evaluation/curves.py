"""Small curves and intervals as inline SVG: no script, no request, colours from the page."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

WIDTH, HEIGHT = 440, 190
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 12, 12, 26
#: A curve of more points than this is drawn by means of neighbours.
_POINTS = 300
#: Share of the past in the smoothed curve, per drawn point.
_SMOOTHING = 0.8

Points = Sequence[tuple[float, float]]


def curve(values: Sequence[float | None], label: str, *, smooth: bool = False) -> str:
    """One value a step against the step (from 1). Values that are not finite are left out."""
    points = _thinned(
        [(i + 1.0, v) for i, v in enumerate(values) if v is not None and math.isfinite(v)]
    )
    lines = [("faint", points), ("line", _smoothed(points))] if smooth else [("line", points)]
    return _chart(lines, label, "step", dots=False)


def series(points: Points, label: str, x_label: str) -> str:
    """A few measurements, each with a dot."""
    kept = [(x, y) for x, y in points if math.isfinite(y)]
    return _chart([("line", kept)], label, x_label, dots=True)


def interval_bars(
    rows: Sequence[tuple[str, str, float, float, float]],
    label: str,
    *,
    left: int = 78,
    step: int = 30,
) -> str:
    """Values with their intervals, one below the other: (name, class, value, low, high). left:
    the room for the names; step: from one to the next."""
    low, high = min(r[3] for r in rows), max(r[4] for r in rows)
    ticks = _ticks(low, high)
    low, high = min(low, ticks[0]), max(high, ticks[-1])
    height = step * len(rows) + 34

    def x(value: float) -> float:
        return left + (value - low) / (high - low or 1) * (WIDTH - left - 24)

    parts = [_open(label, height)]
    for tick in ticks:
        parts.append(
            f'<line class="grid" x1="{x(tick):.1f}" x2="{x(tick):.1f}" y1="6" y2="{height - 24}"/>'
            f'<text x="{x(tick):.1f}" y="{height - 8}" text-anchor="middle">{_number(tick)}</text>'
        )
    for i, (name, kind, value, from_, to) in enumerate(rows):
        y = 22 + i * step
        parts.append(
            f'<text x="{left - 10}" y="{y + 4}" text-anchor="end">{escape(name)}</text>'
            f'<line class="bar {kind}" x1="{x(from_):.1f}" x2="{x(to):.1f}" y1="{y}" y2="{y}"/>'
            f'<circle class="dot {kind}" cx="{x(value):.1f}" cy="{y}" r="5"/>'
        )
    return "".join(parts) + "</svg>"


def _chart(lines: Sequence[tuple[str, Points]], label: str, x_label: str, *, dots: bool) -> str:
    everything = [point for _, points in lines for point in points]
    if not everything:
        return ""
    xs, ys = [p[0] for p in everything], [p[1] for p in everything]
    ticks = _ticks(min(ys), max(ys))
    low, high = min(*ys, ticks[0]), max(*ys, ticks[-1])
    first, last = min(xs), max(xs)

    def place(point: tuple[float, float]) -> tuple[float, float]:
        across = (point[0] - first) / (last - first) if last > first else 0.5
        up = (point[1] - low) / (high - low) if high > low else 0.5
        return (
            _LEFT + across * (WIDTH - _LEFT - _RIGHT),
            HEIGHT - _BOTTOM - up * (HEIGHT - _TOP - _BOTTOM),
        )

    parts = [_open(label, HEIGHT)]
    for tick in ticks:
        y = place((first, tick))[1]
        parts.append(
            f'<line class="grid" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
            f'<text x="{_LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{_number(tick)}</text>'
        )
    for edge, anchor, value in ((_LEFT, "start", first), (WIDTH - _RIGHT, "end", last)):
        parts.append(f'<text x="{edge}" y="{HEIGHT - 8}" text-anchor="{anchor}">{value:g}</text>')
    middle = (WIDTH + _LEFT - _RIGHT) / 2
    parts.append(f'<text x="{middle}" y="{HEIGHT - 8}" text-anchor="middle">')
    parts.append(f"{escape(x_label)}</text>")
    for kind, points in lines:
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in map(place, points))
        parts.append(f'<polyline class="{kind}" points="{path}"/>')
    if dots:
        for x, y in map(place, lines[-1][1]):
            parts.append(f'<circle class="dot after" cx="{x:.1f}" cy="{y:.1f}" r="3.5"/>')
    return "".join(parts) + "</svg>"


def _open(label: str, height: float) -> str:
    return f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(label)}">'


def _ticks(low: float, high: float, count: int = 4) -> list[float]:
    """Round numbers between two bounds, one beyond each where they are not round."""
    if high <= low:
        return [low]
    raw = (high - low) / count
    size: float = 10.0 ** math.floor(math.log10(raw))
    step = next(size * m for m in (1, 2, 2.5, 5, 10) if size * m >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [i * step for i in range(first, last + 1)]


def _number(value: float) -> str:
    return "0" if abs(value) < 1e-15 else f"{value:.4g}"


def _thinned(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    size = math.ceil(len(points) / _POINTS) if points else 1
    groups = (points[i : i + size] for i in range(0, len(points), size))
    return [(sum(p[0] for p in g) / len(g), sum(p[1] for p in g) / len(g)) for g in groups]


def _smoothed(points: Points) -> list[tuple[float, float]]:
    """Exponential mean, corrected for its start (Kingma and Ba 2015, section 3)."""
    total = weight = 0.0
    found = []
    for x, y in points:
        total = _SMOOTHING * total + (1 - _SMOOTHING) * y
        weight = _SMOOTHING * weight + (1 - _SMOOTHING)
        found.append((x, total / weight))
    return found
