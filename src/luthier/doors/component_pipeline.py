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

from luthier.doors.component import read
from luthier.doors.component_table import METRICS, PATHS, TABLE, Parameter, Step
from luthier.doors.component_yaml import ENVIRONMENT, VERSION, component_yaml, input_of, output_of
from luthier.errors import Problem, SpecError, nearest

SCHEMA = "https://azuremlschemas.azureedge.net/latest/pipelineComponent.schema.json"
JOB_SCHEMA = "https://azuremlschemas.azureedge.net/latest/pipelineJob.schema.json"

#: Where Azure runs a job's steps unless told otherwise.
COMPUTE = "azureml:cpu-cluster"

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


def job_yaml(given: Mapping[str, str], task_name: str | None, *, compute: str = COMPUTE) -> str:
    """A job that runs the pipeline beside it with some inputs; the others have their defaults.

    given: input → text; a path is meant from where the file will be. Raises SpecError with
    every problem.
    """
    rows = _inputs(task_name)
    problems = [
        Problem(name, "the pipeline has no such input", nearest(name, rows))
        for name in given
        if name not in rows
    ]
    inputs: dict[str, Any] = {}
    for name, row in rows.items():
        if name not in given:
            if row.required:
                problems.append(Problem(name, "is required", row.help))
            continue
        if row.kind in PATHS:
            inputs[name] = {"type": row.kind, "path": given[name]}
            continue
        try:
            value = read(row, given[name])
            inputs[name] = str(value).lower() if row.kind == "boolean" else value
        except SpecError as error:
            problems += error.problems
    if problems:
        raise SpecError(problems)
    job = {
        "$schema": JOB_SCHEMA,
        "type": "pipeline",
        "display_name": f"luthier {task_name or 'any task'}",
        "component": "./pipeline.yaml",
        "inputs": inputs,
        "settings": {"default_compute": compute},
    }
    return yaml.safe_dump(job, sort_keys=False, allow_unicode=True, width=100)


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
