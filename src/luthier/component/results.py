"""What finetune leaves: the best model, its metrics and report, and the model as MLflow's."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier.component.checkpoints import numbered
from luthier.component.folders import link_or_copy, output, write_json, write_marker
from luthier.engine.control import Listener
from luthier.models.mlflow_signature import options_of
from luthier.spec.job import JobSpec

if TYPE_CHECKING:
    from luthier.component.finetune import Folders

#: The files of a run's result that users are to see beside the model.
_REPORT = ("report.json", "report.html")
_OURS = "luthier"


def write_results(
    args: Mapping[str, Any], folders: Folders, spec: JobSpec, result: Path, tell: Listener
) -> dict[str, Any]:
    """Write both outputs of a finished run. result: the engine's bundle, a merged model."""
    from luthier.models.mlflow_folder import write_mlflow_model

    place, mlflow = Path(args["pytorch_model_folder"]), Path(args["mlflow_model_folder"])
    adapter = bool(args["apply_lora"]) and not args["merge_lora_weights"]
    metrics = json.loads((result / _OURS / "metrics.json").read_text(encoding="utf-8"))
    facts = {
        "task": spec.task,
        "model_name": folders.selected.name,
        "adapter": adapter,
        "labels": list(folders.prepared.labels),
        "metrics": metrics,
    }
    tell("stage", {"name": "writing the model"})
    with output(place, "finetune", keep=_kept) as new:
        _fill(new, result, adapter=adapter)
        write_json(new / "metrics.json", metrics)
        write_marker(new, "finetune", args, facts)
    with output(mlflow, "finetune") as new:
        write_mlflow_model(new, result, spec.task, options=_options(spec))
        write_marker(new, "finetune", args, facts)
    return {
        "step": "finetune",
        "pytorch_model_folder": str(place),
        "mlflow_model_folder": str(mlflow),
        "checkpoints": [path.name for path in reversed(numbered(place))],
        **facts,
    }


def show(made: Mapping[str, Any]) -> None:
    """Before and after with intervals, and the verdict, on stdout."""
    from rich.console import Console

    from luthier.evaluation.report import read_report
    from luthier.evaluation.terminal import terminal_table

    report = read_report(Path(made["pytorch_model_folder"]) / "report.json")
    Console().print(terminal_table(report))


def _kept(name: str) -> bool:
    return name.startswith("checkpoint-") or name == ".luthier"


def _fill(new: Path, result: Path, *, adapter: bool) -> None:
    """Second names for the files of a result."""
    for path in result.iterdir():
        weights = path.suffix == ".safetensors" or path.name.endswith(".index.json")
        if path.is_file() and not (adapter and (weights or path.name == "config.json")):
            link_or_copy(path, new / path.name)
    for name in _REPORT:
        if (result / _OURS / name).is_file():
            link_or_copy(result / _OURS / name, new / name)
    if adapter:
        for path in (result / _OURS / "adapter").iterdir():
            link_or_copy(path, new / path.name)


def _options(spec: JobSpec) -> dict[str, Any]:
    """How a served model is to read rows: as the tuned one did."""
    known, words = options_of(spec.task), spec.processing.model_dump(mode="json")
    return {name: value for name, value in words.items() if name in known and value is not None}
