"""The texts of the cases, as JSON lines of ``anchor`` and ``positive``.

debian      short and long description of a Debian package, shuffled: 4 to 900 words
wordnet     a definition and the words that it defines, of the demo's sample
uniform-N   pieces of the Debian descriptions that all have more than N tokens, to be cut
numbered    the WordNet pairs again and again, each with a number, so that none is alike
"""

from __future__ import annotations

import csv
import itertools
import json
import random
import re
from collections.abc import Iterator
from pathlib import Path

from luthier.benchmark import debian
from luthier.benchmark.unavailable import Unavailable
from luthier.demo.data import train_and_eval

Pair = tuple[str, str]
_SHUFFLED_WITH = 13


def corpus(source: str, rows: int | None, folder: Path) -> Path:
    """A file of so many pairs; built once.

    Raises Unavailable: the texts cannot be had here, or are fewer.
    """
    file = folder / f"{source}-{rows or 'all'}.jsonl"
    if file.exists():
        return file
    folder.mkdir(parents=True, exist_ok=True)
    pairs = list(itertools.islice(_pairs(source, folder), rows))
    if rows is not None and len(pairs) < rows:
        raise Unavailable(f"{source} has {len(pairs):,} pairs here, and {rows:,} are needed")
    aside = file.with_suffix(".aside")
    with open(aside, "w", encoding="utf-8") as out:
        for anchor, positive in pairs:
            line = json.dumps({"anchor": anchor, "positive": positive}, ensure_ascii=False)
            out.write(line + "\n")
    aside.rename(file)
    return file


def _pairs(source: str, folder: Path) -> Iterator[Pair]:
    if source == "debian":
        return iter(_debian(folder))
    if source == "wordnet":
        return iter(_wordnet(folder))
    if source == "numbered":
        return _numbered(_wordnet(folder))
    if match := re.fullmatch(r"uniform-(\d+)", source):
        return _uniform(_debian(folder), int(match[1]))
    raise ValueError(f"no corpus is called {source}")


def _debian(folder: Path) -> list[Pair]:
    with open(debian.build(folder), encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    pairs = [(row["query"], row["doc"]) for row in rows]
    random.Random(_SHUFFLED_WITH).shuffle(pairs)
    return pairs


def _wordnet(folder: Path) -> list[Pair]:
    pairs = []
    for path in train_and_eval(folder / "wordnet"):
        with open(path, encoding="utf-8", newline="") as file:
            pairs += [(row["query"], row["document"]) for row in csv.DictReader(file)]
    random.Random(_SHUFFLED_WITH).shuffle(pairs)
    return pairs


def _numbered(pairs: list[Pair]) -> Iterator[Pair]:
    for number, (anchor, positive) in enumerate(itertools.cycle(pairs)):
        yield f"{anchor} ({number})", f"{positive} ({number})"


def _uniform(pairs: list[Pair], tokens: int) -> Iterator[Pair]:
    """Pieces of the long descriptions. A word has at least one token, so as many words as
    tokens are enough to fill a text."""
    words = (word for _, document in pairs for word in document.split() if word.isalpha())
    pieces = (" ".join(piece) for piece in iter(lambda: list(itertools.islice(words, tokens)), []))
    return ((anchor, positive) for anchor, positive in zip(pieces, pieces, strict=False))
