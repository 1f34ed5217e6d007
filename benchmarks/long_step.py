"""What a training step on long texts of one length costs, and what keeping freed memory is worth.

    python benchmarks/long_step.py                 32 texts of 256 tokens
    python benchmarks/long_step.py --texts 16 --tokens 512

CPU seconds of one thread, forward and backward, the least of four steps, and page faults of the
last; each setting in a process of its own.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import time


def main() -> None:
    """Both settings, one after another."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--texts", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--setting", choices=["given back", "kept"], help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.setting:
        print(f"{given.setting:12}{measured(given.texts, given.tokens, given.setting == 'kept')}")
        return
    for setting in ("given back", "kept"):
        subprocess.run([sys.executable, *sys.argv, "--setting", setting], check=True)


def measured(texts: int, tokens: int, keep: bool) -> str:
    """Seconds and page faults of a step of MiniLM, packed, with dropout."""
    import numpy as np
    import torch

    from luthier.models.allocator import keep_freed_memory
    from luthier.models.dropout import set_fast_dropout
    from luthier.models.loading import load_text_model
    from luthier.models.tokens import Tokens
    from luthier.spec import ModelSpec

    if keep and not keep_freed_memory():
        return "cannot be had here"
    torch.set_num_threads(1)
    model = load_text_model(ModelSpec(name="all-minilm-l6-v2"), artifact=None, device="cpu")
    model.execution = "packed"
    set_fast_dropout(model, True)
    model.train()
    ids = np.random.default_rng(0).integers(1000, 20_000, texts * tokens).astype(np.int32)
    batch = Tokens(ids, np.full(texts, tokens, dtype=np.int64))
    seconds, faults = [], 0
    for _ in range(4):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        started = time.process_time()
        model.zero_grad()
        torch.autograd.backward([model.embed(batch).square().sum()])
        seconds.append(time.process_time() - started)
        faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
    return f"{min(seconds):.2f} s, {faults:,} page faults"


if __name__ == "__main__":
    main()
