"""The four components of a task as one Azure ML pipeline, made from the table.

The schema is https://azuremlschemas.azureedge.net/latest/pipelineComponent.schema.json. What one
step writes and another reads is wired; all else that the steps take is an input of the pipeline,
under the same name.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import yaml

from luthier.doors.component_table import METRICS, TABLE, Parameter, Step
from luthier.doors.component_yaml import ENVIRONMENT, VERSION, component_yaml, input_of, output_of

SCHEMA = "https://azuremlschemas.azureedge.net/latest/pipelineComponent.schema.json"

#: The name of the pipeline that takes any task.
ANY_TASK = "pipeline"

#: Input of a step → the step whose output of the same name it is.
WIRES: Mapping[Step, Mapping[str, Step]] = {
    "import": {},
    "preprocess": {"model_selector_output": "import"},
    "finetune": {"model_selector_output": "import", "preprocess_output": "preprocess"},
    "evaluate": {"pytorch_model_folder": "finetune", "preprocess_output": "preprocess"},
}

#: Output of a step → of the pipeline. The others are only handed on.
_RESULTS: Mapping[Step, tuple[str, ...]] = {
    "finetune": ("pytorch_model_folder", "mlflow_model_folder"),
    "evaluate": ("evaluation_output",),
}

#: Inputs that a step of a pipeline does not take: evaluate measures preprocess's test rows.
_LEFT_OUT: Mapping[Step, tuple[str, ...]] = {"evaluate": ("test_file_path",)}

#: A task's inputs that ``parse`` asks for, though not of every task.
_REQUIRED = {"Translation": ("source_lang", "target_lang")}


def pipeline_files(
    task_name: str | None, *, environment: str = ENVIRONMENT, version: str = VERSION
) -> dict[str, str]:
    """File name → text: the component of every step and ``pipeline.yaml``.

    task_name: one of TASKS; None makes it an input of the pipeline.
    """
    files = {
        f"{step}.yaml": component_yaml(step, environment=environment, version=version)
        for step in TABLE
    }
    return files | {"pipeline.yaml": pipeline_yaml(task_name, version=version)}


def pipeline_yaml(task_name: str | None, *, version: str = VERSION) -> str:
    """The pipeline of a task; its components are the files beside it."""
    inputs = _inputs(task_name)
    title = task_name or "any task"
    pipeline: dict[str, Any] = {
        "$schema": SCHEMA,
        "type": "pipeline",
        "name": f"luthier_{_snake(task_name or 'finetuning')}",
        "version": version,
        "display_name": f"luthier {title}",
        "description": f"Import a model, preprocess, finetune, evaluate: {title}.",
        "inputs": {name: input_of(row) for name, row in inputs.items()},
        "outputs": {
            row.name: output_of(row)
            for step, names in _RESULTS.items()
            for row in TABLE[step]
            if row.name in names
        },
        "jobs": {step: _job(step, task_name, inputs) for step in TABLE},
    }
    return yaml.safe_dump(pipeline, sort_keys=False, allow_unicode=True, width=100)


def _inputs(task_name: str | None) -> dict[str, Parameter]:
    """What the pipeline takes. A parameter of several steps is one input of them all."""
    found: dict[str, Parameter] = {}
    for step, rows in TABLE.items():
        for row in rows:
            wired = row.output or row.name in WIRES[step] or row.name in _LEFT_OUT.get(step, ())
            if not wired and (task_name is None or not row.tasks or task_name in row.tasks):
                found[row.name] = row
    if task_name is None:
        return found
    del found["task_name"]
    metric = found["metric_for_best_model"]
    found["metric_for_best_model"] = replace(metric, choices=("loss", *METRICS[task_name]))
    asked = _REQUIRED.get(task_name, ())
    return {
        name: replace(row, tasks=(), required=row.required or name in asked)
        for name, row in found.items()
    }


def _job(step: Step, task_name: str | None, inputs: Mapping[str, Parameter]) -> dict[str, Any]:
    given: dict[str, Any] = {}
    for row in TABLE[step]:
        source = WIRES[step].get(row.name)
        if row.name == "task_name" and task_name is not None:
            given[row.name] = task_name
        elif source is not None:
            given[row.name] = f"${{{{parent.jobs.{source}.outputs.{row.name}}}}}"
        elif row.name in inputs and not row.output and row.name not in _LEFT_OUT.get(step, ()):
            given[row.name] = f"${{{{parent.inputs.{row.name}}}}}"
    results = {name: f"${{{{parent.outputs.{name}}}}}" for name in _RESULTS.get(step, ())}
    job = {"type": "command", "component": f"./{step}.yaml", "inputs": given}
    return job | ({"outputs": results} if results else {})


def _snake(name: str) -> str:
    """
    >>> _snake("QuestionAnswering")
    'question_answering'
    """
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower()
