"""What it is worth how long OpenMP's threads spin while they wait, alone and beside other work.

    python benchmarks/waiting.py            two minutes, on an idle machine

A transformer-like block for texts of few tokens, again and again, in a process of its own for
each setting; then the same beside as many busy processes as there are cores.
"""

from __future__ import annotations

import contextlib
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator

#: GOMP_SPINCOUNT: never, as workers set it, and what GNU's OpenMP does when nothing is said.
SPINS = ("0", "10000", "300000")
ROUNDS = 3

BLOCK = """
import time, torch
x, w = torch.randn(640, 384), torch.randn(384, 1536)
small = torch.randn(64, 12, 20, 32)
torch.nn.functional.gelu(x @ w)
passes, started = 0, time.perf_counter()
while time.perf_counter() - started < 4:
    torch.nn.functional.layer_norm(torch.nn.functional.gelu(x @ w) @ w.T, (384,))
    torch.softmax(small @ small.transpose(-1, -2), -1) @ small
    passes += 1
print(passes / 4)
"""


@contextlib.contextmanager
def busy(processes: int) -> Iterator[None]:
    """Processes that want a core each."""
    running = [subprocess.Popen([sys.executable, "-c", "while True: 0"]) for _ in range(processes)]
    try:
        yield
    finally:
        for process in running:
            process.kill()
            process.wait()


def passes(spins: str) -> float:
    """Blocks a second."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("OMP_", "GOMP_"))}
    found = subprocess.run(
        [sys.executable, "-c", BLOCK],
        env=environment | {"GOMP_SPINCOUNT": spins},
        check=True,
        capture_output=True,
    )
    return float(found.stdout)


def main() -> None:
    """Measure every setting in turn, round by round; print the medians."""
    cores = os.cpu_count() or 1
    for beside in (0, cores):
        with busy(beside):
            found: dict[str, list[float]] = {spins: [] for spins in SPINS}
            for _ in range(ROUNDS):
                for spins in SPINS:
                    found[spins].append(passes(spins))
        print(f"beside {beside} busy processes, blocks a second:")
        for spins, rates in found.items():
            print(f"  GOMP_SPINCOUNT={spins:7} {statistics.median(rates):8.1f}")


if __name__ == "__main__":
    main()
