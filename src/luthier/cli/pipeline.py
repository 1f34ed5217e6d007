"""``luthier component yaml`` and ``luthier component run``: pipelines written, and run here."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, cast

import typer

from luthier.cli.output import Json, note, print_facts, print_json
from luthier.doors.component_pipeline import ANY_TASK, COMPUTE, job_yaml, pipeline_files
from luthier.doors.component_table import TABLE, TASKS, Step
from luthier.doors.component_yaml import ENVIRONMENT, VERSION, component_yaml
from luthier.errors import Conflict, NotFound, Problem, SpecError, nearest
from luthier.store import atomic


def show_yaml(
    what: str = typer.Argument(
        metavar="STEP|TASK|pipeline",
        help="A step (import, preprocess, finetune, evaluate); a task (Translation, …): its "
        "pipeline; or pipeline: one for any task.",
    ),
    output: str = typer.Option(
        None, metavar="FOLDER", help="Write the files there: of a pipeline, its components too."
    ),
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="NAME=VALUE",
            help="Of a pipeline: write job.yaml too, a job with this value of an input. May be "
            "repeated; a path is meant from FOLDER.",
        ),
    ] = None,
    compute: str = typer.Option(COMPUTE, help="Where job.yaml's steps run in Azure."),
    overwrite: bool = typer.Option(False, "--overwrite", help="Replace files that differ."),
    environment: str = typer.Option(ENVIRONMENT, help="The Azure ML environment with luthier."),
    version: str = typer.Option(VERSION, help="The components' version."),
) -> None:
    """Print or write the Azure ML component of a step, or the pipeline of a task."""
    if what in TABLE:
        text = component_yaml(cast(Step, what), environment=environment, version=version)
        files, main = {f"{what}.yaml": text}, f"{what}.yaml"
    elif what in TASKS or what == ANY_TASK:
        task = what if what in TASKS else None
        files = pipeline_files(task, environment=environment, version=version)
        main = "pipeline.yaml"
        if settings:
            files["job.yaml"] = job_yaml(_pairs(settings), task, compute=compute)
    else:
        known = [*TABLE, *TASKS, ANY_TASK]
        hint = nearest(what, known) or f"there are: {', '.join(known)}"
        raise NotFound(f"there is no step or task '{what}'", hint=hint)
    if settings and "job.yaml" not in files:
        raise SpecError([Problem("--set", "is for pipelines: a step has no values of its own")])
    if settings and output is None:
        raise SpecError([Problem("--set", "writes job.yaml, and needs --output FOLDER")])
    if output is not None:
        _write(Path(output).expanduser(), files, overwrite)
        return
    sys.stdout.write(files[main])
    if len(files) > 1:
        note("the components beside it are written too with --output FOLDER")


def _write(folder: Path, files: Mapping[str, str], overwrite: bool) -> None:
    """All or none: a file of other content is somebody's work."""
    if folder.exists() and not folder.is_dir():
        raise Conflict("is a file, where a folder is to be written", where=str(folder))
    there = {name: folder / name for name in files if (folder / name).exists()}
    same = {n for n, path in there.items() if _holds(path, files[n])}
    other = sorted(set(there) - same)
    if other and not overwrite:
        message = f"{', '.join(other)} is there, with other content"
        raise Conflict(message, where=str(folder), hint="--overwrite replaces it")
    for name, text in files.items():
        if name in same:
            print(f"{folder / name}  unchanged")
            continue
        atomic.write_bytes(folder / name, text.encode())
        print(f"{folder / name}  {'replaced' if name in there else 'written'}")


def _holds(path: Path, text: str) -> bool:
    return path.is_file() and path.read_bytes() == text.encode()


def run_pipeline(
    file: str = typer.Argument(metavar="FILE", help="The pipeline's YAML."),
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="An input's value; may be repeated."),
    ] = None,
    work: str = typer.Option(
        None, metavar="FOLDER", help="Where outputs go; NAME-work here for NAME.yaml."
    ),
    again: bool = typer.Option(False, "--again", help="Do every step, changed or not."),
    dry_run: bool = typer.Option(False, "--dry-run", help="Print the commands, and run none."),
    inputs: bool = typer.Option(False, "--inputs", help="List the inputs, and run nothing."),
    as_json: Json = False,
) -> int:
    """Run a pipeline on this machine, each step a process of its own."""
    from luthier.component.local_run import Stopped, plan, run
    from luthier.component.pipeline import bind, read_pipeline

    pipeline = read_pipeline(Path(file).expanduser())
    if inputs:
        _list_inputs(pipeline.inputs, pipeline.values, as_json)
        return 0
    values = bind(pipeline, _pairs(settings or []))
    place = Path(work).expanduser() if work else Path(f"{Path(file).stem}-work")
    place = place.resolve()
    calls = plan(pipeline, values, place)
    if dry_run:
        commands = {call.step.name: list(call.argv) for call in calls}
        if as_json:
            print_json(commands)
        else:
            print_facts({name: shlex.join(argv) for name, argv in commands.items()})
        return 0
    try:
        done = run(calls, place, note, again=again, quiet=as_json)
    except Stopped as stopped:
        note(f"stopped in the step {stopped.step}; the same command does that step again")
        if stopped.step == "finetune" and "resume_from_checkpoint" in pipeline.inputs:
            note("with --set resume_from_checkpoint=true it goes on from its last checkpoint")
        return 128 + stopped.number
    results = {
        result: str(call.outputs[output])
        for call in calls
        for output, result in call.step.results.items()
    }
    if as_json:
        facts = {"pipeline": pipeline.name, "work": str(place)}
        print_json({**facts, "steps": done, "outputs": results})
    else:
        print_facts(results)
    return 0


def _pairs(settings: list[str]) -> dict[str, str]:
    given: dict[str, str] = {}
    problems = []
    for setting in settings:
        name, equals, value = setting.partition("=")
        if not equals or not name:
            problems.append(Problem("--set", f"'{setting}' is not NAME=VALUE"))
        elif name in given:
            problems.append(Problem(name, "is set twice"))
        given[name] = value
    if problems:
        raise SpecError(problems)
    return given


def _list_inputs(
    declared: Mapping[str, Mapping[str, Any]], values: Mapping[str, str], as_json: bool
) -> None:
    if as_json:
        print_json({name: {**about, "value": values.get(name)} for name, about in declared.items()})
        return
    for name, about in declared.items():
        facts = [str(about.get("type", ""))]
        if about.get("enum"):
            facts = ["one of " + ", ".join(map(str, about["enum"]))]
        if name in values:
            facts.append(f"is {values[name]}")
        elif about.get("default") is not None:
            facts.append(f"default {about['default']}")
        elif not about.get("optional"):
            facts.append("required")
        print(f"{name}  {about.get('description', '')}\n    {'; '.join(facts)}")
