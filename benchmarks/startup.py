"""From fit() to the first training step, part by part.

    python benchmarks/startup.py            about twenty seconds

Two runs in a new home: the first starts a worker, which loads torch and its kin; the second
finds it warm. Shown is the time of each part, and what is left beside loading model and data.
"""

from __future__ import annotations

import os
import tempfile
import time

os.environ.setdefault("HF_HUB_OFFLINE", "1")

PAIRS = [{"anchor": f"a question about {i}", "positive": f"the answer to {i}"} for i in range(512)]


def measure(name: str) -> None:
    """Submit a run, wait for its first step, and print what took how long."""
    import luthier

    asked = time.time()
    run = luthier.fit(
        "all-minilm-l6-v2",
        PAIRS,
        loss="MultipleNegativesRankingLoss",
        batch_size=8,
        max_steps=2,
        run_name=name,
        device="cpu",
    )
    returned = time.time()
    run.wait(progress=False)
    at = {}
    for event in run.events():
        key = event.data.get("status") or event.data.get("name") or event.kind
        at.setdefault(key, event.at)
    loading = at["preflight"] - at["loading the model"]
    reading = at["loading the model"] - at["reading the data"]
    total = at["training"] - asked
    print(
        f"{name:5} fit() returned after {returned - asked:.2f} s; claimed after "
        f"{at['STARTED'] - asked:.2f} s; data {reading:.2f} s; model and pre-flight "
        f"{loading:.2f} s; training from {total:.2f} s; "
        f"beside loading {total - loading - reading:.2f} s"
    )


def main() -> None:
    """A cold start, then a warm one."""
    import luthier

    with tempfile.TemporaryDirectory() as folder:
        luthier.connect(folder)
        measure("cold")
        measure("warm")


if __name__ == "__main__":
    main()
