"""Does correcting a log's position bias give the model that the truth would have given?

    python benchmarks/clicks_debiasing.py             one seed of each side, some nine minutes of
                                                      one core
    python benchmarks/clicks_debiasing.py --seeds 5 --also-without 2 --write
                                                      writes docs/clicks-benchmark.md, and .json
                                                      with what has been measured: it is not again

Real texts: short descriptions of Debian packages in Italian ask for long ones in English
(``--corpus debian-it``), or definitions of WordNet for their words (``wordnet``). A lexical ranker
that prefers short documents, whatever is asked, and whose scores are disturbed anew each time shows
ten; a position-based model clicks, with examination 1 / rank^eta. All sides learn from the same
log, but for the truth:

truth       the relevance behind the log
ips         clicks over propensities, which are estimated from this log
naive       clicks over impressions
recipe      sentence-transformers: clicked pairs, MultipleNegativesRankingLoss, its own trainer

What the ranker prefers stands on top, is looked at and clicked: whoever takes clicks for relevance
learns the preference, for queries that nobody has asked yet as well. Without a preference
(``--preference 0``) a lexical ranker is mostly right, position says what relevance says, and naive
clicks do little harm; that is printed and written as well with ``--also-without``.

Measured is nDCG@10 of held-out queries over all documents.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import numpy as np

from luthier.benchmark import corpora, debian
from luthier.clicks.click_models import PositionBased
from luthier.clicks.propensity import expectation_maximization
from luthier.clicks.query_rankings import (
    ByQuery,
    known_by_query,
    relevance_by_query,
    to_query_rankings,
)
from luthier.clicks.simulate import Collection, Simulated, simulate

HEAD = """# Clicks: debiased beside naive

<!-- written by: python benchmarks/clicks_debiasing.py --seeds 5 --also-without 2 --write -->

Does correcting a log for position give the model that the truth would have given? Italian short
descriptions of Debian packages ask for English long ones. A lexical ranker shows ten documents, a
position-based model clicks, and all sides learn from that one log, by the same loss: `truth` the
relevance behind it, `ips` clicks over looks, by propensities that are estimated from the log,
`naive` clicks over impressions. `recipe` is sentence-transformers' trainer on clicked pairs with
in-batch negatives. Intervals are Student's t over seeds; differences are paired.

"""
TAIL = """

A ranker with a preference makes clicks wrong in a way that texts show, and whoever learns from
clicks as they are learns it: the naive model is no better than the one it started from. Where the
ranker is mostly right, position says what relevance says, and naive clicks do little harm.
"""
PAGE = Path(__file__).parents[1] / "docs" / "clicks-benchmark.md"
MEASURED = PAGE.with_suffix(".json")
SIDES = ("truth", "ips", "naive", "recipe")
MODEL = "all-minilm-l6-v2"
#: Words that say what to do, not with what.
NO_SETTINGS = {"seeds", "first_seed", "threads", "write", "also_without"}


def main() -> None:
    words = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    words.add_argument("--corpus", default="debian-it", choices=["debian-it", "wordnet", "debian"])
    words.add_argument("--queries", type=int, default=300, help="to train on; as many to test")
    words.add_argument("--documents", type=int, default=1500)
    words.add_argument("--preference", type=float, default=4.0, help="for short documents")
    words.add_argument("--also-without", type=int, default=0, metavar="SEEDS",
                       help="a table without a preference, of so many seeds")  # fmt: skip
    words.add_argument("--strength", type=float, default=5.0)
    words.add_argument("--certainty", type=float, default=2.0, help="standard errors, all sides")
    words.add_argument("--sessions", type=int, default=2_000_000)
    words.add_argument("--eta", type=float, default=2.0)
    words.add_argument("--noise", type=float, default=1.0)
    words.add_argument("--attraction", type=float, nargs=2, default=(0.1, 0.9))
    words.add_argument("--steps", type=int, default=100)
    words.add_argument("--batch", type=int, default=8)
    words.add_argument("--rate", type=float, default=1e-4)
    words.add_argument("--temperature", type=float, default=0.05)
    words.add_argument("--fixed", type=int, default=4, help="lowest layers that do not train")
    words.add_argument("--length", type=int, default=24, help="tokens of a text")
    words.add_argument("--seeds", type=int, default=1)
    words.add_argument("--first-seed", type=int, default=0)
    words.add_argument("--sides", nargs="+", default=list(SIDES), choices=SIDES)
    words.add_argument("--threads", type=int, default=2)
    words.add_argument("--write", action="store_true")
    given = words.parse_args()
    text = HEAD
    known = Known(MEASURED) if given.write else Known(None)
    for preference, seeds in ((given.preference, given.seeds), (0.0, given.also_without)):
        if not seeds:
            continue
        given.preference = preference
        results: list[dict[str, Any]] = []
        for seed in range(given.first_seed, given.first_seed + seeds):
            results.append(known.result(given, seed))
            print(json.dumps(results[-1]), flush=True)
        text += section(given, results) + "\n"
    print(text)
    if given.write:
        PAGE.write_text(text.rstrip() + TAIL, encoding="utf-8")


class Known:
    """What has been measured, by what it was measured with."""

    def __init__(self, file: Path | None) -> None:
        self.file = file

    def result(self, given: argparse.Namespace, seed: int) -> dict[str, Any]:
        """Of one seed: from the file, or measured and put there."""
        settings = {k: v for k, v in vars(given).items() if k not in NO_SETTINGS} | {"seed": seed}
        key = json.dumps(settings, sort_keys=True)
        if key in (found := self.read()):
            return found[key]
        told = one_seed(given, seed, Path(".luthier/benchmarks"))
        if self.file is not None:
            found = self.read() | {key: told}
            rows = [json.loads(k) | {"found": v} for k, v in sorted(found.items())]
            self.file.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
        return told

    def read(self) -> dict[str, dict[str, Any]]:
        if self.file is None or not self.file.exists():
            return {}
        rows = json.loads(self.file.read_text(encoding="utf-8"))
        return {json.dumps(row, sort_keys=True): found for row in rows
                if (found := row.pop("found"))}  # fmt: skip


def pairs_of(corpus: str, cache: Path) -> list[tuple[str, str]]:
    if corpus == "debian-it":
        with open(debian.build(cache, "it"), encoding="utf-8") as lines:
            rows = [json.loads(line) for line in lines]
        return [(row["query"], row["doc"]) for row in rows]
    with open(corpora.corpus(corpus, None, cache), encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    return [(row["anchor"], row["positive"]) for row in rows]


def one_seed(given: argparse.Namespace, seed: int, cache: Path) -> dict[str, Any]:
    """nDCG@10 of each side by one draw of queries, log and training."""
    pairs = pairs_of(given.corpus, cache)
    random.Random(seed).shuffle(pairs)
    held, pairs = pairs[: given.queries], pairs[given.queries : given.documents]
    collection = asked(pairs, given)
    documents = [d for _, d in pairs]
    people = PositionBased.eta_decay(10, eta=given.eta)
    log = simulate(
        collection, people, sessions=given.sessions, results=10, noise=given.noise,
        attraction=tuple(given.attraction), seed=seed,
        preference=given.preference * shortness(collection.documents),
    )  # fmt: skip
    found = expectation_maximization(log.sessions, log.clicked)
    off = float(np.abs(np.log(found.values / people.examination)).max())
    items = dict(zip(collection.names, collection.documents, strict=True))
    truth = relevance_of("truth", log, found, given).relevance > 0
    told: dict[str, Any] = {"seed": seed, "propensity_log_error": round(off, 3)}
    told |= {"clicks": int(log.clicked.sum()), "queries": len(collection.queries)}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        told["untuned"] = measured(untuned(given), documents, held)
        for side in given.sides:
            started = time.perf_counter()
            if side == "recipe":
                model = recipe(given, log, items, seed, folder)
            else:
                file = folder / f"{side}.arrow"
                by_query = relevance_of(side, log, found, given)
                to_query_rankings(
                    log.sessions, by_query, items, file, certainty=given.certainty
                )  # fmt: skip
                told[f"{side}_right"] = right(by_query, truth, given.certainty)
                model = ours(given, file, seed, folder)
            told[side] = measured(model, documents, held)
            told[f"{side}_s"] = round(time.perf_counter() - started, 1)
    return told


def asked(pairs: list[tuple[str, str]], given: argparse.Namespace) -> Collection:
    """The first queries; all documents are candidates."""
    whole = Collection.of_pairs(pairs)
    return Collection(
        whole.queries[: given.queries], whole.documents, whole.names,
        whole.relevant[: given.queries],
    )  # fmt: skip


def shortness(documents: Sequence[str]) -> np.ndarray:
    """How short each document is, by the logarithm of its words, with mean 0 and deviation 1."""
    lengths = -np.log([1 + len(document.split()) for document in documents])
    return (lengths - lengths.mean()) / lengths.std()


def relevance_of(side: str, log: Simulated, found: Any, given: argparse.Namespace) -> ByQuery:
    """Of each query and item: what a side takes for its relevance."""
    if side == "truth":
        return known_by_query(log.sessions, log.attraction > np.mean(given.attraction))
    looked = found.at(log.sessions.positions) if side == "ips" else None
    return relevance_by_query(log.sessions, log.clicked, looked, strength=given.strength)


def right(found: ByQuery, truth: np.ndarray, certainty: float) -> float:
    """Of what a side takes for relevant, the share that is."""
    values = found.above_mean(certainty)
    return round(float(values[truth].sum() / values.sum()), 3)


def ours(given: argparse.Namespace, file: Path, seed: int, folder: Path) -> Any:
    """The model that luthier tunes on rankings."""
    import torch

    from luthier.engine.run import Place, run
    from luthier.models.loading import open_text_model
    from luthier.spec import parse_spec

    torch.set_num_threads(given.threads)
    spec = parse_spec(
        {
            "model": {"name": MODEL, "num_fixed_layers": given.fixed,
                      "options": {"max_seq_length": given.length}},
            "data": {"train": {"uri": str(file)}},
            "objective": {"loss": "ListwiseSoftmaxLoss",
                          "loss_options": {"temperature": given.temperature}},
            "training": {
                "per_device_train_batch_size": given.batch, "max_steps": given.steps,
                "learning_rate": given.rate, "lr_scheduler_type": "linear", "warmup_ratio": 0.1,
                "seed": seed, "device": "cpu",
            },
        }
    )  # fmt: skip
    place = Place(folder / f"run-{file.stem}", folder / "cache", Path, Path)
    place.folder.mkdir()
    return open_text_model(run(spec, place).folder, device="cpu")


def untuned(given: argparse.Namespace) -> Any:
    """The model that all start from."""
    from luthier.models.loading import load_text_model
    from luthier.spec import ModelSpec

    spec = ModelSpec(name=MODEL, options={"max_seq_length": given.length})
    return load_text_model(spec, artifact=None, device="cpu")


def measured(model: Any, documents: list[str], held: list[tuple[str, str]]) -> float:
    """nDCG@10 of the held-out queries over all documents."""
    documents = list(dict.fromkeys([*documents, *(d for _, d in held)]))
    place = {d: i for i, d in enumerate(documents)}
    relevant: dict[str, set[int]] = {}
    for query, document in held:
        relevant.setdefault(query, set()).add(place[document])
    vectors = np.asarray(model.encode(documents))
    queries = np.asarray(model.encode(list(relevant)))
    queries /= np.linalg.norm(queries, axis=1, keepdims=True)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    scores = []
    for row, right in zip(queries @ vectors.T, relevant.values(), strict=True):
        top = np.argsort(-row, kind="stable")[:10]
        gain = sum(1 / np.log2(r + 2) for r, d in enumerate(top) if d in right)
        scores.append(gain / sum(1 / np.log2(r + 2) for r in range(min(10, len(right)))))
    return round(float(np.mean(scores)), 4)


def recipe(
    given: argparse.Namespace, log: Simulated, items: dict[str, str], seed: int, folder: Path
) -> Any:
    """What people do: clicked is positive, the batch's others are negatives."""
    import torch
    from datasets import Dataset
    from sentence_transformers import (
        SentenceTransformer,
        SentenceTransformerTrainer,
        SentenceTransformerTrainingArguments,
    )
    from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
    from sentence_transformers.sentence_transformer.training_args import BatchSamplers

    from luthier.models.catalog import resolve

    torch.set_num_threads(given.threads)
    sessions = log.sessions
    at = np.flatnonzero(log.clicked)
    random.Random(seed).shuffle(found := at.tolist())
    found = found[: given.steps * given.batch * 2]  # no more than the steps will see
    rows = {
        "anchor": [sessions.query_texts[sessions.query_codes[sessions.owner[i]]] for i in found],
        "positive": [items[sessions.item_names[sessions.item_codes[i]]] for i in found],
    }
    model = SentenceTransformer(str(resolve(MODEL).path or MODEL), device="cpu")
    model.max_seq_length = given.length
    encoder = model[0].model
    encoder.embeddings.requires_grad_(False)
    for layer in encoder.encoder.layer[: given.fixed]:
        layer.requires_grad_(False)
    arguments = SentenceTransformerTrainingArguments(
        output_dir=str(folder / "recipe"), max_steps=given.steps, learning_rate=given.rate,
        per_device_train_batch_size=given.batch, seed=seed, warmup_steps=0.1, use_cpu=True,
        save_strategy="no", report_to="none", disable_tqdm=True, logging_strategy="no",
        batch_sampler=BatchSamplers.NO_DUPLICATES,
    )  # fmt: skip
    trainer = SentenceTransformerTrainer(
        model=model, args=arguments, train_dataset=Dataset.from_dict(rows),
        loss=MultipleNegativesRankingLoss(model),
    )  # fmt: skip
    trainer.train()
    return model


def section(given: argparse.Namespace, results: list[dict[str, Any]]) -> str:
    """A table, with intervals over seeds (Student's t)."""
    sides = [side for side in ("untuned", *SIDES) if all(side in r for r in results)]
    title = "A ranker that prefers short documents" if given.preference else "No preference"
    lines = [
        f"## {title}", "",
        f"{given.corpus}: {results[0]['queries']:,} queries in a log of {given.sessions:,} "
        f"searches, ten results each; examination 1 / rank^{given.eta:g}, attraction "
        f"{given.attraction[1]:g} of what is relevant and {given.attraction[0]:g} of what is not, "
        f"preference {given.preference:g}, disturbance {given.noise:g}. "
        f"{MODEL}, lowest {given.fixed} layers fixed, texts cut at {given.length} tokens, "
        f"{given.steps} steps of {given.batch}, {len(results)} seeds. nDCG@10 of "
        f"{given.queries:,} held-out queries over {given.documents:,} documents. Right: of what a "
        "side takes for relevant, the share that is.", "",
        "| side | right | nDCG@10 | 95% interval | to the truth | to the recipe |",
        "|---|---:|---:|---|---|---|",
    ]  # fmt: skip
    for side in sides:
        values = np.array([r[side] for r in results])
        others = [signed(values - np.array([r.get(other, np.nan) for r in results]))
                  if side != other else "" for other in ("truth", "recipe")]  # fmt: skip
        share = [r[f"{side}_right"] for r in results if f"{side}_right" in r]
        cells = [side, f"{np.mean(share):.2f}" if share else "", f"{values.mean():.3f}",
                 spread(values), *others]  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    off = max(r["propensity_log_error"] for r in results)
    said = (
        f"Propensities as estimated from the log are within a factor of {np.exp(off):.2f} of the "
    )
    lines += ["", said + "true ones at every rank, in every seed.", ""]
    return "\n".join(lines)


def spread(values: np.ndarray) -> str:
    if len(values) < 2:
        return ""
    from scipy import stats

    half = stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / len(values) ** 0.5
    return f"{values.mean() - half:.3f} to {values.mean() + half:.3f}"


def signed(apart: np.ndarray) -> str:
    interval = spread(apart)
    return f"{apart.mean():+.3f}" + (f" ({interval})" if interval else "")


if __name__ == "__main__":
    main()
