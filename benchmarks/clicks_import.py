"""A million sessions of ten results: seconds and peak memory of importing them.

    python benchmarks/clicks_import.py --sessions 1000000

Each format is made in a temporary folder, then imported in a process of its own, whose peak of
resident memory is what the kernel says of it.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv

RESULTS = 10
BLOCK = 50_000


def write_csv(path: Path, sessions: int) -> None:
    """Impressions, with the rows of neighbouring sessions shuffled among each other."""
    rng = np.random.default_rng(0)
    with pa.OSFile(str(path), "wb") as sink:
        writer = None
        for start in range(0, sessions, BLOCK):
            n = min(BLOCK, sessions - start)
            owner = np.repeat(np.arange(start, start + n), RESULTS)
            position = np.tile(np.arange(1, RESULTS + 1), n)
            item = rng.integers(0, 200_000, n * RESULTS)
            order = rng.permutation(n * RESULTS)
            table = pa.table(
                {
                    "session": pa.array([f"session-{i:08}" for i in owner[order]]),
                    "query": pa.array([f"query number {i % 20_000}" for i in owner[order]]),
                    "item": pa.array([f"item-{i}" for i in item[order]]),
                    "position": position[order],
                    "clicked": (rng.random(n * RESULTS) < 0.08).astype(np.int8),
                    "timestamp": 1_700_000_000 + owner[order],
                    "user": pa.array([f"user-{i % 50_000}" for i in owner[order]]),
                }
            )
            writer = writer or pa.csv.CSVWriter(sink, table.schema)
            writer.write_table(table)
        writer.close()


def write_jsonl(path: Path, sessions: int) -> None:
    """Embedding Studio's sessions."""
    rng = np.random.default_rng(0)
    with open(path, "w", encoding="utf-8") as file:
        for start in range(0, sessions, BLOCK):
            n = min(BLOCK, sessions - start)
            items = rng.integers(0, 200_000, (n, RESULTS))
            clicks = rng.random((n, RESULTS)) < 0.08
            for i in range(n):
                names = [f"item-{item}" for item in items[i]]
                record = {
                    "session_id": f"session-{start + i:08}",
                    "search_query": f"query number {(start + i) % 20_000}",
                    "user_id": f"user-{(start + i) % 50_000}",
                    "created_at": 1_700_000_000 + start + i,
                    "search_results": [
                        {"object_id": name, "rank": 1 - r / RESULTS} for r, name in enumerate(names)
                    ],
                    "events": [
                        {"event_id": f"e{r}", "object_id": names[r]}
                        for r in np.flatnonzero(clicks[i])
                    ],
                }
                file.write(json.dumps(record) + "\n")


def import_one(source: Path, destination: Path, said: multiprocessing.Queue[object]) -> None:
    """In a process of its own, so that its peak is its own."""
    from luthier.clicks.importing import import_log

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.perf_counter()
    done = import_log(source, destination)
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    said.put((done.count, done.rejected.to_dict(), seconds, before >> 10, peak >> 10))


def main() -> None:
    """Make each log, import it, and print what it took."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sessions", type=int, default=1_000_000)
    parser.add_argument("--format", choices=["csv", "jsonl"], action="append")
    words = parser.parse_args()
    spawn = multiprocessing.get_context("spawn")
    for name in words.format or ["csv", "jsonl"]:
        with tempfile.TemporaryDirectory() as folder:
            source = Path(folder) / f"log.{name}"
            {"csv": write_csv, "jsonl": write_jsonl}[name](source, words.sessions)
            said = spawn.Queue()
            process = spawn.Process(
                target=import_one, args=(source, Path(folder) / "sessions.arrow", said)
            )
            process.start()
            count, rejected, seconds, before, peak = said.get()
            process.join()
            size = source.stat().st_size >> 20
            print(
                f"{name}: {count:,} sessions of {size:,} MB in {seconds:.1f} s, "
                f"peak {peak:,} MB (at start {before:,}), rejected {rejected['count']}",
                flush=True,
            )


if __name__ == "__main__":
    main()
