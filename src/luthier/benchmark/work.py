"""One case made ready: the texts, the order of their rows, and what each side is told."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from luthier.batches import make_plan
from luthier.benchmark.cases import Case
from luthier.benchmark.corpora import corpus
from luthier.benchmark.facts import Counter, Load, positions_of
from luthier.benchmark.unavailable import Unavailable
from luthier.data import Dataset, load_dataset
from luthier.errors import SpecError
from luthier.objectives import needs
from luthier.spec import JobSpec, parse_spec
from luthier.spec.job import leaves

#: The field of a job that keeps the embeddings and the lowest layers as they are.
FROZEN_LAYERS = "num_fixed_layers"
LEARNING_RATE, MAX_GRAD_NORM, SEED = 2e-5, 1.0, 42


@dataclass(frozen=True)
class Settings:
    """What holds for all cases of a call.

    model: a folder; name: what it is called. onednn: whether oneDNN multiplies fp32 faster here
    than MKL, which the tuned peer then uses. dropout: every dropout probability, None as the
    model has it. changed: fields of luthier's job that are not left to their defaults. work:
    scratch space.
    """

    model: Path
    name: str
    data: Path
    work: Path
    precision: str
    threads: int
    onednn: bool = False
    quick: bool = False
    rounds: int | None = None
    dropout: float | None = None
    changed: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Job:
    """What a side is told: the same for all of one case, but for ``tuned`` and ``scratch``.

    order: rows of ``data`` a step, step after step over all epochs. spec: luthier's job.
    """

    case: Case
    model: str
    data: str
    order: str
    spec: str
    scratch: str
    precision: str
    threads: int
    dropout: float | None
    max_seq_length: int
    onednn: bool = False
    tuned: bool = False

    def write(self, path: Path) -> Path:
        path.write_text(json.dumps(asdict(self)))
        return path

    @staticmethod
    def read(path: str | Path) -> Job:
        known = json.loads(Path(path).read_text())
        case = known.pop("case")
        return Job(Case(**case | {"peers": tuple(case["peers"])}), **known)

    def rows(self) -> list[list[int]]:
        """The rows of each step."""
        found: list[list[int]] = json.loads(Path(self.order).read_text())
        return found


@dataclass(frozen=True)
class Work:
    """A case that is ready. steps_per_turn: how many steps (documents of an ``encode``) a side
    runs before it is the next one's turn; turns: how often, after the warm-up. at_once: the
    sides may be started together, because nobody will look at how long that takes."""

    case: Case
    job: Job
    dataset: Dataset
    order: list[list[int]]
    warmup: int
    turns: int
    steps_per_turn: int
    at_once: bool = False

    def loads(self) -> Iterator[Load]:
        """What each turn asks of the model."""
        counter = Counter(Path(self.job.model), self.job.max_seq_length)
        roles = self.dataset.roles[-1:] if self.case.kind == "encode" else self.dataset.roles
        for turn in range(self.turns):
            start = self.warmup + turn * self.steps_per_turn
            load = Load()
            for rows in self.order[start : start + self.steps_per_turn]:
                load += Load(samples=len(rows))
                for role in roles:
                    load += counter.load(self.dataset.texts(role, _array(rows)))
            yield load


def prepare(case: Case, settings: Settings) -> Work:
    """Build the data, ask luthier's plan for its rows, and write down what the sides are told.

    Raises Unavailable: the case cannot be measured here.
    """
    if settings.quick:
        case = case.quick()
    if settings.rounds is not None:
        case = replace(case, rounds=settings.rounds)
    length = min(case.max_seq_length, positions_of(settings.model))
    file = corpus(case.source, case.rows, settings.data)
    folder = settings.work
    folder.mkdir(parents=True, exist_ok=True)
    spec = _spec(case, settings, file, length)
    dataset = load_dataset(file, spec.data.csv, folder / "cache", name=str(file))
    warmup, turns, per_turn, order = _order(case, spec, dataset)
    (folder / "order.json").write_text(json.dumps(order))
    (folder / "spec.json").write_text(spec.canonical())
    job = Job(
        case,
        str(settings.model),
        str(file),
        str(folder / "order.json"),
        str(folder / "spec.json"),
        str(folder),
        settings.precision,
        settings.threads,
        settings.dropout,
        length,
        settings.onednn,
    )
    return Work(case, job, dataset, order, warmup, turns, per_turn, settings.quick)


def _order(
    case: Case, spec: JobSpec, dataset: Dataset
) -> tuple[int, int, int, list[list[int]]]:  # fmt: skip
    """Warm-up, turns, steps a turn, and the rows of all steps and of one more, at which the
    sides are stopped."""
    if case.kind == "encode":
        blocks = [
            list(range(start, start + case.steps))
            for start in range(0, len(dataset) - case.steps + 1, case.steps)
        ]
        warm = [list(range(min(case.batch_size, len(dataset))))]
        blocks = blocks[: case.rounds]
        return 1, len(blocks), 1, [*warm, *blocks]
    training = spec.training
    size = (training.per_device_train_batch_size or 1) * training.gradient_accumulation_steps
    plan = make_plan(
        dataset,
        batch_size=size,
        num_items_per_class=training.num_items_per_class,
        sampler=training.sampler,
        seed=training.seed,
        objective=needs(spec.objective),
    )
    if case.kind == "whole":
        warmup, turns, per_turn = 0, case.steps, plan.steps_per_epoch
    elif case.kind == "start":
        warmup, turns, per_turn = 0, 1, 1
    else:
        warmup, turns, per_turn = case.warmup, 1 if case.alone else case.rounds, case.steps
    steps = range(warmup + turns * per_turn + 1)
    if case.kind == "steps":
        _check_full(case, plan.steps_per_epoch, len(steps))
    order = [plan.rows(*divmod(step, plan.steps_per_epoch)).tolist() for step in steps]
    return warmup, turns, per_turn, order


def _check_full(case: Case, steps_per_epoch: int, steps: int) -> None:
    """The peer reads all as one long epoch: a last batch that is smaller must not be in it."""
    if steps > steps_per_epoch:
        raise Unavailable(
            f"{steps} steps of {case.batch_size} are asked for, and the data has {steps_per_epoch}",
            where=case.name,
            hint="fewer --rounds",
        )


def _spec(case: Case, settings: Settings, file: Path, length: int) -> JobSpec:
    options: dict[str, Any] = {"max_seq_length": length}
    if settings.dropout is not None:
        options["dropout"] = settings.dropout
    model: dict[str, Any] = {"name": str(settings.model), "options": options}
    if case.head_only:
        model |= {"freeze": True}
    micro = case.mini_batch_size or case.batch_size
    spec = parse_spec(
        {
            "model": model,
            "data": {"train": {"uri": str(file)}},
            "objective": {"loss": "MultipleNegativesRankingLoss"},
            "training": {
                "optim": "AdamW",
                "optim_args": {"weight_decay": 0.0},
                "learning_rate": LEARNING_RATE,
                "lr_scheduler_type": "constant",
                "max_grad_norm": MAX_GRAD_NORM,
                "per_device_train_batch_size": micro,
                "gradient_accumulation_steps": math.ceil(case.batch_size / micro),
                "max_steps": 10**6,
                "seed": SEED,
                "device": "cpu",
                "precision": settings.precision,
                "save_steps": 10**9,
            },
        }
    )
    changes = dict(settings.changed)
    if case.lora_r:
        changes["lora_r"] = case.lora_r
    if case.frozen_layers:
        if FROZEN_LAYERS not in leaves():
            raise Unavailable(
                "luthier has no field that freezes the lowest layers", where=case.name
            )
        changes[FROZEN_LAYERS] = case.frozen_layers
    try:
        return spec.changed(**changes) if changes else spec
    except SpecError as error:
        raise Unavailable(str(error), where=case.name) from error


def _array(rows: list[int]) -> Any:
    import numpy as np

    return np.asarray(rows, dtype=np.int64)
