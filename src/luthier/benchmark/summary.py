"""From what the sides said to speeds, ratios, memory and losses: plain JSON data."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from luthier.benchmark.facts import Load
from luthier.benchmark.race import OURS, Measured, Race
from luthier.benchmark.work import Settings

#: Forward and backward take three times the operations of a forward pass alone.
_TRAINING = 3


def summarize(race: Race, settings: Settings, peak: Mapping[str, float | str]) -> dict[str, Any]:
    """One result. Speeds are over all rounds together; a ratio is a peer's time by luthier's
    for the same rows, its median, least and greatest over the rounds.

    Returns a dict of: what was run; ``load``; ``sides`` (each with samples_per_s, tokens_per_s,
    seconds_per_step, cpu_seconds_per_step, peak_mb, mfu, start_s, loss); ``ratios`` by peer;
    ``loss_difference``, the greatest of any step to the first peer; ``least_cosine``.
    """
    work, case = race.work, race.work.case
    total = sum(race.loads, Load())
    times = {name: _round_seconds(race, side) for name, side in race.sides.items()}
    first_peer = case.peers[0]
    return {
        "case": case.name,
        "group": case.group,
        "title": case.title,
        "kind": case.kind,
        "precision": settings.precision,
        "model": settings.name,
        "batch_size": case.batch_size,
        "max_seq_length": work.job.max_seq_length,
        "rounds": len(times[OURS]),
        "steps_per_round": work.steps_per_turn,
        "threads": settings.threads,
        "dropout": settings.dropout,
        "changed": dict(settings.changed),
        "quick": settings.quick,
        "peak_gflops": round(float(peak[settings.precision]) / 1e9, 1),
        "load": asdict(total),
        "sides": {
            name: _side(race, side, times[name], total, float(peak[settings.precision]))
            for name, side in race.sides.items()
        },
        "ratios": {name: _ratio(times[name], times[OURS]) for name in case.peers},
        "loss_difference": None
        if case.kind == "encode"
        else _greatest_difference(race.sides[OURS], race.sides[first_peer]),
        "least_cosine": race.cosine,
    }


def _round_seconds(race: Race, side: Measured) -> list[float]:
    """Seconds of each round. A start has no rounds of steps: its time is the way to the first."""
    if race.work.case.kind == "start":
        return side.first_step_s
    return [sum(period.seconds for period in periods) for periods in side.rounds]


def _side(
    race: Race, side: Measured, times: Sequence[float], total: Load, peak: float
) -> dict[str, Any]:
    kind, seconds = race.work.case.kind, sum(times)
    periods = [period for periods in side.rounds for period in periods]
    losses = _losses(side)
    found: dict[str, Any] = {
        "seconds": round(seconds, 4),
        "peak_mb": round(max(period.peak_bytes for period in periods) / 1e6, 1),
        "start_s": round(statistics.median(side.start_s), 3) if side.start_s else None,
        "loss": None if kind == "encode" else statistics.fmean(losses),
    }
    if kind == "start":
        return found | {"first_step_s": round(statistics.median(times), 3)}
    steps = len(losses)
    passes = 1 if kind == "encode" else _TRAINING
    found |= {
        "samples_per_s": round(total.samples / seconds, 2),
        "tokens_per_s": round(total.tokens / seconds, 1),
        "seconds_per_step": round(seconds / steps, 4),
        "cpu_seconds_per_step": round(sum(p.cpu_seconds for p in periods) / steps, 4),
    }
    if kind != "whole":  # what is frozen and cached is not computed, so there is no such share
        found["mfu"] = round(passes * total.forward_operations / seconds / peak, 4)
    return found


def _ratio(theirs: Sequence[float], ours: Sequence[float]) -> dict[str, float]:
    ratios = [a / b for a, b in zip(theirs, ours, strict=True)]
    return {
        "median": round(statistics.median(ratios), 3),
        "least": round(min(ratios), 3),
        "greatest": round(max(ratios), 3),
    }


def _losses(side: Measured) -> list[float]:
    return [loss for periods in side.rounds for period in periods for loss in period.losses]


def _greatest_difference(ours: Measured, theirs: Measured) -> float:
    pairs = zip(_losses(ours), _losses(theirs), strict=True)
    return max(abs(a - b) for a, b in pairs)
