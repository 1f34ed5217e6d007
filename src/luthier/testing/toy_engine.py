"""A stand-in for the engine: real torch, real bundles, the same contract, milliseconds a run.

It is what the tests of queue, worker and store run, so that a failure there is theirs. The
job is a small network with dropout on random rows; ``model.options`` say how it shall
misbehave: ``step_ms`` slows it down, and ``at`` is the step at which it does ``do``: raise,
oom, exit, segfault, hang (in C, without the interpreter's lock), hold (with it), full_disk or
broken_disk. ``padding_kb`` makes its bundles larger.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import random
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from luthier.engine.control import Cancelled, Control, Interrupted, Listener
from luthier.errors import CorruptBundle, TrainingError
from luthier.spec import JobSpec, parse_spec
from luthier.store.bundle import Bundle, candidates, newest_bundle, open_bundle, write_bundle

ROWS, WIDTH, BATCH = 64, 8, 8


@dataclass(frozen=True)
class Place:
    """Where a run writes, as in the engine."""

    folder: Path
    cache: Path
    blobs: Callable[[str], Path]
    artifacts: Callable[[str], Path]


@dataclass(frozen=True)
class Outcome:
    """What a run made, as in the engine."""

    folder: Path
    metrics: dict[str, Any]


def toy_spec(
    steps: int = 6, *, save_steps: int = 1, seed: int = 1, optim: str = "Adam", **options: Any
) -> JobSpec:
    """A job for this engine."""
    return parse_spec(
        {
            "model": {"name": "toy", "options": options},
            "data": {"train": {"uri": "toy"}},
            "training": {
                "max_steps": steps,
                "save_steps": save_steps,
                "seed": seed,
                "optim": optim,
                "learning_rate": 0.01,
            },
        }
    )


def run(spec: JobSpec, place: Place, tell: Listener, control: Control) -> Outcome:
    """Train to ``max_steps``; goes on from the newest good checkpoint, bit for bit."""
    torch.set_num_threads(1)
    training, options = spec.training, spec.model.options
    padding_kb = options.get("padding_kb", 0)
    data = torch.randn(ROWS, WIDTH, generator=torch.Generator().manual_seed(training.seed))
    torch.manual_seed(training.seed)
    random.seed(training.seed)
    np.random.seed(training.seed)
    model = torch.nn.Sequential(
        torch.nn.Linear(WIDTH, 16), torch.nn.Tanh(), torch.nn.Dropout(0.3), torch.nn.Linear(16, 1)
    )
    optimizer = getattr(torch.optim, training.optim)(model.parameters(), lr=training.learning_rate)
    losses = _restore(place, model, optimizer, tell)
    checkpoints = place.folder / "checkpoints"
    tell("stage", {"name": "training"})
    while len(losses) < training.max_steps:
        wish = control()
        if wish is not None:
            _save(checkpoints / f"step-{len(losses):08d}", model, optimizer, losses, padding_kb)
            raise Cancelled if wish == "cancel" else Interrupted
        if options.get("at") == len(losses):
            _misbehave(options["do"])
        losses.append(_step(model, optimizer, data, training.seed, len(losses)))
        tell("step", {"step": len(losses), "steps": training.max_steps, "loss": losses[-1]})
        time.sleep(options.get("step_ms", 0) / 1000)
        if training.eval_steps and len(losses) % training.eval_steps == 0:
            number = len(losses) // training.eval_steps
            tell("evaluation", {"epoch": number, "step": len(losses), "loss": losses[-1]})
        if len(losses) % (training.save_steps or 1) == 0:
            _save(checkpoints / f"step-{len(losses):08d}", model, optimizer, losses, padding_kb)
            tell("checkpoint", {"step": len(losses)})
            for old in candidates(checkpoints)[2:]:
                _remove(old)
    bundle = _save(place.folder / "outcome", model, optimizer, losses, padding_kb)
    return Outcome(bundle.path, {"loss": losses[-1] if losses else None})


def result(folder: Path) -> tuple[str, list[float]]:
    """The id of an artifact's bundle, which hashes its weights, and every step's loss."""
    bundle = open_bundle(folder)
    state = json.loads((bundle.path / "luthier" / "state.json").read_text())
    return bundle.id, state["losses"]


def _step(model: Any, optimizer: Any, data: torch.Tensor, seed: int, step: int) -> float:
    """A step whose rows are arithmetic, and whose noise is drawn from all three generators."""
    rows = np.random.default_rng([seed, step]).integers(ROWS, size=BATCH)
    noise = random.random() + np.random.random()

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss: torch.Tensor = (model(data[rows]) - noise).square().mean()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    return float(optimizer.step(closure))


def _save(
    destination: Path, model: Any, optimizer: Any, losses: list[float], padding_kb: int = 0
) -> Bundle:
    def fill(folder: Path) -> None:
        (folder / "luthier").mkdir()
        save_file(model.state_dict(), folder / "model.safetensors")
        if padding_kb:
            (folder / "padding").write_bytes(bytes(padding_kb * 1000))
        state = optimizer.state_dict()
        tensors = {"rng": torch.get_rng_state()}
        plain: dict[str, Any] = {"losses": losses, "numbers": {}}
        for index, values in state["state"].items():
            for name, value in values.items():
                if isinstance(value, torch.Tensor):
                    tensors[f"{index}.{name}"] = value.contiguous()
                elif value is not None:
                    plain["numbers"][f"{index}.{name}"] = value
        save_file(tensors, folder / "luthier" / "state.safetensors")
        version, numbers, gauss = random.getstate()
        drawn: Any = np.random.get_state(legacy=True)
        kind, keys, position, has_gauss, cached = drawn
        plain["python"] = [version, list(numbers), gauss]
        plain["numpy"] = [kind, keys.tolist(), position, has_gauss, cached]
        (folder / "luthier" / "state.json").write_text(json.dumps(plain))

    return write_bundle(destination, fill, {"step": len(losses)})


def _restore(place: Place, model: Any, optimizer: Any, tell: Listener) -> list[float]:
    def say(path: Path, error: CorruptBundle) -> None:
        tell("log", {"level": "warning", "message": f"{path.name} is damaged: {error.message}"})

    bundle = newest_bundle(place.folder / "checkpoints", say)
    if bundle is None:
        return []
    model.load_state_dict(load_file(bundle.path / "model.safetensors"))
    plain = json.loads((bundle.path / "luthier" / "state.json").read_text())
    tensors = load_file(bundle.path / "luthier" / "state.safetensors")
    torch.set_rng_state(tensors.pop("rng"))
    state: dict[int, dict[str, Any]] = {}
    for name, value in [*tensors.items(), *plain["numbers"].items()]:
        index, _, key = name.partition(".")
        state.setdefault(int(index), {})[key] = value
    optimizer.load_state_dict(optimizer.state_dict() | {"state": state})
    version, numbers, gauss = plain["python"]
    random.setstate((version, tuple(numbers), gauss))
    kind, keys, *rest = plain["numpy"]
    np.random.set_state((kind, np.array(keys, dtype=np.uint32), *rest))
    losses: list[float] = plain["losses"]
    tell("log", {"level": "info", "message": f"resuming after step {len(losses)}"})
    return losses


def _remove(path: Path) -> None:
    from luthier.store.atomic import remove

    remove(path)


def _misbehave(how: str) -> None:
    if how == "raise":
        raise TrainingError("the loss became nan", hint="lower the learning rate")
    if how == "fault":
        raise KeyError("a fault of ours")
    if how == "oom":
        raise MemoryError("cannot allocate")
    if how == "full_disk":
        raise OSError(errno.ENOSPC, "No space left on device")
    if how == "broken_disk":
        raise OSError(errno.EIO, "Input/output error")
    if how == "exit":
        os._exit(9)
    if how == "segfault":
        os.kill(os.getpid(), signal.SIGSEGV)
    if how == "hang":
        time.sleep(3600)
    if how == "hold":
        ctypes.PyDLL(None).sleep(3600)
