"""Build the demo's data from WordNet 3.0: definitions, and the words that they define.

    apt-get download wordnet-base && dpkg-deb -x wordnet-base_*.deb wordnet
    python scripts/build_wordnet_sample.py wordnet/usr/share/wordnet

writes src/luthier/demo/wordnet-sample.jsonl and its licence beside it. The same input gives
the same bytes. No word and no definition occurs twice, so the words of the evaluation rows
are unknown in training.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent.parent / "src" / "luthier" / "demo"
PARTS = ("noun", "verb", "adj", "adv")
#: Subjects by number: lexnames(5WN).
SUBJECTS = (
    "adj.all", "adj.pert", "adv.all", "noun.Tops", "noun.act", "noun.animal", "noun.artifact",
    "noun.attribute", "noun.body", "noun.cognition", "noun.communication", "noun.event",
    "noun.feeling", "noun.food", "noun.group", "noun.location", "noun.motive", "noun.object",
    "noun.person", "noun.phenomenon", "noun.plant", "noun.possession", "noun.process",
    "noun.quantity", "noun.relation", "noun.shape", "noun.state", "noun.substance",
    "noun.time", "verb.body", "verb.change", "verb.cognition", "verb.communication",
    "verb.competition", "verb.consumption", "verb.contact", "verb.creation", "verb.emotion",
    "verb.motion", "verb.perception", "verb.possession", "verb.social", "verb.stative",
    "verb.weather", "adj.ppl",
)  # fmt: skip
EVAL_ROWS = 1_200
TRAIN_ROWS = 3_840  # 120 steps of 32
WORDS_OF_A_DEFINITION = range(4, 19)


@dataclass(frozen=True)
class Synset:
    """A meaning: its place in the files, its subject, the words for it, its definition."""

    offset: str
    part: str
    subject: str
    words: tuple[str, ...]
    definition: str


def synsets(folder: Path, part: str) -> Iterator[Synset]:
    """The meanings of data.<part>. Format: wndb(5WN)."""
    for line in (folder / f"data.{part}").read_text(encoding="utf-8").splitlines():
        if line.startswith("  "):  # the licence
            continue
        left, _, gloss = line.partition(" | ")
        fields = left.split(" ")
        count = int(fields[3], 16)
        words = (re.sub(r"\(\w+\)$", "", fields[4 + 2 * i]) for i in range(count))
        parts = (piece.strip() for piece in gloss.strip().split("; "))
        definition = "; ".join(piece for piece in parts if not piece.startswith('"'))
        named = tuple(word.replace("_", " ") for word in words)
        yield Synset(fields[0], part, SUBJECTS[int(fields[1])], named, definition)


def first_senses(folder: Path, part: str) -> dict[str, str]:
    """Each word's commonest meaning, for words that WordNet's authors met in real texts."""
    found = {}
    for line in (folder / f"index.{part}").read_text(encoding="utf-8").splitlines():
        if line.startswith("  "):
            continue
        fields = line.split()
        pointers = int(fields[3])
        found[fields[0].replace("_", " ")] = fields[4 + pointers + 2]
    return found


def fits(synset: Synset, first: dict[str, str]) -> bool:
    """A common noun, verb, adjective or adverb, defined without naming it."""
    word = synset.words[0]
    if not re.fullmatch(r"[a-z][a-z' -]+", word) or first.get(word) != synset.offset:
        return False
    if len(synset.definition.split()) not in WORDS_OF_A_DEFINITION:
        return False
    text = f" {re.sub(r'[^a-z]+', ' ', synset.definition.lower())} "
    return not any(f" {word.lower()} " in text for word in synset.words)


def order(synset: Synset) -> str:
    """A fixed order that has nothing to do with the alphabet."""
    return hashlib.sha256(f"{synset.part}{synset.offset}".encode()).hexdigest()


def choose(folder: Path, rows: int) -> list[Synset]:
    """Meanings that share no word and no definition."""
    fitting = []
    for part in PARTS:
        first = first_senses(folder, part)
        fitting += [synset for synset in synsets(folder, part) if fits(synset, first)]
    chosen: list[Synset] = []
    seen: set[str] = set()
    for synset in sorted(fitting, key=order):
        mine = {word.lower() for word in synset.words} | {synset.definition.lower()}
        if not mine & seen:
            seen |= mine
            chosen.append(synset)
    return chosen[:rows]


def main() -> None:
    """Write the sample and its licence."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("wordnet", type=Path, help="the folder with data.noun and index.noun")
    parser.add_argument("--to", type=Path, default=HERE)
    given = parser.parse_args()
    chosen = choose(given.wordnet, EVAL_ROWS + TRAIN_ROWS)
    with (given.to / "wordnet-sample.jsonl").open("w", encoding="utf-8", newline="\n") as out:
        for i, synset in enumerate(chosen):
            row = {
                "split": "eval" if i < EVAL_ROWS else "train",
                "definition": synset.definition,
                "words": ", ".join(synset.words),
                "subject": synset.subject,
            }
            out.write(json.dumps(row, ensure_ascii=False) + "\n")
    lines = (given.wordnet / "data.noun").read_text(encoding="utf-8").splitlines()
    licence = (re.sub(r"^  \d+ ", "", line).rstrip() for line in lines if line.startswith("  "))
    (given.to / "wordnet-LICENSE.txt").write_text("\n".join(licence) + "\n", encoding="utf-8")
    print(f"{len(chosen):,} rows")


if __name__ == "__main__":
    main()
