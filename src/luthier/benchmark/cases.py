"""What is measured: one entry a case.

To add a case, add an entry. A new kind of work (a task head, adapters, images) is a new
value of ``Kind`` or a new field here, and what the sides make of it in ``sides/``.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from luthier.errors import NotFound, nearest

#: steps: the same k steps in turn, round after round. whole: all of a training, from the
#: loading of the model to its last step. encode: vectors of documents. start: from the start
#: of the process to the end of the first step.
Kind = Literal["steps", "whole", "encode", "start"]
Peer = Literal["sentence-transformers", "sentence-transformers, tuned", "transformers"]

PEERS: tuple[Peer, ...] = ("sentence-transformers", "sentence-transformers, tuned")


@dataclass(frozen=True)
class Case:
    """One kind of work.

    source: a corpus of ``corpora``. rows: how many of it, None for all. batch_size: pairs a
    step, or documents a batch. max_seq_length: tokens beyond which a text is cut. steps: how
    many a side runs in its turn (epochs of a ``whole``, documents of an ``encode``).
    warmup: steps that are run before and not counted. frozen_layers: the embeddings and that
    many layers are not trained. head_only: a new head is trained on a frozen model.
    lora_r: adapters of that rank are trained, on the layers that peft chooses.
    mini_batch_size: rows that the peer's cached loss takes at a time. alone: the sides together
    have more memory than a machine has, so each is started anew for each of its rounds, which
    are all of the same rows.
    """

    name: str
    group: str
    title: str
    source: str
    kind: Kind = "steps"
    rows: int | None = 4096
    batch_size: int = 32
    max_seq_length: int = 256
    steps: int = 4
    warmup: int = 2
    rounds: int = 5
    frozen_layers: int = 0
    head_only: bool = False
    lora_r: int | None = None
    mini_batch_size: int | None = None
    alone: bool = False
    peers: tuple[Peer, ...] = PEERS

    def quick(self) -> Case:
        """The same work, as little of it as shows that everything runs."""
        small = {
            "steps": replace(self, steps=min(self.steps, 2), warmup=1),
            "whole": replace(self, rows=4 * self.batch_size, steps=2),
            "encode": replace(self, rows=2000, steps=1000),
            "start": self,
        }[self.kind]
        return replace(small, rounds=1, peers=self.peers[:1])


TEXTS, LENGTHS, LARGE = "Training: texts", "Training: length of the texts", "Large batches"
FROZEN, ENCODE, START = "Frozen layers", "Encoding", "Start"
SIZES = "Training: size of the data"

CASES: tuple[Case, ...] = (
    Case("skewed-32", TEXTS, "long texts of very different length, batch 32", "debian"),
    Case("skewed-64", TEXTS, "the same, batch 64", "debian", batch_size=64, steps=2),
    Case(
        "skewed-128",
        TEXTS,
        "the same, batch 128",
        "debian",
        batch_size=128,
        steps=2,
        warmup=1,
        rounds=2,
        alone=True,
    ),
    Case(
        "short",
        TEXTS,
        "definitions and words, batch 32",
        "wordnet",
        max_seq_length=64,
        steps=12,
        peers=(*PEERS, "transformers"),
    ),
    *(
        Case(
            f"length-{length}",
            LENGTHS,
            f"all texts of {length} tokens, batch 32",
            f"uniform-{length}",
            max_seq_length=length,
            rows=2048 if length > 16 else 6144,
            steps=max(2, 512 // length),
            alone=length > 64,
        )
        for length in (16, 64, 256)
    ),
    *(
        Case(
            f"rows-{name}",
            SIZES,
            f"{rows:,} numbered definitions, batch 32",
            "numbered",
            rows=rows,
            max_seq_length=64,
            steps=6,
            rounds=3,
            peers=("sentence-transformers",),
        )
        for name, rows in (("1k", 1_000), ("10k", 10_000), ("100k", 100_000), ("1m", 1_000_000))
    ),
    Case(
        "contrastive-1024",
        LARGE,
        "1,024 pairs a step; the peer's cached loss takes 32 at a time",
        "debian",
        batch_size=1024,
        rows=None,
        max_seq_length=64,
        steps=1,
        warmup=1,
        rounds=3,
        mini_batch_size=32,
    ),
    Case(
        "contrastive-1024-skewed",
        LARGE,
        "the same on long texts of very different length, one step",
        "debian",
        batch_size=1024,
        rows=None,
        steps=1,
        warmup=0,
        rounds=1,
        mini_batch_size=32,
    ),
    Case(
        "frozen-3",
        FROZEN,
        "embeddings and 3 layers frozen, 3 epochs of 512 long texts",
        "debian",
        "whole",
        rows=512,
        steps=3,
        rounds=2,
        frozen_layers=3,
    ),
    Case(
        "lora",
        FROZEN,
        "LoRA of rank 8 on queries and values, long texts, batch 32",
        "debian",
        lora_r=8,
    ),
    Case(
        "head-only",
        FROZEN,
        "a new head on a frozen model, 10 epochs of 512 long texts",
        "debian",
        "whole",
        rows=512,
        steps=10,
        rounds=2,
        head_only=True,
    ),
    Case(
        "encode",
        ENCODE,
        "20,000 long descriptions, 4,000 at a time",
        "debian",
        "encode",
        rows=20_000,
        steps=4_000,
    ),
    Case(
        "start",
        START,
        "from the start of the process to the end of the first step",
        "wordnet",
        "start",
        max_seq_length=64,
        peers=("sentence-transformers",),
    ),
)


def find_cases(names: list[str]) -> list[Case]:
    """The cases of these names; all of them when there is none. Raises NotFound."""
    known = {case.name: case for case in CASES}
    for name in names:
        if name not in known:
            hint = nearest(name, known) or "luthier bench --list"
            raise NotFound("no such case", where=name, hint=hint)
    return [known[name] for name in names] or list(CASES)
