"""How fast this machine multiplies matrices: what a share of the peak is a share of.

``python -m luthier.benchmark.sides.peak THREADS SECONDS`` prints JSON: operations a second in fp32
and bf16, and what multiplied.
"""

from __future__ import annotations

import json
import sys
import time

import torch

#: Square, and the two products of a feed-forward block of a small encoder on 4,096 tokens.
_SHAPES = ((2048, 2048, 2048), (4096, 384, 1536), (4096, 1536, 384))
#: Above fp32's rounding, below that of bf16: whether "medium" multiplies in fp32 here.
_EXACT = 1e-4


def _operations_per_s(dtype: torch.dtype, seconds: float) -> float:
    best = 0.0
    for rows, inner, columns in _SHAPES:
        a, b = torch.randn(rows, inner, dtype=dtype), torch.randn(columns, inner, dtype=dtype)
        torch.nn.functional.linear(a, b)
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            started = time.perf_counter()
            torch.nn.functional.linear(a, b)
            best = max(best, 2 * rows * inner * columns / (time.perf_counter() - started))
    return best


def _error() -> float:
    torch.manual_seed(0)
    a, b = torch.randn(256, 512), torch.randn(256, 512)
    exact = a.double() @ b.double().T
    return float((a @ b.T - exact).abs().max() / exact.abs().max())


def main(threads: int, seconds: float) -> dict[str, float | str]:
    """The faster of the matmuls that are fp32, and bf16's; so many seconds a shape."""
    torch.set_num_threads(threads)
    found = {}
    for word, name in (("highest", "MKL"), ("medium", "oneDNN")):
        torch.set_float32_matmul_precision(word)
        if _error() < _EXACT:
            found[name] = _operations_per_s(torch.float32, seconds)
    best = max(found, key=lambda name: found[name])
    torch.set_float32_matmul_precision("highest")
    return {
        "fp32": found[best],
        "fp32_by": best,
        "bf16": _operations_per_s(torch.bfloat16, seconds),
    }


if __name__ == "__main__":
    with torch.inference_mode():
        print(json.dumps(main(int(sys.argv[1]), float(sys.argv[2]))))
