"""The pipe: a side runs so many steps and stands still; who dies is noticed on both ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from luthier.benchmark.steering import Side, SideFailed
from luthier.testing.waiting import until

#: Counts steps into a file; step 5 ends badly when a word asks for it.
PROGRAM = """
import sys
from luthier.benchmark.steering import Gate
path, mood, descriptor = sys.argv[1:]
gate = Gate(int(descriptor))
gate.open()
number = 0
while True:
    gate.begin()
    number += 1
    if number == 5 and mood == "bad":
        sys.exit("the fifth step went wrong")
    with open(path, "a") as file:
        file.write("x")
    gate.note(float(number))
    if not gate.go_on():
        break
"""


@pytest.fixture
def start(tmp_path, monkeypatch):
    """A side that runs PROGRAM, and the file in which it counts."""
    (tmp_path / "counting_side.py").write_text(PROGRAM)
    counted = tmp_path / "counted"
    counted.touch()
    sides = []

    def begin(mood="good"):
        environment = {"PYTHONPATH": str(tmp_path)}
        side = Side(
            "counting", "counting_side", [str(counted), mood], environment, tmp_path / "log"
        )
        sides.append(side)
        return side, counted

    yield begin
    for side in sides:
        side.kill()


def test_a_side_runs_so_many_steps_and_stands_still(start):
    side, counted = start()
    first = side.run(3)
    assert first.losses == [1.0, 2.0, 3.0]
    assert side.started_at < side.begun_at < first.at
    assert counted.read_text() == "xxx"
    second = side.run(2, reset_peak=True)
    assert second.losses == [4.0, 5.0]
    assert counted.read_text() == "xxxxx"
    assert 0 < second.peak_bytes <= first.peak_bytes + 2**20
    side.end()


def test_standing_still_is_not_counted(start):
    side, _ = start()
    side.run(1)
    began = time.perf_counter()
    period = side.run(1)
    assert 0 < period.seconds <= time.perf_counter() - began


def test_a_side_that_fails_is_said_with_its_last_words(start):
    side, _ = start("bad")
    side.run(4)
    with pytest.raises(SideFailed, match="the fifth step went wrong"):
        side.run(1)


def test_a_side_that_is_killed_is_noticed(start):
    side, _ = start()
    side.run(1)
    os.kill(side._process.pid, signal.SIGKILL)
    with pytest.raises(SideFailed, match="ended before it should"):
        side.run(1)


def test_a_side_ends_when_nobody_steers_it_any_more(start, tmp_path):
    """The steering process is killed: no side is left behind."""
    start()  # writes the program; this one is not used
    steer = f"""
import os, signal
from pathlib import Path
from luthier.benchmark.steering import Side
side = Side("counting", "counting_side", ["{tmp_path}/other", "good"],
            {{"PYTHONPATH": "{tmp_path}"}}, Path("{tmp_path}/log2"))
side.run(1)
print(side._process.pid, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run(
        [sys.executable, "-c", steer], capture_output=True, text=True, check=False
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    pid = int(done.stdout)
    until(lambda: not _runs(pid), deadline_s=20)


def _runs(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] not in ("Z", "X")
    except FileNotFoundError:
        return False
