"""Which of torch's two libraries multiplies fp32 faster on this CPU, and as exactly.

``torch.set_float32_matmul_precision`` says "highest" for MKL and "medium" for oneDNN, which is
twice as fast on some machines and slower on others; on machines with AMX "medium" may multiply in
bf16, so its error against float64 is measured beside its speed.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from luthier.models.figures import measured_once

#: oneDNN may have this many times the error of MKL, and never more than ``MOST_ERROR``: both
#: round in another order than float64 does, by 4e-7 to 9e-7 of the largest sum, and which of them
#: is nearer depends on the processor. What multiplies in bf16 is off by 1e-3.
_ERROR_RATIO = 4.0
MOST_ERROR = 2e-6

#: What the other library must gain to be taken: less is within what so short a probe errs by.
MATMUL_GAIN = 1.1

#: Texts from which on an encoding asks: measuring takes as long as encoding some dozens.
_WORTH_MEASURING = 2000

#: Where one arm is so many times as slow as the other, another round would change nothing.
_DECIDED = 2.0

_WORDS = ("highest", "medium")

#: Tokens, width and inner width of the probed products: a small encoder's feed-forward block.
_TOKENS, _WIDTH, _INNER = 1500, 384, 1536
_ROUNDS = 5
#: Columns whose exact values are computed: float64 takes its time.
_CHECKED = 48


@dataclass(frozen=True)
class Matmul:
    """The two fp32 libraries: processor seconds of the same products, and the largest error
    relative to the largest exact value. Equal where "medium" changes nothing here."""

    highest_s: float
    medium_s: float
    highest_error: float
    medium_error: float


def better_matmul(found: Matmul) -> str:
    """``medium`` where it is as exact and clearly faster, else ``highest``."""
    exact = found.medium_error <= _ERROR_RATIO * found.highest_error
    exact = exact and found.medium_error < MOST_ERROR
    faster = found.highest_s >= MATMUL_GAIN * found.medium_s
    return "medium" if exact and faster else "highest"


@contextmanager
def quickest_products(device: torch.device, texts: int) -> Iterator[None]:
    """Multiply by the better library while so many texts are encoded; as it is for few of them,
    and on other devices, where "medium" means fewer digits. Measured once a process, if no file
    of figures is shared."""
    if device.type != "cpu" or texts < _WORTH_MEASURING:
        yield
        return
    with matmul_precision(better_matmul(matmul_figures(None))):
        yield


def matmul_figures(cache: Path | None) -> Matmul:
    """Those of this machine; measured where the cache has none, once a process without one."""
    return measured_once(Matmul, cache, measure_matmul if cache else _of_this_process)


@functools.cache
def _of_this_process() -> Matmul:
    return measure_matmul()


def measure_matmul() -> Matmul:
    """Measure both libraries now, which takes up to a second of processor time."""
    with torch.no_grad():
        tokens, weight, _ = operands()
        found = {word: _products(word, tokens, weight) for word in _WORDS}
        errors = {word: _error(tokens, weight, *found[word]) for word in _WORDS}
        if all(map(torch.equal, found["highest"], found["medium"])):
            seconds = dict.fromkeys(_WORDS, 0.0)  # the same library: there is nothing to choose
        else:
            room = found["highest"]
            arms = {word: partial(_products, word, tokens, weight, room) for word in _WORDS}
            seconds = least_seconds(arms)
    return Matmul(seconds["highest"], seconds["medium"], errors["highest"], errors["medium"])


@contextmanager
def matmul_precision(word: str) -> Iterator[None]:
    """torch's setting for fp32 matrix products while it lasts; afterwards as it was."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(word)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def operands() -> tuple[Tensor, Tensor, Tensor]:
    """Tokens, the weight that widens them and that which narrows them."""
    random = torch.Generator().manual_seed(0)
    shapes = (_TOKENS, _WIDTH), (_INNER, _WIDTH), (_WIDTH, _INNER)
    tokens, up, down = (torch.randn(shape, generator=random) for shape in shapes)
    return tokens, up, down


def _products(
    word: str, tokens: Tensor, weight: Tensor, room: Sequence[Tensor] | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """A layer's output, and the gradients of its weight and its input where its output is the
    loss's gradient; written into ``room`` if there is any, for new memory costs as much as a
    product, page by page, whoever multiplies."""
    with matmul_precision(word):
        places: Sequence[Tensor | None] = room or (None, None, None)
        out = torch.mm(tokens, weight.T, out=places[0])
        of_weight = torch.mm(out.T, tokens, out=places[1])
        return out, of_weight, torch.mm(out, weight, out=places[2])


def _error(
    tokens: Tensor, weight: Tensor, out: Tensor, of_weight: Tensor, of_input: Tensor
) -> float:
    """The largest error against float64, relative to the largest value."""
    some = slice(0, _CHECKED)
    pairs = (
        (out[:, some], tokens.double() @ weight[some].double().T),
        (of_weight[some], out[:, some].double().T @ tokens.double()),
        (of_input[some], out[some].double() @ weight.double()),
    )
    return max(float((got - right).abs().max() / right.abs().max()) for got, right in pairs)


def least_seconds(arms: Mapping[str, Callable[[], object]]) -> dict[str, float]:
    """The least processor time of each, in turns: other work on the machine does not decide."""
    for arm in arms.values():
        arm()
    best = dict.fromkeys(arms, float("inf"))
    for _ in range(_ROUNDS):
        for name, arm in arms.items():
            started = time.process_time()
            arm()
            best[name] = min(best[name], time.process_time() - started)
        if max(best.values()) > _DECIDED * min(best.values()):
            break
    return best
