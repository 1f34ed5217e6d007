"""Which arithmetic a run computes in: measured once a machine, decided once a run.

Matrix products in fp32 have two libraries on CPUs (``luthier.models.matmul``). bf16 by autocast
gains where the hardware knows bf16, and loses much where it is emulated.

What is measured is kept beside the data sets (``luthier.models.figures``), what is decided with
the run (``Resolved``), for a resumed run must not decide anew.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional

from luthier.engine.control import Listener
from luthier.engine.device import pick
from luthier.engine.read import Place
from luthier.engine.resolved import RESOLVED, Resolved
from luthier.models.figures import measured_once
from luthier.models.matmul import (
    better_matmul,
    least_seconds,
    matmul_figures,
    matmul_precision,
    operands,
)
from luthier.spec.job import TrainingSpec

#: What bf16 must gain to be taken: less is within what such short probes are wrong by.
BF16_GAIN = 1.3

#: Texts are encoded in bf16 only where no sampled vector turns further than this.
LEAST_COSINE = 0.9999
#: Texts from which on that is considered, and how many of them are compared.
_WORTH_COMPARING, _COMPARED = 1000, 32


@dataclass(frozen=True)
class Autocast:
    """Processor seconds of a feed-forward block, forward and backward, in fp32 by the better
    library and under bf16 autocast."""

    fp32_s: float
    bf16_s: float


def better_precision(found: Autocast) -> str:
    """``bf16`` where it is clearly faster, else ``fp32``."""
    return "bf16" if found.fp32_s >= BF16_GAIN * found.bf16_s else "fp32"


def autocast_figures(cache: Path) -> Autocast:
    """Those of this machine; measured where the cache has none."""
    word = better_matmul(matmul_figures(cache))
    return measured_once(Autocast, cache, lambda: measure_autocast(word))


def measure_autocast(word: str) -> Autocast:
    """Measure both precisions now; ``word`` is the better setting for fp32."""
    tokens, up, down = operands()

    def arm(bf16: bool) -> None:
        weights = [w.clone().requires_grad_() for w in (up, down)]
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            out = functional.linear(functional.linear(tokens, weights[0]), weights[1])
        torch.autograd.backward([out], [torch.ones_like(out)])

    with torch.inference_mode(False), torch.enable_grad(), matmul_precision(word):
        seconds = least_seconds({"fp32": partial(arm, False), "bf16": partial(arm, True)})
    return Autocast(seconds["fp32"], seconds["bf16"])


@contextmanager
def settled(
    training: TrainingSpec, resolved: Resolved, cache: Path, tell: Listener
) -> Iterator[None]:
    """Compute in the better matmul of this machine while a run lasts.

    The plain execution is that of other trainers and is left alone, as are devices other than
    the CPU, where "medium" means fewer digits.
    """
    if training.execution == "padded" or pick(training.device) != "cpu":
        yield
        return

    def decide() -> str:
        word = better_matmul(matmul_figures(cache))
        if word == "medium":
            message = "matrix products: oneDNN, which is faster than MKL here and as exact"
            tell("log", {"level": "info", "message": message})
        return word

    with matmul_precision(resolved.once("matmul", decide)):
        yield


def resolve_precision(
    training: TrainingSpec, resolved: Resolved, cache: Path, tell: Listener
) -> str:
    """What was asked for, or for "auto" what this device is fast in: fp32, bf16 or fp16."""
    if training.precision != "auto":
        return training.precision

    def decide() -> str:
        word = fast_precision(pick(training.device), cache)
        tell("log", {"level": "info", "message": f"precision: {word} is the faster here"})
        return word

    found: str = resolved.once("precision", decide)
    return found


def encoding_precision(
    model: Any, texts: Sequence[str], place: Place, plain: bool, tell: Listener
) -> str:
    """What many texts are encoded in for an evaluation: bf16 where the device is faster in it
    and the vectors of a sample stay what they are, else fp32. Decided once a run, so that all
    that is compared is encoded alike; ``plain`` and few texts are always fp32."""
    if plain or len(texts) < _WORTH_COMPARING:
        return "fp32"

    def decide() -> str:
        if fast_precision(model.device.type, place.cache) != "bf16":
            return "fp32"
        cosine = least_cosine(model, texts[:: max(1, len(texts) // _COMPARED)])
        word = "bf16" if cosine >= LEAST_COSINE else "fp32"
        message = f"evaluation encodes in {word}: cosine of bf16 to fp32 at least {cosine:.6f}"
        tell("log", {"level": "info", "message": message})
        return word

    found: str = Resolved(place.folder / RESOLVED).once("encoding_precision", decide)
    return found


def least_cosine(model: Any, texts: Sequence[str]) -> float:
    """Of the vectors of texts in bf16 to those in fp32."""
    fp32, bf16 = (_encoded(model, texts, word) for word in ("fp32", "bf16"))
    return float((fp32 * bf16).sum(axis=1).min())


def _encoded(model: Any, texts: Sequence[str], word: str) -> Any:
    with encoding_in(model, word):
        return model.encode(texts, normalize=True)


def encoding_in(model: Any, word: str) -> AbstractContextManager[Any]:
    """The precision in which ``model.encode`` computes while it lasts."""
    context: AbstractContextManager[Any] = torch.autocast(
        model.device.type, torch.bfloat16, enabled=word == "bf16"
    )
    return context


def fast_precision(device: str, cache: Path) -> str:
    """``bf16`` where the device computes faster in it, else ``fp32``."""
    if device.startswith("cuda"):
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    return better_precision(autocast_figures(cache)) if device == "cpu" else "fp32"
