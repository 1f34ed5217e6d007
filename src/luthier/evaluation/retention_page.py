"""What an update kept, as a report's page draws it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from luthier.evaluation.heat_map import Point, curves_of, heat_map

_MARKS = {"kept": "●", "forgot": "▼", "nothing to compare": "○"}
_KINDS = {"kept": "better", "forgot": "worse", "nothing to compare": ""}
_SCORES = {"correct": "accuracy", "loss": "loss (less is better)"}


def drawn(update: Mapping[str, Any]) -> dict[str, Any]:
    """Pieces for the template, by what ``metrics()["update"]`` says."""
    matrix, score = update.get("matrix") or [], str(update.get("score", ""))
    name = _SCORES.get(score, score)
    verdict = update.get("verdict")
    return {
        "kind": _KINDS.get(str(verdict), ""),
        "mark": _MARKS.get(str(verdict), ""),
        "verdict": verdict,
        "sentence": f"Rows of earlier chunks: {update['reason']}." if verdict else "",
        "reasons": _reasons(update),
        "score": name,
        "matrix": heat_map(matrix, f"{name} by update and chunk", less_is_better=score == "loss"),
        "curve": _on_the_way(update, name),
        "history": _means(matrix, name),
        "facts": _facts(update),
        "notes": list(update.get("notes") or ()),
    }


def _reasons(update: Mapping[str, Any]) -> list[str]:
    reasons = [str(reason) for reason in update.get("reasons") or ()]
    if not reasons:
        return []
    if update.get("promoted"):
        return [f"Promoted all the same: {'; '.join(reasons)}."]
    return [f"Not promoted: {'; '.join(reasons)}. The state is what it was."]


def _on_the_way(update: Mapping[str, Any], name: str) -> str:
    found, before = update.get("stability"), update.get("before") or ()
    if not found or not found["curve"]:
        return ""
    lines: list[tuple[str, list[Point]]] = []
    for chunk in range(len(found["by_chunk"])):
        points = [(0.0, before[chunk])] if chunk < len(before) else []
        points += [(float(e["step"]), float(e["by_chunk"][chunk])) for e in found["curve"]]
        lines.append((f"chunk {chunk + 1}", [(x, y, y, y) for x, y in points]))
    return curves_of(lines, f"{name} of earlier chunks over the steps", "step")


def _means(matrix: Any, name: str) -> str:
    if len(matrix) < 2:
        return ""
    means = [sum(row) / len(row) for row in matrix if row]
    points = [(i + 1.0, mean, mean, mean) for i, mean in enumerate(means)]
    return curves_of([("mean", points)], f"mean {name} over updates", "update")


def _facts(update: Mapping[str, Any]) -> dict[str, Any]:
    """What has a value, by its name for people."""
    names = ("stability", "probe", "drift", "earlier")
    stability, probe, drift, earlier = (update.get(name) or {} for name in names)
    sizes = update.get("bytes") or {}
    found = {
        "mean": update.get("average"),
        "forgotten": update.get("forgetting"),
        "backward transfer": update.get("backward_transfer"),
        "lost in this update": earlier.get("mean"),
        "right before, wrong now": update.get("lost"),
        "wrong before, right now": update.get("gained"),
        "sign test": None if earlier.get("p") is None else f"p = {earlier['p']:.2g}",
        "stability gap": stability.get("gap"),
        "probe before, after": _pair(probe),
        "probe lost": probe.get("mean"),
        "drift": drift and f"{drift['decision']}: {drift['reason']}",
        "promoted": update.get("promoted"),
        "memory": sizes and ", ".join(f"{n} {b:,} bytes" for n, b in sizes.items()),
    }
    return {name: value for name, value in found.items() if value not in (None, "", {})}


def _pair(probe: Mapping[str, Any]) -> str | None:
    if not probe:
        return None
    before, after = probe["before"], probe["after"]
    known = ("val_accuracy", "val_loss", probe.get("metric"), *after)
    name = next(name for name in known if name in after)
    return f"{before[name]:.3f}, {after[name]:.3f} {name.removeprefix('val_')}"
