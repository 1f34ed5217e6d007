"""A lint for pipeline YAML: how inputs, jobs and outputs are wired.

``azure.ai.ml`` loads a pipeline whose ``${{parent.inputs.x}}`` is nobody's input and finds out
in the cloud; here it is said before.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from luthier.doors.component_lint import (
    PATH_TYPES,
    component_faults,
    input_faults,
    loaded,
    value_fault,
)
from luthier.errors import nearest

PARENT = re.compile(r"\$\{\{\s*parent\.inputs\.([\w-]+)\s*\}\}")
JOB = re.compile(r"\$\{\{\s*parent\.jobs\.([\w-]+)\.outputs\.([\w-]+)\s*\}\}")
_RESULT = re.compile(r"\$\{\{\s*parent\.outputs\.([\w-]+)\s*\}\}")
_ANY = re.compile(r"\$\{\{(.*?)\}\}")


def lint_pipeline(text: str, components: Mapping[str, str]) -> list[str]:
    """What is wrong with a pipeline, a sentence each; [] when nothing is.

    components: ``component:`` as jobs have it → the YAML text of that file.
    """
    try:
        pipeline = loaded(text)
    except ValueError as error:
        return [str(error)]
    found: dict[str, Any] = {}
    faults = []
    for name, job in _mapping(pipeline, "jobs").items():
        component = job.get("component") if isinstance(job, dict) else None
        if isinstance(component, str):
            if component not in components:
                faults.append(f"jobs.{name}: its component {component} is not there")
                continue
            try:
                found[name] = loaded(components[component])
            except ValueError as error:
                faults.append(f"jobs.{name}: its component {component} {error}")
        elif isinstance(job, dict):
            found[name] = inline(job)
    return [*faults, *pipeline_faults(pipeline, found)]


def inline(job: Mapping[str, Any]) -> dict[str, Any]:
    """The component of a job that has no file of its own.

    A job with a ``command`` declares its inputs and outputs by binding them.
    """
    if isinstance(job.get("component"), dict):
        return dict(job["component"])
    declared = {
        side: {n: a if isinstance(a, dict) else {} for n, a in _mapping(job, side).items()}
        for side in ("inputs", "outputs")
    }
    return {**job, **declared}


def bound_value(value: Any) -> str | None:
    """A job's input as text: ``5``, ``true``, ``${{parent.inputs.x}}``, or the path of one."""
    if isinstance(value, dict):
        value = value.get("path")
    if value is None:
        return None
    return str(value).lower() if isinstance(value, bool) else str(value)


@dataclass(frozen=True)
class _Job:
    name: str
    inputs: Mapping[str, Any]
    component: Mapping[str, Any] | None


def pipeline_faults(
    pipeline: Mapping[str, Any], components: Mapping[str, Mapping[str, Any]]
) -> Iterator[str]:
    """Those of a pipeline that was read. components: job → its component, where it is known."""
    jobs = _mapping(pipeline, "jobs")
    if not jobs:
        yield "jobs is missing"
        return
    inputs = _mapping(pipeline, "inputs")
    for name, about in inputs.items():
        if isinstance(about, dict):
            yield from input_faults(name, about)
    used: set[str] = set()
    results: list[str] = []
    for name, job in jobs.items():
        if not isinstance(job, dict):
            yield f"jobs.{name} is no mapping"
            continue
        one = _Job(name, _mapping(job, "inputs"), components.get(name))
        if one.component is not None:
            yield from (f"jobs.{name}: {fault}" for fault in component_faults(one.component))
        yield from _input_faults(one, inputs, jobs, components)
        used |= set(PARENT.findall(str(one.inputs)))
        for output, target in _mapping(job, "outputs").items():
            yield from _output_faults(one, output, target)
            results += _RESULT.findall(str(target))
    yield from (f"inputs.{name} is not used by any job" for name in inputs if name not in used)
    yield from _result_faults(_mapping(pipeline, "outputs"), results)
    yield from _circle(dependencies(jobs))


def dependencies(jobs: Mapping[str, Any]) -> dict[str, set[str]]:
    """Job → the jobs whose outputs it reads."""
    return {
        name: {other for other, _ in JOB.findall(str(_mapping(job, "inputs")))} & set(jobs)
        for name, job in jobs.items()
        if isinstance(job, dict)
    }


def in_order(needs: Mapping[str, set[str]]) -> list[str]:
    """Jobs, each after those it needs, else as they are written; fewer where there is a circle."""
    done: list[str] = []
    while True:
        ready = (name for name in needs if name not in done and needs[name] <= set(done))
        following = next(ready, None)
        if following is None:
            return done
        done.append(following)


def _circle(needs: Mapping[str, set[str]]) -> Iterator[str]:
    stuck = sorted(set(needs) - set(in_order(needs)))
    if stuck:
        yield f"jobs.{stuck[0]}: {' and '.join(stuck)} wait for each other"


def _input_faults(
    job: _Job, parents: Mapping[str, Any], jobs: Mapping[str, Any],
    components: Mapping[str, Mapping[str, Any]],
) -> Iterator[str]:  # fmt: skip
    declared = None if job.component is None else _mapping(job.component, "inputs")
    for name, value in job.inputs.items():
        where = f"jobs.{job.name}.inputs.{name}"
        if declared is not None and name not in declared:
            yield f"{where}: its component has no such input{_hint(name, declared)}"
            continue
        about = _about(declared or {}, name)
        text = bound_value(value)
        if text is not None and not _ANY.search(text):
            fault = None if about.get("type") in PATH_TYPES else value_fault(about, text)
            if fault:
                yield f"{where}: {text!r} {fault}"
            continue
        yield from (f"{where}: {fault}" for fault in _misbound(text or "", about, parents))
        for other, output in JOB.findall(text or ""):
            if other not in jobs:
                yield f"{where}: there is no job {other}{_hint(other, jobs)}"
            elif other in components and output not in _mapping(components[other], "outputs"):
                known = _mapping(components[other], "outputs")
                yield f"{where}: {other} has no output {output}{_hint(output, known)}"
    for name in declared or {}:
        about = _about(declared or {}, name)
        if name not in job.inputs and not about.get("optional") and about.get("default") is None:
            yield f"jobs.{job.name}: the input {name} of its component is required"


def _misbound(text: str, about: Mapping[str, Any], parents: Mapping[str, Any]) -> Iterator[str]:
    for use in _ANY.finditer(text):
        if not PARENT.fullmatch(use[0]) and not JOB.fullmatch(use[0]):
            yield (
                f"{use[0]} is neither ${{{{parent.inputs.x}}}} nor ${{{{parent.jobs.a.outputs.b}}}}"
            )
    for parent in PARENT.findall(text):
        if parent not in parents:
            yield f"there is no inputs.{parent}{_hint(parent, parents)}"
            continue
        given = _about(parents, parent)
        lacks = given.get("optional") and given.get("default") is None
        if lacks and about and not about.get("optional") and about.get("default") is None:
            yield f"is required, but inputs.{parent} is optional and has no default"
        kinds = [one.get("type") for one in (given, about)]
        if all(kinds) and (kinds[0] in PATH_TYPES) != (kinds[1] in PATH_TYPES):
            yield f"is a {kinds[1]}, but inputs.{parent} is a {kinds[0]}"


def _output_faults(job: _Job, output: str, target: Any) -> Iterator[str]:
    where = f"jobs.{job.name}.outputs.{output}"
    known = None if job.component is None else _mapping(job.component, "outputs")
    if known is not None and output not in known:
        yield f"{where}: its component has no such output{_hint(output, known)}"
    if isinstance(target, str) and not _RESULT.fullmatch(target):
        yield f"{where}: {target} is no ${{{{parent.outputs.x}}}}"


def _result_faults(outputs: Mapping[str, Any], bound: list[str]) -> Iterator[str]:
    for name in dict.fromkeys(bound):
        if name not in outputs:
            yield f"outputs.{name} is not declared{_hint(name, outputs)}"
        elif bound.count(name) > 1:
            yield f"outputs.{name} is written by more than one job"
    yield from (f"outputs.{name} is written by no job" for name in outputs if name not in bound)


def _mapping(of: Mapping[str, Any], key: str) -> dict[str, Any]:
    found = of.get(key)
    return found if isinstance(found, dict) else {}


def _about(declared: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """An input as it is declared; of a pipeline it may be its value alone."""
    about = declared.get(name)
    return about if isinstance(about, dict) else {}


def _hint(name: str, known: Mapping[str, Any]) -> str:
    hint = nearest(name, known)
    return f" ({hint})" if hint else ""
