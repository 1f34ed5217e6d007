"""The pre-flight report: what is about to happen, said before the first step."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch

from luthier.data import Dataset, facts
from luthier.engine.control import Listener
from luthier.engine.read import Data
from luthier.engine.setup import Setup

#: Texts whose tokens are counted, per role: enough for a share to within about three percent.
_SAMPLED_TEXTS = 1000

#: Floating-point operations a parameter and token take, forward and backward (Kaplan et al.
#: 2020, Scaling Laws for Neural Language Models, section 2.1).
_OPERATIONS = 6

#: Passes over a parameter that trains for each over one that does not: forward, and twice back.
_PASSES = 3

#: Share of a plain matmul's speed that a padded training step reaches on the encoders and
#: CPUs that we measured; an estimate is all it is for.
_EFFICIENCY = 0.4


def preflight(setup: Setup, data: Data) -> dict[str, Any]:
    """Facts of the data, the texts that will be cut, the batch, the steps, the likely time."""
    dataset, plan, measured = setup.plain.dataset, setup.plan, data.queries
    reads = setup.plain.reads
    lengths = {role: _token_lengths(setup, reads, role) for role in reads.roles}
    everything = np.concatenate(list(lengths.values()))
    limit = setup.model.max_length
    tokens_a_row = sum(float(np.minimum(found, limit).mean()) for found in lengths.values())
    tokens_a_row *= setup.plain.texts_a_row
    steps_left = max(0, setup.total_steps - setup.position.done)
    seconds = steps_left * plan.batch_size * tokens_a_row * _seconds_a_token(setup)
    return {
        "data": facts.describe(data.train),
        "evaluation": facts.describe(measured) if measured is not None else None,
        "overlap": facts.overlap(data.train, measured) if measured is not None else None,
        "form": dataset.form,
        "tokens_a_text": float(everything.mean()),
        "max_length": limit,
        "cut_share": float((everything > limit).mean()),
        "batch": plan.describe(),
        "rows_at_a_time": setup.position.micro or plan.batch_size,
        "steps_per_epoch": plan.steps_per_epoch,
        "steps": setup.total_steps,
        "device": str(setup.device.torch),
        "precision": setup.device.precision,
        "matmul": torch.get_float32_matmul_precision(),
        "execution": setup.model.execution,
        "num_fixed_layers": setup.model.fixed_layers,
        "fixed_part_stored": setup.model.prefix is not None,
        "trainable_parameters": _count(setup, trainable=True),
        "parameters": _count(setup, trainable=False),
        "estimated_s": seconds,
    }


def say(report: dict[str, Any], notes: tuple[str, ...], tell: Listener) -> None:
    """Tell the report, and what deserves a warning in words."""
    tell("preflight", report)
    for note in notes:
        tell("log", {"level": "warning", "message": note})
    if report["cut_share"] > 0.05:
        message = (
            f"{report['cut_share']:.0%} of the texts are longer than {report['max_length']} "
            "tokens and will be cut; model_options={'max_seq_length': …} sets the limit"
        )
        tell("log", {"level": "warning", "message": message})
    if report["overlap"]:
        message = f"{report['overlap']:,} evaluation texts also occur in the training data"
        tell("log", {"level": "warning", "message": message})


def _token_lengths(setup: Setup, dataset: Dataset, role: str) -> np.ndarray:
    count = min(len(dataset), _SAMPLED_TEXTS)
    rows = np.linspace(0, len(dataset) - 1, count).astype(np.int64)
    found: np.ndarray = setup.model.token_lengths(dataset.texts(role, rows))
    return found


def _count(setup: Setup, *, trainable: bool) -> int:
    return sum(p.numel() for p in setup.model.parameters() if p.requires_grad or not trainable)


def _seconds_a_token(setup: Setup) -> float:
    """From the parameters that multiply (a table of tokens is only looked up) and a matmul
    timed here and now. Of what does not train there is a forward pass only, or not even that."""
    model = setup.model
    table = model.token_embedding.weight
    trains = _count(setup, trainable=True) - (table.numel() if table.requires_grad else 0)
    fixed = _count(setup, trainable=False) - table.numel() - trains
    parameters = trains + (0 if model.prefix is not None else fixed / _PASSES)
    size = 512
    matrix = torch.ones(size, size, device=setup.device.torch)
    matrix @ matrix
    best = float("inf")
    for _ in range(3):
        started = time.perf_counter()
        (matrix @ matrix)[0, 0].item()
        best = min(best, time.perf_counter() - started)
    per_second = float(2 * size**3 / best)
    seconds: float = _OPERATIONS * parameters / (per_second * _EFFICIENCY)
    return seconds
