"""From a spec's sources to checked datasets."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from luthier.data import Dataset, load_dataset, split
from luthier.engine.control import Listener
from luthier.errors import DataError
from luthier.spec import CalculatorCallback, CSVOptions, EvaluationCallback, JobSpec, Source
from luthier.store.bundle import sha256_of
from luthier.store.urls import local_file


@dataclass(frozen=True)
class Place:
    """Where a run reads and writes.

    folder: the run's own, for checkpoints and the result. cache: datasets as Arrow, shared by
    all runs, safe to delete. blobs, artifacts: from an id to a verified local path.
    """

    folder: Path
    cache: Path
    blobs: Callable[[str], Path]
    artifacts: Callable[[str], Path]


@dataclass(frozen=True)
class Data:
    """All data of a run. ``held_out`` is what val_loss and, where no callback names other
    queries, the evaluation are computed on. calculated: "train" and "test", what calculators
    score. probe: what an update is scored on before and after."""

    train: Dataset
    held_out: Dataset | None
    queries: Dataset | None
    index: Dataset | None
    calculated: Mapping[str, Dataset] = field(default_factory=dict)
    probe: Dataset | None = None


def read_data(spec: JobSpec, place: Place, tell: Listener) -> Data:
    """Read, check and split everything that the spec names.

    Raises DataError with file, row and column; NotFound and UnsafeLocation for sources.
    """
    csv = spec.data.csv
    train = _load(spec.data.train, csv, place, tell)
    held_out = _load(spec.data.eval, csv, place, tell) if spec.data.eval else None
    if held_out is not None and (train.form == "rankings") != (held_out.form == "rankings"):
        raise DataError(
            f"the training data is {train.form}, and eval_data is {held_out.form}",
            file=spec.data.eval.uri if spec.data.eval else None,
            hint="give both in one form, or evaluate with an EvaluationCallback",
        )
    if spec.data.val_split:
        train, held_out = split(train, spec.data.val_split, spec.training.seed)
    asked = next((c for c in spec.callbacks if isinstance(c, EvaluationCallback)), None)
    queries = _load(asked.query_data, csv, place, tell) if asked else held_out
    index = _load(asked.index_data, csv, place, tell) if asked and asked.index_data else None
    probe = _load(spec.data.probe, csv, place, tell) if spec.data.probe else None
    return Data(train, held_out, queries, index, _calculated(spec, place, tell), probe)


def _calculated(spec: JobSpec, place: Place, tell: Listener) -> dict[str, Dataset]:
    asked = next((c for c in spec.callbacks if isinstance(c, CalculatorCallback)), None)
    sources = {"train": asked.train_data, "test": asked.test_data} if asked else {}
    found = {
        stage: _load(source, spec.data.csv, place, tell)
        for stage, source in sources.items()
        if source is not None
    }
    for stage, dataset in found.items():
        if dataset.form != "rankings":
            raise DataError(f"the data is {dataset.form}", file=f"{stage}_data of calculators",
                            hint="calculators score rankings: query, items, relevance")  # fmt: skip
    return found


def located(source: Source, place: Place) -> Path:
    """The local file of a source. Raises DataError when it is not what was submitted."""
    path = local_file(source.uri, place.cache, place.blobs)
    if source.sha256 is not None and sha256_of(path) != source.sha256:
        raise DataError(
            "the file has changed since the job was submitted",
            file=source.uri,
            hint="submit the job again to train on the new content",
        )
    return path


def _load(source: Source, csv: CSVOptions, place: Place, tell: Listener) -> Dataset:
    dataset = load_dataset(located(source, place), csv, place.cache, name=source.uri)
    columns = ", ".join(f"{role} ← {column}" for role, column in dataset.mapping.items())
    message = f"{source.uri}: {len(dataset):,} rows, {dataset.form} ({columns})"
    for text in (message, *dataset.notes):
        tell("log", {"level": "info", "message": text})
    return dataset
