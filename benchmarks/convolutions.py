"""What the layout and bf16 are worth in a training step of a convolutional net.

    python benchmarks/convolutions.py                     two minutes on two idle cores
    python benchmarks/convolutions.py --images 8 --side 64 --rounds 3      a quick look

ResNet-18 (He et al. 2016, table 1) with random weights on random images; forward, backward and
SGD. The arms take turns, round by round; printed are the least time of each and the median of
the ratios. bf16 gains where the processor multiplies in bf16, and loses much where it does not.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from luthier.models.layout import channels_last


class Block(nn.Module):
    """A basic block: two convolutions beside a shortcut."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.inner = nn.Sequential(
            nn.Conv2d(before, after, 3, stride, 1, bias=False),
            nn.BatchNorm2d(after),
            nn.ReLU(inplace=True),
            nn.Conv2d(after, after, 3, 1, 1, bias=False),
            nn.BatchNorm2d(after),
        )
        self.shortcut = (
            nn.Identity()
            if stride == 1 and before == after
            else nn.Sequential(
                nn.Conv2d(before, after, 1, stride, bias=False), nn.BatchNorm2d(after)
            )
        )

    def forward(self, images: Tensor) -> Tensor:
        return torch.relu(self.inner(images) + self.shortcut(images))


def resnet18() -> nn.Module:
    """With 1,000 classes: 11.7 million parameters."""
    blocks, before = [], 64
    for after, stride in ((64, 1), (128, 2), (256, 2), (512, 2)):
        blocks += [Block(before, after, stride), Block(after, after, 1)]
        before = after
    stem = (nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU(inplace=True))
    head = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 1000))
    return nn.Sequential(*stem, nn.MaxPool2d(3, 2, 1), *blocks, *head)


def stepper(net: nn.Module, images: Tensor, *, bf16: bool) -> Callable[[], tuple[float, float]]:
    """A function that makes a step: wall and processor seconds."""
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-3, momentum=0.9)
    labels = torch.arange(len(images))

    def step() -> tuple[float, float]:
        wall, processor = time.perf_counter(), time.process_time()
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            out = net(images)
        loss = nn.functional.cross_entropy(out.float(), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return time.perf_counter() - wall, time.process_time() - processor

    return step


def main() -> None:
    """Race the arms, and print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--side", type=int, default=160)
    parser.add_argument("--rounds", type=int, default=8)
    given = parser.parse_args()
    torch.manual_seed(0)
    images, plain = torch.randn(given.images, 3, given.side, given.side), resnet18()
    laid_out = copy.deepcopy(plain)
    channels_last(laid_out)
    arms = {
        "plain": stepper(plain, images, bf16=False),
        "channels last": stepper(laid_out, images, bf16=False),
        "channels last, bf16": stepper(copy.deepcopy(laid_out), images, bf16=True),
    }
    if not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        del arms["channels last, bf16"]
        print("bf16: not known to this processor")
    for step in arms.values():
        step()
    times = [{name: step() for name, step in arms.items()} for _ in range(given.rounds)]
    for name in arms:
        wall, processor = (
            statistics.median(each["plain"][i] / each[name][i] for each in times) for i in (0, 1)
        )
        least = min(each[name][0] for each in times)
        print(
            f"{name:20} {least * 1000:6.0f} ms, {wall:.2f} times as fast as plain "
            f"({processor:.2f} in processor time)"
        )


if __name__ == "__main__":
    main()
