"""What it costs that OpenMP's threads sleep, rather than spin, while they wait.

    python benchmarks/waiting.py            half a minute; run it idle, and beside other work

A transformer-like block again and again, in a process of its own for each policy.
"""

from __future__ import annotations

import os
import subprocess
import sys

BLOCK = """
import time, torch
x, w = torch.randn(1024, 384), torch.randn(384, 1536)
torch.nn.functional.gelu(x @ w)
passes, started = 0, time.perf_counter()
while time.perf_counter() - started < 8:
    torch.nn.functional.layer_norm(torch.nn.functional.gelu(x @ w) @ w.T, (384,))
    passes += 1
print(f"{passes / 8:.1f} passes a second")
"""


def main() -> None:
    """Run the block under each policy, one after the other."""
    for policy in ("ACTIVE", "PASSIVE"):
        environment = {**os.environ, "OMP_WAIT_POLICY": policy}
        found = subprocess.run(
            [sys.executable, "-c", BLOCK], env=environment, check=True, capture_output=True
        )
        print(f"{policy:8}{found.stdout.decode().strip()}")


if __name__ == "__main__":
    main()
