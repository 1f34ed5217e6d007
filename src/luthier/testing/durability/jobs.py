"""The jobs that the harness runs, and how two results are compared."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from luthier.runs.client import Run
from luthier.runs.connection import Home
from luthier.runs.records import Event
from luthier.runs.tables import LEGAL
from luthier.spec import JobSpec, parse_spec

OPTIMIZERS = (
    *("Adadelta", "Adagrad", "Adam", "AdamW", "SparseAdam", "Adamax", "ASGD"),
    *("LBFGS", "NAdam", "RAdam", "RMSprop", "Rprop", "SGD"),
)
SCHEDULERS = (
    *("linear", "cosine", "cosine_with_restarts", "polynomial"),
    *("constant", "constant_with_warmup"),
)
#: What the stand-in engine can save.
TOY_OPTIMIZERS = ("Adam", "SGD", "AdamW", "Adagrad", "RMSprop", "NAdam", "RAdam", "Adamax")


@dataclass(frozen=True)
class Jobs:
    """Specs, and the engine that they are for."""

    engine: str
    specs: tuple[JobSpec, ...]


def toy_jobs(steps: int = 12, step_ms: float = 5) -> Jobs:
    """A job for each optimizer of the stand-in engine."""
    from luthier.testing.toy_engine import toy_spec

    specs = [
        toy_spec(steps, seed=i, optim=name, step_ms=step_ms)
        for i, name in enumerate(TOY_OPTIMIZERS)
    ]
    return Jobs("luthier.testing.toy_engine", tuple(specs))


def real_jobs(folder: Path, steps: int = 10) -> Jobs:
    """A job for each optimizer and each scheduler: a tiny text encoder with dropout."""
    from luthier.testing.models import tiny_text_model

    model = tiny_text_model(folder / "model", dropout=0.2, layers=1, hidden=16)
    data = folder / "train.csv"
    words = ["ba", "be", "bi", "bo", "du", "da", "fe", "fo", "ga", "gi", "ko", "ku"]
    rows = [f"{a} {b} {i},{b} {a}" for i, a in enumerate(words) for b in words if a != b]
    data.write_text("\n".join(["anchor,positive", *rows]) + "\n")
    specs = [_real_spec(model, data, steps, optim=name) for name in OPTIMIZERS]
    specs += [_real_spec(model, data, steps, lr_scheduler_type=name) for name in SCHEDULERS[:4]]
    specs += [_real_spec(model, data, steps, lr_scheduler_type=SCHEDULERS[5], num_warmup_steps=3)]
    return Jobs("luthier.engine.run", tuple(specs))


def update_jobs(folder: Path, updaters: Sequence[str] | None = None, steps: int = 6) -> Jobs:
    """A second update of a tiny text encoder for each updater, from the state that a first one
    left at a URL."""
    from luthier.engine.run import Place, run
    from luthier.registry import cards

    (spec,) = real_jobs(folder, steps).specs[2:3]
    state = folder / "state"
    place = Place(folder / "first", folder / "cache", Path, Path)
    for made in (place.folder, place.cache):
        made.mkdir()
    run(spec.changed(updater="DER", memory_size=10, output_state_url=str(state)), place)
    fit = [c for c in cards("updater") if not (c.facts["program"] or c.facts["labels"])]
    chosen = [card for card in fit if updaters is None or card.name in updaters]
    specs = [
        spec.changed(
            updater=card.name,
            input_state_url=str(state),
            **({"memory_size": 10} if card.facts["memory"] else {}),
        )
        for card in chosen
    ]
    return Jobs("luthier.engine.run", tuple(specs))


def _real_spec(model: Path, data: Path, steps: int, **training: Any) -> JobSpec:
    common = {
        "max_steps": steps,
        "save_steps": 2,
        "per_device_train_batch_size": 8,
        "learning_rate": 1e-3,
        "device": "cpu",
    }
    return parse_spec(
        {
            "model": {"name": str(model)},
            "data": {"train": {"uri": str(data)}},
            "objective": {"loss": "MultipleNegativesRankingLoss"},
            "training": common | training,
        }
    )


def fingerprint(artifact: Path) -> tuple[str, list[float]]:
    """sha256 of an artifact's weights and of what an update remembers, and the loss of every
    step."""
    digest = hashlib.sha256()
    update = [f for f in artifact.glob("luthier/update/*") if f.name != "update.json"]
    for file in sorted([*artifact.glob("*.safetensors"), *update]):
        digest.update(file.read_bytes())
    ours = artifact / "luthier"
    name = "history.json" if (ours / "history.json").exists() else "state.json"
    losses: list[float] = json.loads((ours / name).read_text())["losses"]
    return digest.hexdigest(), losses


def result(run: Run) -> tuple[str, list[float]]:
    """The fingerprint of a FINISHED run's artifact, which is verified."""
    return fingerprint(run.home.store.artifact(run.artifact_id))


def faults(home: Home, run: Run, expected: tuple[str, list[float]] | None) -> list[str]:
    """What is wrong with a run that should be FINISHED with that result."""
    record = run.record()
    events = _all_events(run)
    found = illegal_history(events)
    if record.status != "FINISHED":
        return [*found, f"{record.name} is {record.status} {record.reason}: {record.details}"]
    ends = [e for e in events if e.kind == "status" and e.data["status"] == "FINISHED"]
    if len(ends) != 1:
        found.append(f"{record.name} finished {len(ends)} times")
    if expected is not None and result(run) != expected:
        found.append(f"{record.name} differs from the undisturbed run")
    return found


def illegal_history(events: Sequence[Event]) -> list[str]:
    """What a run's events say that cannot have been."""
    found = []
    if [e.seq for e in events] != list(range(1, len(events) + 1)):
        found.append("the numbers of the events have gaps")
    if any(a.epoch > b.epoch for a, b in pairwise(events)):
        found.append("an epoch went backwards")
    path = [e.data["status"] for e in events if e.kind == "status"]
    if path[:1] != ["CREATED"]:
        found.append(f"a history begins with {path[:1]}")
    found += [f"a history goes from {a} to {b}" for a, b in pairwise(path) if (a, b) not in LEGAL]
    return found


def _all_events(run: Run) -> list[Event]:
    events: list[Event] = []
    while more := run.events(after=len(events)):
        events += more
    return events
