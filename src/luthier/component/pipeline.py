"""A pipeline's YAML, read and bound: which processes are to run, in which order, on what.

Read is a pipeline component, a pipeline job, or a job that names a pipeline's file. Whatever
needs the cloud (a registered component, a sweep, several nodes) is refused.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from luthier.doors.component_lint import PATH_TYPES, loaded, value_fault
from luthier.doors.pipeline_lint import (
    JOB,
    PARENT,
    bound_value,
    dependencies,
    in_order,
    inline,
    pipeline_faults,
)
from luthier.errors import NotFound, Problem, SpecError, nearest

_BOUND = re.compile(f"{PARENT.pattern}|{JOB.pattern}")


@dataclass(frozen=True)
class Step:
    """A job of a pipeline. inputs: as they are bound, templates and all; None is not given."""

    name: str
    command: str
    inputs: Mapping[str, str | None]
    declared: Mapping[str, Mapping[str, Any]]
    outputs: Mapping[str, str]
    results: Mapping[str, str]
    code: Path | None
    environment: Mapping[str, str]
    processes: int
    repeatable: bool


@dataclass(frozen=True)
class Pipeline:
    """A pipeline: its steps in order. inputs: as they are declared; values: those that it has.

    outputs of a step: name → type; results of a step: output → output of the pipeline.
    """

    file: Path
    name: str
    inputs: Mapping[str, Mapping[str, Any]]
    values: Mapping[str, str]
    steps: tuple[Step, ...]


def read_pipeline(file: Path) -> Pipeline:
    """Read and lint a file. Raises NotFound, SpecError with every fault."""
    document = _read(file)
    if isinstance(document.get("component"), str) and not document.get("jobs"):
        inner = read_pipeline(_beside(file, document["component"], "component"))
        return _given_to(inner, file, document)
    if document.get("type", "pipeline") != "pipeline" or "jobs" not in document:
        what = f"is a {document.get('type')}" if document.get("type") else "has no jobs"
        hint = "luthier component yaml TASK --output FOLDER writes a pipeline"
        raise SpecError([Problem(str(file), f"{what}, not a pipeline", hint)])
    components: dict[str, dict[str, Any]] = {}
    folders: dict[str, Path] = {}
    problems: list[Problem] = []
    for name, job in _mapping(document, "jobs").items():
        try:
            components[name], folders[name] = _component(file, name, job)
        except SpecError as error:
            problems += error.problems
    faults = list(pipeline_faults(document, components))
    if faults or problems:
        raise SpecError([*problems, *(_problem(file, fault) for fault in faults)])
    jobs = document["jobs"]
    declared, values = _declared(_mapping(document, "inputs"), file.parent)
    steps = tuple(
        _step(name, jobs[name], components[name], folders[name], file.parent)
        for name in in_order(dependencies(jobs))
    )
    return Pipeline(file, str(document.get("name") or file.stem), declared, values, steps)


def bind(pipeline: Pipeline, given: Mapping[str, str]) -> dict[str, str]:
    """The value of every input that has one: given, the pipeline's own, or the default.

    Paths become absolute: those given are meant from the working folder. Raises SpecError with
    every problem.
    """
    known = pipeline.inputs
    problems = [
        Problem(name, f"{pipeline.file.name} has no such input", nearest(name, known))
        for name in given
        if name not in known
    ]
    values: dict[str, str] = {}
    for name, about in known.items():
        text = given.get(name, pipeline.values.get(name))
        if text is None:
            if not about.get("optional") and about.get("default") is None:
                message = f"is required: {about.get('description') or about.get('type')}"
                problems.append(Problem(name, message, f"--set {name}=…"))
            elif about.get("default") is not None:
                values[name] = str(bound_value(about["default"]))
            continue
        try:
            values[name] = _checked(name, about, text)
        except SpecError as error:
            problems += error.problems
    if problems:
        raise SpecError(problems)
    return values


def inputs_of(
    step: Step, values: Mapping[str, str], made: Mapping[str, Mapping[str, Path]]
) -> dict[str, str]:
    """What a step gets. values: of the pipeline; made: job → output → where it is.

    An input that nobody gives has its component's default, and none where there is none.
    """
    found: dict[str, str] = {}
    for name, about in step.declared.items():
        text = step.inputs.get(name)
        if text is not None and all(parent in values for parent in PARENT.findall(text)):
            # in one pass: what a value holds is text, however it looks
            found[name] = _BOUND.sub(
                lambda use: values[use[1]] if use[1] else str(made[use[2]][use[3]]), text
            )
        elif about.get("default") is not None:
            found[name] = str(bound_value(about["default"]))
    return found


def _read(file: Path) -> dict[str, Any]:
    try:
        return loaded(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        hint = "luthier component yaml TASK --output FOLDER writes a pipeline"
        raise NotFound("there is no such file", where=str(file), hint=hint) from None
    except IsADirectoryError:
        inside = file / "pipeline.yaml"
        meant = f"did you mean '{inside}'?" if inside.is_file() else None
        raise SpecError([Problem(str(file), "is a folder, not a pipeline's YAML", meant)]) from None
    except OSError as error:
        raise SpecError([Problem(str(file), f"cannot be read ({error.strerror})")]) from None
    except ValueError as error:  # no YAML, or no text
        raise SpecError([Problem(str(file), str(error))]) from None


def _given_to(inner: Pipeline, file: Path, job: Mapping[str, Any]) -> Pipeline:
    """A pipeline with the values of a job."""
    given = _mapping(job, "inputs")
    unknown = [
        Problem(f"{file}: inputs.{name}", "the pipeline has no such input", nearest(name, known))
        for known in (inner.inputs,)
        for name in given
        if name not in known
    ]
    if unknown:
        raise SpecError(unknown)
    _, values = _declared(given, file.parent)
    name = str(job.get("name") or inner.name)
    return Pipeline(file, name, inner.inputs, {**inner.values, **values}, inner.steps)


def _declared(
    inputs: Mapping[str, Any], folder: Path
) -> tuple[dict[str, Mapping[str, Any]], dict[str, str]]:
    """Inputs as they are declared, and the values of those that are given one at once."""
    declared: dict[str, Mapping[str, Any]] = {}
    values: dict[str, str] = {}
    for name, about in inputs.items():
        declared[name] = about if isinstance(about, dict) else {}
        text = None if isinstance(about, dict) and "path" not in about else bound_value(about)
        if text is not None:
            is_path = isinstance(about, dict)
            values[name] = str(folder / text) if is_path and "://" not in text else text
    return declared, values


def _component(file: Path, name: str, job: Any) -> tuple[dict[str, Any], Path]:
    """The component of a job, and the folder that its paths are meant from."""
    where = f"{file}: jobs.{name}"
    if not isinstance(job, dict):
        return {}, file.parent
    kind = job.get("type", "command")
    if kind != "command":
        raise SpecError([Problem(where, f"a job of type {kind} does not run here")])
    component = job.get("component")
    if not isinstance(component, str):
        return inline(job), file.parent
    found = _beside(file, component, f"jobs.{name}.component")
    document = _read(found)
    if document.get("type", "command") != "command":
        message = f"{component} is a {document['type']}, which does not run here"
        raise SpecError([Problem(where, message)])
    return document, found.parent


def _beside(file: Path, name: str, field: str) -> Path:
    where = f"{file}: {field}"
    if name.startswith("azureml:") or "://" in name:
        message = f"'{name}' lies in the cloud, which a local run does not ask"
        raise SpecError([Problem(where, message, "name the component's YAML file")])
    found = file.parent / name.removeprefix("file:")
    if not found.is_file():
        raise SpecError([Problem(where, f"there is no file {found}")])
    return found


def _step(
    name: str, job: Mapping[str, Any], component: dict[str, Any], folder: Path, beside: Path
) -> Step:
    """folder: what the component's paths are meant from; beside: what the pipeline's are."""
    merged = {**component, **{k: v for k, v in job.items() if k not in ("inputs", "outputs")}}
    resources, spread = _mapping(merged, "resources"), _mapping(merged, "distribution")
    nodes, processes = resources.get("instance_count", 1), spread.get("process_count_per_instance")
    if nodes != 1:
        message = f"{nodes} nodes were asked for, and this is one"
        raise SpecError([Problem(f"jobs.{name}.resources.instance_count", message)])
    code = merged.get("code")
    outputs = _mapping(component, "outputs")
    declared = {
        n: about if isinstance(about, dict) else {}
        for n, about in _mapping(component, "inputs").items()
    }
    inputs = {n: bound_value(value) for n, value in _mapping(job, "inputs").items()}
    for n, text in inputs.items():
        if text is not None and "${{" not in text and declared[n].get("type") in PATH_TYPES:
            path = text if ":" in text else str(beside / text)
            inputs[n] = _checked(f"jobs.{name}.inputs.{n}", declared[n], path)
    return Step(
        name=name,
        command=str(component["command"]),
        inputs=inputs,
        declared=declared,
        outputs={n: str((about or {}).get("type", "uri_folder")) for n, about in outputs.items()},
        results={
            n: text.removeprefix("${{").removesuffix("}}").strip().rpartition(".")[2]
            for n, text in _mapping(job, "outputs").items()
            if isinstance(text, str)
        },
        code=None if code is None else _beside_folder(folder, str(code), name),
        environment={n: str(v) for n, v in _mapping(merged, "environment_variables").items()},
        processes=int(processes or 1),
        repeatable=bool(component.get("is_deterministic", True)),
    )


def _beside_folder(folder: Path, name: str, job: str) -> Path:
    found = (folder / name).resolve()
    if not found.is_dir():
        raise SpecError([Problem(f"jobs.{job}.code", f"there is no folder {found}")])
    return found


def _checked(name: str, about: Mapping[str, Any], text: str) -> str:
    """A value within what its input takes; a path as an absolute one."""
    kind = about.get("type")
    if kind not in PATH_TYPES:
        fault = value_fault(about, text)
        if fault:
            raise SpecError([Problem(name, f"'{text}' {fault}")])
        return text
    if text.startswith("azureml:"):
        message = f"'{text}' lies in the cloud, which a local run does not ask"
        raise SpecError([Problem(name, message, "name a local path")])
    if "://" in text:
        return text  # the steps open URLs themselves
    path = Path(text).expanduser()
    if not path.exists():
        raise SpecError([Problem(name, f"there is no file or folder {path}")])
    if path.is_dir() == (kind == "uri_file"):
        message = f"{path} is a {'folder' if path.is_dir() else 'file'}, and a {kind} is wanted"
        raise SpecError([Problem(name, message)])
    return str(path.resolve())


def _problem(file: Path, fault: str) -> Problem:
    return Problem(str(file), fault)


def _mapping(of: Mapping[str, Any], key: str) -> dict[str, Any]:
    found = of.get(key)
    return found if isinstance(found, dict) else {}
