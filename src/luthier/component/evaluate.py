"""``evaluate``: a tuned model on rows that training never saw, with intervals."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from luthier.component.folders import check_apart, output, write_json, write_marker
from luthier.component.inputs import Prepared, read_prepared
from luthier.component.model_import import mlflow_data
from luthier.data.rows import Rows, read_rows
from luthier.engine.control import Control, Listener, obeying
from luthier.errors import DataError, ModelError
from luthier.evaluation.significance import resamples_of
from luthier.registry import find
from luthier.spec import CSVOptions
from luthier.store.bundle import sha256_of
from luthier.store.urls import local_file
from luthier.tasks.examples import Examples
from luthier.tasks.scores import Scores
from luthier.tasks.task import Task

#: The middle share of resamples that an interval holds, and how many there are; as the engine's.
_CONFIDENCE, _RESAMPLES = 0.95, 10_000


def evaluate(args: Mapping[str, Any], tell: Listener, control: Control) -> dict[str, Any]:
    """Carry out the step; what it made, as JSON data. args: as ``parse("evaluate", …)`` gave.

    pytorch_model_folder may be an MLflow model that luthier wrote. Raises DataError with file,
    row and column; ModelError: no model, or one of another task; NotFound; Conflict.
    """
    check_apart("evaluate", args)
    prepared = read_prepared(Path(args["preprocess_output"]))
    place, folder = Path(args["evaluation_output"]), Path(args["pytorch_model_folder"])
    model_folder = _model_folder(folder)
    spec = prepared.described(model_folder)
    task: Task = find("task", spec.task).load()(spec.processing)
    rows, where = _rows(args, prepared)
    examples = task.read(rows, prepared.labels or None)
    tell("stage", {"name": "loading the model"})
    model, processor = task.load(str(model_folder), prepared.labels, random_head_ok=False)
    model.eval().to(_device())
    tell("stage", {"name": f"evaluating on {len(examples):,} rows"})
    predictions = task.predict(
        model, examples, processor,
        batch_size=args["per_device_eval_batch_size"], obey=obeying(control),
    )  # fmt: skip
    scores = task.score(predictions, examples)
    facts = {
        "task": spec.task,
        "rows": len(examples),
        "file": where,
        "rows_id": examples.rows.id,
        "metrics": _plain(scores.metrics),
        "intervals": _intervals(task, scores, examples, args["seed"]),
        "confidence": _CONFIDENCE,
        "less_is_better": [m.name for m in task.metrics if not m.greater_is_better],
    }
    with output(place, "evaluate") as new:
        write_json(new / "metrics.json", facts)
        _write_predictions(new / "predictions.jsonl", predictions.values)
        write_marker(new, "evaluate", args, facts)
    return {"step": "evaluate", "evaluation_output": str(place), **facts}


def _model_folder(folder: Path) -> Path:
    if not folder.is_dir():
        raise ModelError("pytorch_model_folder: there is no such folder", where=str(folder))
    if (folder / "MLmodel").is_file():
        return mlflow_data(folder)
    if (folder / "config.json").is_file():
        return folder
    hint = None
    if (folder / "adapter_config.json").is_file():
        hint = (
            "it holds an adapter: merge_lora_weights=true writes a model that stands by itself, "
            "and mlflow_model_folder has one in any case"
        )
    raise ModelError("holds no model: there is no config.json", where=str(folder), hint=hint)


def _rows(args: Mapping[str, Any], prepared: Prepared) -> tuple[Rows, str]:
    """The rows to measure on, and what they are called."""
    given = args["test_file_path"]
    if given is not None:
        path = local_file(str(given), prepared.folder / ".downloads")
        return read_rows(path, CSVOptions(), name=str(given)), str(given)
    split = prepared.splits.get("test")
    if split is None or not split.file.is_file():
        raise DataError(
            "there are no test rows",
            file=str(prepared.folder),
            hint="give test_file_path, here or to the step preprocess",
        )
    if sha256_of(split.file) != split.sha256:
        message = "the file has changed since preprocess wrote it"
        raise DataError(message, file=str(split.file), hint="do the step preprocess again")
    return read_rows(split.file, CSVOptions()), str(split.file)


def _device() -> str:
    from luthier.engine.device import pick

    return pick("auto")


def _intervals(
    task: Task, scores: Scores, examples: Examples, seed: int
) -> dict[str, list[float | None]]:
    """Metric → the ends of its bootstrap interval over rows."""
    draws: dict[str, list[np.ndarray]] = {}
    for counts in resamples_of(len(examples), _RESAMPLES, seed):
        for name, values in task.resampled(scores, counts).items():
            draws.setdefault(name, []).append(values)
    tail = (1 - _CONFIDENCE) / 2
    found: dict[str, list[float | None]] = {}
    for name, parts in draws.items():
        ends = np.nanquantile(np.concatenate(parts), [tail, 1 - tail])
        found[name] = [_finite(float(end)) for end in ends]
    return found


def _plain(metrics: Mapping[str, float]) -> dict[str, float | None]:
    return {name: _finite(float(value)) for name, value in metrics.items()}


def _finite(value: float) -> float | None:
    return value if np.isfinite(value) else None


def _write_predictions(file: Path, values: list[Any]) -> None:
    """A line a row, in the order of the rows."""
    with open(file, "w", encoding="utf-8") as lines:
        for value in values:
            lines.write(json.dumps({"prediction": value}, ensure_ascii=False) + "\n")
