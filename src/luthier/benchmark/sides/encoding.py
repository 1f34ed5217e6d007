"""Vectors of documents: luthier's encode, or the peer's. ``python -m … JOB WHO FD``."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from luthier.benchmark.sides.peers import load_model, load_pairs, settle
from luthier.benchmark.steering import Gate
from luthier.benchmark.work import Job

Encode = Callable[[list[str]], "np.ndarray[Any, Any]"]


def main(job: Job, who: str, gate: Gate) -> None:
    """Encode block after block; the vectors of each are written for the comparison."""
    settle(job)
    documents = list(load_pairs(job)["positive"])
    gate.open()
    encode = _ours(job) if who == "luthier" else _theirs(job)
    found = []
    for rows in job.rows():
        gate.begin()
        found.append(encode([documents[row] for row in rows]))
        gate.note(0.0)
        if not gate.go_on():
            break
    np.save(Path(job.scratch) / "vectors.npy", np.concatenate(found))


def _ours(job: Job) -> Encode:
    from luthier.inference import Encoder
    from luthier.models.loading import load_text_model
    from luthier.spec import ModelSpec

    spec = ModelSpec(name=job.model, options={"max_seq_length": job.max_seq_length})
    model = load_text_model(spec, artifact=None, device="cpu")
    encoder = Encoder(model, job.case.batch_size, job.model)

    def encode(texts: list[str]) -> np.ndarray[Any, Any]:
        with torch.autocast("cpu", torch.bfloat16, enabled=job.precision == "bf16"):
            return encoder.encode(texts, normalize=True)

    return encode


def _theirs(job: Job) -> Encode:
    model = load_model(job)
    if job.precision == "bf16":
        model = model.bfloat16()

    def encode(texts: list[str]) -> np.ndarray[Any, Any]:
        found: np.ndarray[Any, Any] = model.encode(
            texts,
            batch_size=job.case.batch_size,
            normalize_embeddings=True,
            convert_to_tensor=True,
            show_progress_bar=False,
        )
        return found.float().numpy()  # type: ignore[attr-defined, no-any-return]

    return encode


if __name__ == "__main__":
    main(Job.read(sys.argv[1]), sys.argv[2], Gate(int(sys.argv[3])))
