"""A small world for tests of tuning: queries, documents, and what people click of them."""

import json
import os
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

from luthier.clicks.click_models import PositionBased
from luthier.clicks.simulate import Collection, simulate
from luthier.clicks.writing import write_sessions


def write_world(folder: Path, pairs: int = 160, sessions: int = 1200) -> list[dict[str, str]]:
    """log.jsonl and items.jsonl. A document has the first word of its query, and others."""
    texts = [(f"word{i} word{i % 7}", f"text {i} of word{i} and word{i % 3}") for i in range(pairs)]
    collection = Collection.of_pairs(texts)
    log = simulate(collection, PositionBased.eta_decay(5), sessions=sessions, results=5, noise=2.0)
    write_sessions(log.sessions, folder / "log.jsonl")
    items = [
        {"id": name, "text": text}
        for name, text in zip(collection.names, collection.documents, strict=True)
    ]
    (folder / "items.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))
    return items


def environment(home: Path) -> dict[str, str]:
    """Of commands: a home of their own, and no worker but the one that is started."""
    return {
        **os.environ, "LUTHIER_HOME": str(home), "LUTHIER_WORKER": "none",
        "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false",
    }  # fmt: skip


@contextmanager
def a_worker(home: Path):
    """A real worker process of that home."""
    log = home.parent / "worker.log"
    with open(log, "w") as file:
        worker = subprocess.Popen(
            [sys.executable, "-m", "luthier", "worker"], env=environment(home), stdout=file,
            stderr=file,
        )  # fmt: skip
    try:
        yield worker
    finally:
        worker.terminate()
        assert worker.wait(timeout=120) == 0, log.read_text()
