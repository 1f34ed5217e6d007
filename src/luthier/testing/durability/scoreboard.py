"""The scoreboard: what was promised, how often it was tried, how often it failed."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path


@dataclass(frozen=True)
class Score:
    """One promise, tried so often. facts: what else was measured, in words."""

    promise: str
    trials: int
    failures: int
    seconds: float
    facts: str = ""


def write(scores: Sequence[Score], path: Path, commit: str) -> None:
    """Merge the scores into ``path`` (Markdown) and its neighbour ``.json``: a promise that
    was tried again replaces its older line. commit: of the code that was tried."""
    data = path.with_suffix(".json")
    known = json.loads(data.read_text()) if data.exists() else {}
    stamp = {"date": datetime.now(UTC).strftime("%Y-%m-%d"), "commit": commit}
    for score in scores:
        known[score.promise] = asdict(score) | stamp
    data.write_text(json.dumps(known, indent=1, sort_keys=True) + "\n")
    lines = [
        "# Scoreboard",
        "",
        "Written by `python -m luthier.testing.durability`; see [durability](durability.md).",
        "",
        "| promise | trials | failures | seconds | facts | date | commit |",
        "|---|---:|---:|---:|---|---|---|",
    ]
    lines += [
        f"| {name} | {s['trials']:,} | {s['failures']} | {s['seconds']:.0f} | {s['facts']} "
        f"| {s['date']} | {s['commit']} |"
        for name, s in sorted(known.items())
    ]
    path.write_text("\n".join(lines) + "\n")


def current_commit() -> str:
    """The commit of the source; to be asked before the trials, which take a while."""
    asked = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parent,
    )
    return asked.stdout.strip() or "unknown"
