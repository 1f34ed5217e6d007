"""A small retrieval problem that a tiny model can learn something of."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

import pytest

from luthier.engine.control import Interrupted, ignore, keep_going
from luthier.engine.run import Outcome, Place, run
from luthier.spec import JobSpec, parse_spec

COLOURS = ["red", "blue", "green", "black", "white", "brown", "pink", "grey", "gold", "amber"]
THINGS = ["boat", "house", "tree", "stone", "river", "cloud", "horse", "apple", "lamp", "chair"]


def pairs(count: int) -> list[tuple[str, str]]:
    """Distinct anchors, each with a positive that shares its words in another order."""
    found = [
        (f"a {colour} {thing} number {n}", f"{thing} that is {colour}, no {n}")
        for n in range(1 + count // 100)
        for colour in COLOURS
        for thing in THINGS
    ]
    return found[:count]


@pytest.fixture
def pairs_csv(tmp_path: Path) -> Path:
    path = tmp_path / "pairs.csv"
    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["anchor", "positive"])
        writer.writerows(pairs(48))
    return path


NewPlace = Callable[[str], Place]


@pytest.fixture
def new_place(tmp_path: Path) -> NewPlace:
    """Makes a place of that name; blobs and artifacts are paths there."""

    def make(name: str) -> Place:
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        return Place(folder, tmp_path / "cache", Path, Path)

    return make


@pytest.fixture
def place(new_place: NewPlace) -> Place:
    return new_place("run")


@pytest.fixture
def trained(new_place: NewPlace) -> Callable[..., Outcome]:
    """Run a job in a folder of that name; ``stop`` interrupts it before so many steps."""

    def go(spec: JobSpec, name: str = "run", stop: int | None = None) -> Outcome:
        steps = []

        def tell(kind: str, data: dict) -> None:
            if kind == "step":
                steps.append(data)

        def control() -> str | None:
            return "interrupt" if stop is not None and len(steps) >= stop else None

        return run(spec, new_place(name), tell, control)

    return go


@pytest.fixture
def run_in_pieces(new_place: NewPlace) -> Callable[..., tuple[Outcome, Outcome]]:
    """Run a job straight, and once more interrupted after each of the steps that are named; both
    outcomes."""

    def go(spec: JobSpec, *stops: int) -> tuple[Outcome, Outcome]:
        straight = run(spec, new_place("straight"), ignore, keep_going)
        seen = []

        def tell(kind: str, data: dict) -> None:
            if kind == "step":
                seen.append(data["step"])

        for stop in stops:
            with pytest.raises(Interrupted):
                run(spec, new_place("stopped"), tell,
                    lambda s=stop: "interrupt" if s in seen else None)  # fmt: skip
        return straight, run(spec, new_place("stopped"), tell, keep_going)

    return go


@pytest.fixture
def files_of() -> Callable[[Path], dict[str, bytes]]:
    """What must be the same after two equal updates: weights, what is remembered, and what the
    updater hands on."""

    def read(folder: Path) -> dict[str, bytes]:
        found = [*folder.glob("*.safetensors"), *(folder / "luthier" / "update").iterdir()]
        return {
            str(file.relative_to(folder)): file.read_bytes()
            for file in found
            if file.name != "update.json"  # names and numbers, of which some are seconds
        }

    return read


MakeSpec = Callable[..., JobSpec]


@pytest.fixture
def make_spec(tiny_model: Path, pairs_csv: Path) -> MakeSpec:
    """A job on the pairs; words change its leaves."""

    def make(**changes) -> JobSpec:
        spec = parse_spec(
            {
                "model": {"name": str(tiny_model)},
                "data": {"train": {"uri": str(pairs_csv)}},
                "objective": {"loss": "MultipleNegativesRankingLoss"},
                "training": {
                    "per_device_train_batch_size": 8,
                    "num_train_epochs": 2,
                    "learning_rate": 1e-3,
                    "device": "cpu",
                },
            }
        )
        return spec.changed(**changes)

    return make
