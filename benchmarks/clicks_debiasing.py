"""Does correcting a log's position bias give the model that the truth would have given?

    python benchmarks/clicks_debiasing.py                    one seed of each side
    python benchmarks/clicks_debiasing.py --seeds 5 --write  writes docs/clicks-benchmark.md

Real texts: short descriptions of Debian packages in Italian ask for long ones in English
(``--corpus debian-it``), or definitions of WordNet for their words (``wordnet``). A lexical ranker
whose scores are disturbed anew each time shows ten; a position-based model clicks, with
examination 1 / rank^eta. All sides learn from the same log, but for the truth:

truth       the relevance behind the log
ips         clicks over propensities, which are estimated from this log
naive       clicks over impressions
recipe      sentence-transformers: clicked pairs, MultipleNegativesRankingLoss, its own trainer

The log is of queries that the lexical ranker does not answer: without the disturbance it has
what is relevant from rank ``--worst`` on. There position and relevance say opposite things; where
a ranker is right already, its positions are a good teacher, and naive clicks do no harm.

Measured is nDCG@10 of held-out queries over all documents.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import numpy as np

from luthier.benchmark import corpora, debian
from luthier.clicks.click_models import PositionBased
from luthier.clicks.propensity import expectation_maximization
from luthier.clicks.query_rankings import relevance_by_query, to_query_rankings
from luthier.clicks.simulate import Collection, Simulated, _Ranker, simulate

PAGE = Path(__file__).parents[1] / "docs" / "clicks-benchmark.md"
SIDES = ("truth", "ips", "naive", "recipe")
MODEL = "all-minilm-l6-v2"


def main() -> None:
    words = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    words.add_argument("--corpus", default="debian-it", choices=["debian-it", "wordnet", "debian"])
    words.add_argument("--queries", type=int, default=400, help="to train on; as many to test")
    words.add_argument("--documents", type=int, default=3000)
    words.add_argument("--worst", type=int, default=3, help="best lexical rank of the relevant")
    words.add_argument("--strength", type=float, default=2.0)
    words.add_argument("--sessions", type=int, default=80_000)
    words.add_argument("--eta", type=float, default=2.0)
    words.add_argument("--noise", type=float, default=0.5)
    words.add_argument("--attraction", type=float, nargs=2, default=(0.1, 0.9))
    words.add_argument("--steps", type=int, default=150)
    words.add_argument("--batch", type=int, default=16)
    words.add_argument("--rate", type=float, default=1e-4)
    words.add_argument("--temperature", type=float, default=0.05)
    words.add_argument("--fixed", type=int, default=4, help="lowest layers that do not train")
    words.add_argument("--length", type=int, default=32, help="tokens of a text")
    words.add_argument("--seeds", type=int, default=1)
    words.add_argument("--sides", nargs="+", default=list(SIDES), choices=SIDES)
    words.add_argument("--threads", type=int, default=2)
    words.add_argument("--write", action="store_true")
    given = words.parse_args()
    cache = Path(".luthier/benchmarks")
    results: list[dict[str, Any]] = []
    for seed in range(given.seeds):
        result = one_seed(given, seed, cache)
        results.append(result)
        print(json.dumps(result), flush=True)
    text = page(given, results)
    print(text)
    if given.write:
        PAGE.write_text(text, encoding="utf-8")


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
    collection = unanswered(pairs, given)
    documents = [d for _, d in pairs]
    people = PositionBased.eta_decay(10, eta=given.eta)
    log = simulate(
        collection, people, sessions=given.sessions, results=10, noise=given.noise,
        attraction=tuple(given.attraction), seed=seed,
    )  # fmt: skip
    found = expectation_maximization(log.sessions, log.clicked)
    off = float(np.abs(np.log(found.values / people.examination)).max())
    items = dict(zip(collection.names, collection.documents, strict=True))
    told: dict[str, Any] = {"seed": seed, "propensity_log_error": round(off, 3)}
    told |= {"clicks": int(log.clicked.sum()), "queries": len(collection.queries)}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        held_out(folder, documents, held)
        for side in given.sides:
            started = time.perf_counter()
            if side == "recipe":
                model = recipe(given, log, items, seed, folder)
            else:
                file = folder / f"{side}.arrow"
                to_query_rankings(log.sessions, relevance_of(side, log, found, given), items, file)
                model, before = ours(given, file, seed, folder)
                told["untuned"] = before
            told[side] = measured(model, documents, held)
            told[f"{side}_s"] = round(time.perf_counter() - started, 1)
    return told


def unanswered(pairs: list[tuple[str, str]], given: argparse.Namespace) -> Collection:
    """Queries whose relevant document the lexical ranker shows, but not at the top; all documents
    are candidates."""
    whole = Collection.of_pairs(pairs)
    ranker = _Ranker(whole, 10)
    rank = np.full(len(whole.queries), 99)
    for number, relevant in enumerate(whole.relevant):
        found = np.flatnonzero(np.isin(ranker.candidates[number], relevant))
        rank[number] = found[0] + 1 if len(found) else 99
    chosen = np.flatnonzero((rank >= given.worst) & (rank <= 10))[: given.queries]
    return Collection(
        tuple(whole.queries[i] for i in chosen), whole.documents, whole.names,
        tuple(whole.relevant[i] for i in chosen),
    )  # fmt: skip


def relevance_of(side: str, log: Simulated, found: Any, given: argparse.Namespace) -> Any:
    """Of each query and item: what a side takes for its relevance."""
    if side == "truth":
        return relevance_by_query(log.sessions, log.attraction > np.mean(given.attraction))
    looked = found.at(log.sessions.positions) if side == "ips" else None
    return relevance_by_query(log.sessions, log.clicked, looked, strength=given.strength)


def ours(given: argparse.Namespace, file: Path, seed: int, folder: Path) -> tuple[Any, float]:
    """The model that luthier tunes on rankings, and the nDCG@10 of the untuned one."""
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
            "callbacks": [{"kind": "evaluation", "query_data": {"uri": str(folder / "held.jsonl")},
                           "index_data": {"uri": str(folder / "index.jsonl")},
                           "exclude_self": False}],
        }
    )  # fmt: skip
    place = Place(folder / f"run-{file.stem}", folder / "cache", Path, Path)
    place.folder.mkdir()
    outcome = run(spec, place)
    model = open_text_model(outcome.folder, device="cpu")
    return model, round(outcome.metrics["before"]["ndcg_at_k"], 4)


def held_out(folder: Path, documents: list[str], held: list[tuple[str, str]]) -> None:
    """Queries that nobody trained on, over the documents of all."""
    write(folder / "held.jsonl", [{"anchor": q, "positive": d} for q, d in held])
    everything = [*documents, *(d for _, d in held)]
    write(folder / "index.jsonl", [{"anchor": d[:20], "positive": d} for d in everything])


def write(file: Path, rows: list[dict[str, Any]]) -> None:
    file.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")


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


def page(given: argparse.Namespace, results: list[dict[str, Any]]) -> str:
    """The table, with intervals over seeds (Student's t)."""
    sides = [side for side in ("untuned", *SIDES) if all(side in r for r in results)]
    lines = [
        "# Clicks: debiased beside naive", "",
        "<!-- written by: python benchmarks/clicks_debiasing.py --seeds 5 --write -->", "",
        f"{given.corpus}: {results[0]['queries']:,} queries in a log of {given.sessions:,} "
        "searches, ten results each, by a lexical ranker; "
        f"examination 1 / rank^{given.eta:g}, attraction "
        f"{given.attraction[1]:g} of what is relevant and {given.attraction[0]:g} of what is not. "
        f"{MODEL}, lowest {given.fixed} layers fixed, texts cut at {given.length} tokens, "
        f"{given.steps} steps of {given.batch}, {len(results)} seeds. nDCG@10 of "
        f"{given.queries:,} held-out queries over {given.documents:,} documents.", "",
        "| side | nDCG@10 | 95% interval | to the truth |", "|---|---|---|---|",
    ]  # fmt: skip
    for side in sides:
        values = np.array([r[side] for r in results])
        apart = values - np.array([r.get("truth", np.nan) for r in results])
        lines.append(f"| {side} | {values.mean():.3f} | {spread(values)} | {signed(apart)} |")
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
