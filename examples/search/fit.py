"""Search a learning rate and what goes with it; look at what mattered; keep the plain job.

    python examples/search/fit.py        a few minutes on two cores

The bundled encoder on the demo's definitions and words.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import yaml

import luthier
from luthier.demo.data import train_and_eval
from luthier.search import choice, conditional, loguniform, uniform


def main() -> None:
    """Eight trials, half of which go on after each rung."""
    train, held_out = train_and_eval(Path(tempfile.mkdtemp()))
    run = luthier.fit(
        "all-minilm-l6-v2",
        train,
        eval_data=held_out,
        csv_options={"size": 256},
        loss="MultipleNegativesRankingLoss",
        batch_size=32,
        epochs=4,
        search={
            "learning_rate": loguniform(1e-6, 1e-3),
            "loss_options.scale": choice([10.0, 20.0, 50.0]),
            "optimizer": conditional(
                {
                    "AdamW": {"optimizer_options.weight_decay": loguniform(1e-4, 1e-1)},
                    "SGD": {"optimizer_options.momentum": uniform(0.0, 0.95)},
                }
            ),
            "max_trials": 8,
            "pruner": "halving",
        },
        wait=True,
    )
    found = run.metrics()["search"]
    best = found["best"]
    print(f"trial {best['number']}: {best['scores']} with {best['values']}")
    for name, share in found["importance"].items():
        print(f"{share:.0%} of what mattered: {name}")
    print(f"luthier trials {run.name} --page search.html --export best.yaml")
    plain = luthier.get_run(best["run_id"]).spec
    print(yaml.safe_dump(plain.model_dump(mode="json", exclude_defaults=True)))


if __name__ == "__main__":
    main()
