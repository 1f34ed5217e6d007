"""``finetune``: the folders of the steps before become a job, and the job a model.

``finetune_spec`` says which job; the engine runs it in this process, in ``.luthier`` within
``pytorch_model_folder``, so that a step that was stopped or killed goes on from there.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from luthier.batches.random_plan import RandomPlan
from luthier.component import checkpoints, refusals
from luthier.component.folders import check_apart, claim, link_or_copy
from luthier.component.inputs import Prepared, Selected, read_prepared, read_selected
from luthier.component.logging import Log
from luthier.component.means import chosen, means_of
from luthier.component.results import write_results
from luthier.doors.component import finetune_words, metric_problems, notices
from luthier.engine.control import Control, Listener, ignore
from luthier.engine.means import Means
from luthier.errors import NotFound, SpecError
from luthier.spec.job import JobSpec, parse_spec

#: The engine's own folder within the output.
STATE = ".luthier"

#: No limit, as the engine's callback counts.
_ALL = 2**31


@dataclass(frozen=True)
class Folders:
    """What finetune reads."""

    selected: Selected
    prepared: Prepared


def read_folders(args: Mapping[str, Any]) -> Folders:
    """The outputs of import and preprocess. Raises NotFound, StoreError, SpecError."""
    prepared = read_prepared(Path(args["preprocess_output"]))
    return Folders(read_selected(Path(args["model_selector_output"]), prepared), prepared)


def finetune_spec(
    args: Mapping[str, Any],
    folders: Folders,
    *,
    half: Literal["bf16", "fp16"] = "bf16",
    processes: int = 1,
) -> JobSpec:
    """The job that the step is. half: what precision 16 is on this machine. processes: that
    train it together.

    Raises SpecError with every problem.
    """
    prepared = folders.prepared
    problems = metric_problems(args["metric_for_best_model"], prepared.task_name)
    if problems:
        raise SpecError(problems)
    base = prepared.described(folders.selected.folder)
    epoch = steps_per_epoch(args, prepared, processes)
    words = finetune_words(args, half=half, steps_per_epoch=epoch)
    keep = args["save_total_limit"] if args["save_total_limit"] > 0 else _ALL
    words["callbacks"].append({"kind": "checkpoint", "last_k_epochs": keep})
    words["training"]["save_steps"] = words["training"]["eval_steps"]
    names = ["train"] if args["evaluation_strategy"] == "no" else ["train", "validation"]
    sources = {
        name: {
            "uri": str(prepared.splits[name].file.resolve()),
            "sha256": prepared.splits[name].sha256,
        }
        for name in names
    }
    data = {"train": sources["train"], "eval": sources.get("validation")}
    options = {"ignore_mismatched_sizes": True} if args["ignore_mismatched_sizes"] else {}
    return parse_spec(
        {
            "task": base.task,
            "processing": base.processing.model_dump(mode="json"),
            "model": {"name": base.model.name, "options": options},
            "data": data,
            **words,
        }
    )


def steps_per_epoch(args: Mapping[str, Any], prepared: Prepared, processes: int = 1) -> int:
    """Optimizer steps of an epoch, as the engine counts them."""
    rows = args["per_device_train_batch_size"] * args["gradient_accumulation_steps"] * processes
    features = prepared.splits["train"].features
    return RandomPlan(features, batch_size=rows, min_rows=1, key=("count",)).steps_per_epoch


def finetune(args: Mapping[str, Any], tell: Listener, control: Control) -> dict[str, Any] | None:
    """Carry out the step; what it made, as JSON data. args: as ``parse("finetune", …)`` gave.

    Of several processes each calls this; all but the first write nothing and return None.
    Raises what ``engine.run`` does, and SpecError for what cannot be: those of
    ``refusals`` have been found before anything is written.
    """
    check_apart("finetune", args)
    folders, half = read_folders(args), refusals.half_precision(args)
    choice, more = chosen(args, half)
    spec = finetune_spec(args, folders, half=half, processes=choice.processes)
    refusals.check(args)
    with means_of(choice) as means:
        if not means.writes:
            _take_part(args, spec, means, control)
            return None
        for notice in (*notices(args), *refusals.told(args), *more):
            tell("log", {"level": "warning", "message": notice})
        outcome = _first(args, folders, spec, means, choice.words(), tell, control)
    return write_results(args, folders, spec, outcome, tell)


def _take_part(args: Mapping[str, Any], spec: JobSpec, means: Means, control: Control) -> None:
    means.barrier()  # the first has made the folders
    _run(spec, Path(args["pytorch_model_folder"]) / STATE, ignore, control, means)


def _first(
    args: Mapping[str, Any], folders: Folders, spec: JobSpec, means: Means,
    words: Mapping[str, Any], tell: Listener, control: Control,
) -> Path:  # fmt: skip
    """What the process does that writes. The result's folder."""
    place, files = Path(args["pytorch_model_folder"]), folders.selected.files
    claim(place, "finetune")
    claim(Path(args["mlflow_model_folder"]), "finetune")
    state = place / STATE
    if args["resume_from_checkpoint"]:
        checkpoints.take_up(place, state, spec, files, words, tell)
    else:
        checkpoints.start_anew(place, state)
    checkpoints.note(state, spec, files, words)
    _warm(folders.prepared.tokenized, state / "cache")
    means.barrier()
    keeper = checkpoints.Keeper(place, state, spec, args["save_total_limit"])
    log = Log(args, steps_per_epoch(args, folders.prepared, means.processes), tell)

    def listen(kind: str, data: dict[str, Any]) -> None:
        tell(kind, data)
        log(kind, data)
        keeper(kind, data)

    outcome = _run(spec, state, listen, control, means)
    keeper.end()
    return outcome


def _run(spec: JobSpec, state: Path, tell: Listener, control: Control, means: Means) -> Path:
    """The result's folder."""
    from luthier.engine.run import Place, run

    place = Place(state, state / "cache", _nothing, _nothing)
    return run(spec, place, tell, control, means).folder


def _nothing(name: str) -> Path:
    raise NotFound("a step has no store", where=name)


def _warm(tokenized: Path, cache: Path) -> None:
    """Put the features that preprocess made where the engine looks for them."""
    features = cache / "features"
    features.mkdir(parents=True, exist_ok=True)
    for file in sorted((tokenized / "features").glob("*.arrow")):
        target = features / file.name
        if not target.exists():
            target.unlink(missing_ok=True)  # a link to a folder that is gone
            _link(file, target)


def _link(file: Path, target: Path) -> None:
    try:
        os.symlink(file.resolve(), target)
    except OSError:  # a mount without links
        link_or_copy(file, target)
