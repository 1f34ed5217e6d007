"""Attention without dropout on a CPU: matrix products beside torch's fused kernel, by length.

    python benchmarks/attention.py                a minute on one thread
    python benchmarks/attention.py --precision bf16

Twelve heads of width 32, 2,048 tokens in texts that differ by an eighth in length, so that most
share a padded block, as in practice. Printed are milliseconds of processor time, the least of
seven, forward alone and with its gradients. ``models/attention.py`` takes products up to the length
where they stop to gain.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import torch

from luthier.models import attention
from luthier.models.blocks import blocks_of

TOKENS, HEADS, WIDTH, ROUNDS = 2048, 12, 32, 7
NEVER, ALWAYS = dict.fromkeys((True, False), 0), dict.fromkeys((True, False), 1 << 20)


def main() -> None:
    """Measure each length, and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--matmul", choices=["highest", "medium"], default="medium",
                        help="torch's float32_matmul_precision: medium takes oneDNN")  # fmt: skip
    given = parser.parse_args()
    torch.set_float32_matmul_precision(given.matmul)
    torch.set_num_threads(given.threads)
    dtype = torch.bfloat16 if given.precision == "bf16" else torch.float32
    print(f"{'tokens':>8}" + 2 * f"{'products':>12}{'fused':>8}{'ratio':>7}")
    print(f"{'':8}{'forward alone':>27}{'with gradients':>27}")
    for longest in (32, 64, 128, 256, 512, 1024, 2048):
        row = [measured(longest, dtype, gradients) for gradients in (False, True)]
        cells = (f"{products:12.1f}{fused:8.1f}{fused / products:7.2f}" for products, fused in row)
        print(f"{longest:8}" + "".join(cells))


def measured(longest: int, dtype: torch.dtype, gradients: bool) -> tuple[float, float]:
    """Milliseconds in products and by the fused kernel, in turns."""
    random = np.random.default_rng(0)
    count = max(1, TOKENS // longest)
    lengths = np.sort(longest - random.integers(0, longest // 8, count))
    blocks = blocks_of(lengths, torch.device("cpu"))
    shape = (int(lengths.sum()), HEADS, WIDTH)
    given = [torch.randn(shape, dtype=dtype, requires_grad=gradients) for _ in range(3)]

    def once(limits: dict[bool, int]) -> float:
        attention._BY_PRODUCTS = limits
        started = time.process_time()
        with torch.set_grad_enabled(gradients):
            out = attention.block_attention(*given, blocks, scale=WIDTH**-0.5)
        if gradients:
            out.sum().backward()
        return time.process_time() - started

    pairs = [(once(ALWAYS), once(NEVER)) for _ in range(ROUNDS + 1)][1:]
    products, fused = (min(column) * 1000 for column in zip(*pairs, strict=True))
    return products, fused


if __name__ == "__main__":
    main()
