"""Ten million rows: read, check, describe, split, sample batches; time and memory of each step.

    python benchmarks/data_scale.py --rows 10000000

Resident memory is given in two parts: what the process owns, and what maps files, which the
system takes back when it needs room.
"""

from __future__ import annotations

import argparse
import gc
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from luthier.data import Dataset, load_dataset, split
from luthier.data.facts import describe, overlap
from luthier.spec import CSVOptions

BLOCK = 200_000


def status() -> dict[str, int]:
    """Megabytes, by the names of /proc/self/status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return {
        line.split(":")[0]: int(line.split()[1]) >> 10 for line in lines if line.endswith(" kB")
    }


def step(name: str, work: Callable[[], Any]) -> Any:
    """Do it, and print what it cost."""
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    started, cpu = time.perf_counter(), time.process_time()
    result = work()
    seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
    now = status()
    print(
        f"| {name} | {seconds:.1f} | {cpu:.1f} "
        f"| {now['RssAnon']} | {now['RssFile']} | {now['VmHWM']} |",
        flush=True,
    )
    return result


def write(path: Path, rows: int, form: str) -> None:
    """A CSV file with quoted commas (pairs), or of 100,000 classes (labelled)."""
    random = np.random.default_rng(0)
    with open(path, "w", encoding="utf-8") as file:
        file.write({"pairs": "query,document\n", "labelled": "text,label\n"}[form])
        for start in range(0, rows, BLOCK):
            draws = random.integers(0, rows, min(BLOCK, rows - start)).tolist()
            if form == "pairs":
                file.writelines(
                    f"what is described under number {d}?,"
                    f'"passage {start + i}, which tells of number {d}, and in full"\n'
                    for i, d in enumerate(draws)
                )
            else:
                file.writelines(
                    f"a short text that has the number {start + i},class {d % 100_000}\n"
                    for i, d in enumerate(draws)
                )


def sample(dataset: Dataset, batches: int, size: int) -> None:
    """The texts of random batches."""
    random = np.random.default_rng(1)
    for _ in range(batches):
        rows = random.integers(0, len(dataset), size)
        for role in dataset.roles:
            dataset.texts(role, rows)


def measure(folder: Path, rows: int, form: str) -> None:
    """All steps on one file."""
    path = folder / f"{form}.csv"
    write(path, rows, form)
    print(f"| **{rows:,} {form}, {path.stat().st_size >> 20} MB of CSV** | | | | | |")
    step("before", lambda: None)
    step("read and check", lambda: load_dataset(path, CSVOptions(), folder / "cache"))
    data = step("open from the cache", lambda: load_dataset(path, CSVOptions(), folder / "cache"))
    step("1,000 batches of 64 texts a role", lambda: sample(data, 1000, 64))
    step("facts", lambda: describe(data))
    train, held_out = step("split off 1%", lambda: split(data, 0.01, 42))
    step("overlap", lambda: overlap(train, held_out))
    if form == "pairs":
        classes = step("classes by connected components", data.as_labelled)
        step("1,000 batches of 64 items", lambda: sample(classes, 1000, 64))


def main() -> None:
    """Read the arguments, measure, clean up."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--folder", type=Path, default=None, help="where 5 GB fit")
    chosen = parser.parse_args()
    folder = Path(tempfile.mkdtemp(dir=chosen.folder))
    try:
        print("| step | s | CPU s | own MB | mapped MB | peak MB |\n|---|---|---|---|---|---|")
        for form in ("pairs", "labelled"):
            measure(folder, chosen.rows, form)
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
