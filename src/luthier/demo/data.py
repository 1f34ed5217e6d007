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
    return _written(folder, "", ("query", "document"), ("definition", "words"))


def labelled_train_and_eval(folder: Path) -> tuple[Path, Path]:
    """The same definitions with one of 45 subjects each (noun.food, verb.motion, …):
    labelled-train.csv and labelled-eval.csv with the columns text and label."""
    return _written(folder, "labelled-", ("text", "label"), ("definition", "subject"))


def _written(
    folder: Path, prefix: str, header: tuple[str, str], fields: tuple[str, str]
) -> tuple[Path, Path]:
    folder.mkdir(parents=True, exist_ok=True)
    found: dict[str, list[tuple[str, ...]]] = {"train": [header], "eval": [header]}
    for line in _shipped(SAMPLE).splitlines():
        row = json.loads(line)
        found[row["split"]].append(tuple(row[field] for field in fields))
    paths = {split: folder / f"{prefix}{split}.csv" for split in found}
    for split, rows in found.items():
        _write(paths[split], _as_csv(rows))
    _write(folder / "wordnet-LICENSE.txt", _shipped("wordnet-LICENSE.txt"))
    return paths["train"], paths["eval"]


def _as_csv(rows: list[tuple[str, ...]]) -> str:
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


def _shipped(name: str) -> str:
    return files("luthier.demo").joinpath(name).read_text(encoding="utf-8")


def _write(path: Path, text: str) -> None:
    data = text.encode()
    if not path.exists() or path.read_bytes() != data:
        path.write_bytes(data)
