"""Hostile files do not fill the memory. Measured in a process of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

#: Megabytes above what the imports take (row 17 of the promises: 64).
ALLOWED = 64

PROGRAM = """
import sys
from pathlib import Path
from luthier.data import load_dataset
from luthier.errors import DataError
from luthier.spec import CSVOptions
import pyarrow.csv, pyarrow.parquet

def status(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) >> 10

path, cache = Path(sys.argv[1]), Path(sys.argv[2])
before = status("VmRSS")
Path("/proc/self/clear_refs").write_text("5")
try:
    load_dataset(path, CSVOptions(), cache)
except DataError as error:
    print(status("VmHWM") - before, error.row)
"""


def grown(path: Path) -> tuple[int, str]:
    """(megabytes at the highest above the start, the row of the refusal)"""
    command = [sys.executable, "-c", PROGRAM, str(path), str(path.parent / "cache")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    megabytes, row = done.stdout.split()
    return int(megabytes), row


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/status")
@pytest.mark.parametrize("name", ["line.csv", "line.jsonl", "line.json"])
def test_a_huge_line_of_zeros(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    with open(path, "wb") as file:
        file.truncate(1 << 28)  # takes no room on the disk
    megabytes, row = grown(path)
    assert megabytes <= ALLOWED
    assert row == "1"


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/status")
@pytest.mark.parametrize("ending", ["csv", "jsonl", "json"])
@pytest.mark.parametrize("repeated", ["a", "a,", '"', 'ab "', "[", '{"text": "a", '])
def test_a_huge_line_of_anything(tmp_path: Path, ending: str, repeated: str) -> None:
    path = tmp_path / f"line.{ending}"
    block = repeated.encode() * (1 << 20)
    with open(path, "wb") as file:
        while file.tell() < 300 << 20:
            file.write(block)
    megabytes, row = grown(path)
    assert megabytes <= ALLOWED
    assert row == "1"
