"""A real encoder tuned on one domain, then on a second: what it forgets, and what is kept.

    python benchmarks/continual_text.py                     some fifteen minutes on two idle cores
    python benchmarks/continual_text.py ER DER --seeds 3

all-MiniLM-L6-v2 learns Italian short descriptions of Debian packages → English long ones, then
definitions → the words they define (WordNet). 120 steps of 32 pairs of each, in-batch negatives,
64 tokens, AdamW at 1e-4. Each domain is measured by 600 queries of its own among 2,000 documents:
nDCG@10 before any training, after the first domain, and after the second, by updater. A tenth of
the pairs of the first are remembered. Seconds are those of the second update: reading, training,
measuring both domains twice, writing.
"""

from __future__ import annotations

import argparse
import csv
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from luthier.benchmark import debian
from luthier.benchmark.places import MODEL, data_folder, model_folder
from luthier.demo.data import train_and_eval
from luthier.engine.run import Place, run
from luthier.registry import find
from luthier.spec import parse_spec

UPDATERS = ("FineTuning", "L2-SP", "EWC", "LwF", "ER", "DER", "Robust-DER")
STEPS, BATCH, QUERIES, DOCUMENTS = 120, 32, 600, 2000
#: Rows that are remembered: a tenth of those that are learnt.
REMEMBERED = STEPS * BATCH // 10


def main() -> None:
    """Measure those that are asked for, and print a line each."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("updaters", nargs="*", default=UPDATERS)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--steps", type=int, default=STEPS)
    given = parser.parse_args()
    found: dict[str, list[tuple[float, float, float]]] = {}
    for seed in range(given.seeds):
        for name, scores in two_domains(given.updaters, seed, given.steps):
            found.setdefault(name, []).append(scores)
            print(f"  seed {seed} {name:12}" + _line([scores]), flush=True)
    print(
        f"\n{'':14}{'Italian':>9}{'words':>9}{'seconds':>9}   nDCG@10, mean of {given.seeds} seeds"
    )
    for name, all_scores in found.items():
        print(f"{name:14}" + _line(all_scores))


def _line(scores: list[tuple[float, float, float]]) -> str:
    mean = np.mean(scores, axis=0)
    return f"{mean[0]:9.3f}{mean[1]:9.3f}{mean[2]:9.0f}"


def two_domains(updaters: list[str], seed: int, steps: int) -> Any:
    """(name, (nDCG of the first domain, of the second, seconds)) of what is measured."""
    with tempfile.TemporaryDirectory() as folder:
        here = Path(folder)
        domains = [
            written(here / "italian", italian(), seed),
            written(here / "words", words(), seed),
        ]
        starts = {}
        for updater in updaters:
            kind = "remembering" if find("updater", updater).facts["memory"] else "plain"
            if updater in ("DER", "Robust-DER", "EWC"):
                kind = updater  # notes vectors, or what mattered, as it learns the first domain
            if kind not in starts:
                first, _ = tuned(here / f"first-{kind}", domains[0], updater, seed, steps)
                starts[kind] = first
                if len(starts) == 1:
                    yield (
                        "pretrained",
                        (
                            first.metrics["before"]["ndcg_at_k"],
                            zero_shot(here, domains[1], seed),
                            0.0,
                        ),
                    )
                    after = first.metrics["after"]["ndcg_at_k"]
            second, seconds = tuned(
                here / f"second-{updater}", domains[1], updater, seed, steps, starts[kind].folder
            )
            if len(starts) == 1 and updater == updaters[0]:
                yield "first domain", (after, second.metrics["before"]["ndcg_at_k"], 0.0)
            yield updater, (*second.metrics["update"]["by_chunk"], seconds)


def tuned(
    folder: Path, domain: Path, updater: str, seed: int, steps: int, start: Path | None = None
) -> tuple[Any, float]:
    """A run of the engine, and its seconds."""
    remembers = find("updater", updater).facts["memory"] is not None
    callback = {
        "kind": "evaluation", "query_data": {"uri": str(domain / "queries.csv")},
        "index_data": {"uri": str(domain / "documents.csv")},
    }  # fmt: skip
    spec = parse_spec({
        "model": {"name": str(model_folder(MODEL)), "options": {"max_seq_length": 64},
                  "artifact": start and str(start)},
        "data": {"train": {"uri": str(domain / "train.csv")}},
        "objective": {"loss": "MultipleNegativesRankingLoss"},
        "update": {"updater": updater} | ({"memory_size": REMEMBERED} if remembers else {}),
        "training": {"optim": "AdamW", "learning_rate": 1e-4, "max_steps": steps, "seed": seed,
                     "per_device_train_batch_size": BATCH, "eval_steps": 10**9, "device": "cpu"},
        "callbacks": [callback],
    })  # fmt: skip
    folder.mkdir()
    cache = folder.parent / "cache"
    cache.mkdir(exist_ok=True)
    started = time.perf_counter()
    found = run(spec, Place(folder, cache, Path, Path))
    return found, time.perf_counter() - started


def zero_shot(here: Path, domain: Path, seed: int) -> float:
    """nDCG@10 of the model as it is published."""
    found, _ = tuned(here / "zero-shot", domain, "FineTuning", seed, 0)
    return float(found.metrics["before"]["ndcg_at_k"])


# --- data --------------------------------------------------------------------------------------


def italian() -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """Pairs to learn from, and pairs to be found."""
    lines = debian.build(data_folder(), "it").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    return (
        [(row["query"], row["doc"]) for row in rows if row["split"] == "train"],
        [(row["query"], row["doc"]) for row in rows if row["split"] == "test"],
    )


def words() -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """The same of definitions and words. There are too few to be learnt once in 120 steps, and
    documents beyond those that are asked for come from the rows that are learnt."""
    parts = []
    for path in train_and_eval(data_folder() / "wordnet"):
        with open(path, encoding="utf-8", newline="") as file:
            parts.append([(row["query"], row["document"]) for row in csv.DictReader(file)])
    return parts[0], parts[1] + parts[0]


def written(
    folder: Path, pairs: tuple[list[tuple[str, str]], list[tuple[str, str]]], seed: int
) -> Path:
    """train.csv, queries.csv and documents.csv."""
    folder.mkdir()
    train, test = pairs
    order = np.random.default_rng(seed).permutation(len(train))
    for name, rows in {
        "train": [train[i] for i in order[: STEPS * BATCH]],
        "queries": test[:QUERIES],
        "documents": test[:DOCUMENTS],
    }.items():
        with open(folder / f"{name}.csv", "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["anchor", "positive"])
            writer.writerows(rows)
    return folder


if __name__ == "__main__":
    main()
