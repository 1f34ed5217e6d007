"""The demo's data: definitions and the words they define, from WordNet 3.0.

Shipped with its licence beside it; built by scripts/build_wordnet_sample.py. No word and no
definition occurs twice, so the words of the evaluation rows are unknown in training.
"""

from __future__ import annotations

import csv
import io
import json
from importlib.resources import files
from pathlib import Path

SAMPLE = "wordnet-sample.jsonl"


def train_and_eval(folder: Path) -> tuple[Path, Path]:
    """Write train.csv and eval.csv (query: a definition, document: its words) and their
    licence into ``folder``; returns their paths. Files that are already right stay as they
    are."""
    folder.mkdir(parents=True, exist_ok=True)
    rows: dict[str, list[tuple[str, str]]] = {"train": [], "eval": []}
    for line in _shipped(SAMPLE).splitlines():
        row = json.loads(line)
        rows[row["split"]].append((row["definition"], row["words"]))
    paths = {split: folder / f"{split}.csv" for split in rows}
    for split, pairs in rows.items():
        _write(paths[split], _as_csv(pairs))
    _write(folder / "wordnet-LICENSE.txt", _shipped("wordnet-LICENSE.txt"))
    return paths["train"], paths["eval"]


def _as_csv(pairs: list[tuple[str, str]]) -> str:
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("query", "document"))
    writer.writerows(pairs)
    return text.getvalue()


def _shipped(name: str) -> str:
    return files("luthier.demo").joinpath(name).read_text(encoding="utf-8")


def _write(path: Path, text: str) -> None:
    data = text.encode()
    if not path.exists() or path.read_bytes() != data:
        path.write_bytes(data)
