"""``luthier component``: the steps of the Azure ML finetune components, by their own flags.

The flags, their help and their checks come from ``doors/component_table.py``; a step's work is
imported when it is called.
"""

from __future__ import annotations

import os
import re
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from functools import partial
from importlib import import_module
from time import time
from types import MappingProxyType
from typing import Any

import typer

from luthier.cli.output import note, print_json
from luthier.cli.pipeline import run_pipeline, show_yaml
from luthier.doors.component import flags, parse
from luthier.doors.component_table import STEPS, TABLE, Parameter, Step
from luthier.errors import DiskFull
from luthier.store.atomic import FULL

app = typer.Typer(
    rich_markup_mode=None,
    no_args_is_help=True,
    help="Fine-tune by folders: import, preprocess, finetune, evaluate.",
)

#: Step → where its work is done. All but import can be stopped between batches.
_WORK: Mapping[Step, str] = MappingProxyType(
    {
        "import": "model_import:import_model",
        "preprocess": "preprocess:preprocess",
        "finetune": "finetune:finetune",
        "evaluate": "evaluate:evaluate",
    }
)

#: The first parameter of each group of a step's help, and the group's name.
_GROUPS: Mapping[str, Mapping[str, str]] = {
    "import": {"task_name": "Task and model", "model_selector_output": "Output"},
    "preprocess": {
        "task_name": "Task and data",
        "batch_size": "Processing",
        "sentence1_key": "Columns, and options of single tasks",
        "preprocess_output": "Output",
    },
    "finetune": {
        "preprocess_output": "Inputs",
        "apply_lora": "LoRA",
        "num_train_epochs": "Training",
        "apply_ort": "Accelerators",
        "optim": "Optimizer and schedule",
        "precision": "Precision, seeds, loading",
        "evaluation_strategy": "Evaluation, logging, checkpoints",
        "resume_from_checkpoint": "Continual finetuning",
        "pytorch_model_folder": "Outputs",
    },
    "evaluate": {
        "pytorch_model_folder": "Inputs",
        "per_device_eval_batch_size": "Evaluation",
        "evaluation_output": "Output",
    },
}

_RAW = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}


def _step_command(step: Step) -> None:
    def verb(context: typer.Context) -> int:
        return _carry_out(step, list(context.args))

    app.command(
        step,
        help=STEPS[step],
        short_help=STEPS[step],  # whole: Typer cuts a help that is to stand in a list
        context_settings=_RAW,
        add_help_option=False,
    )(verb)


for _step in STEPS:
    _step_command(_step)


app.command("yaml", short_help="Write a step's component, or a task's pipeline.")(show_yaml)
app.command("run", short_help="Run a pipeline's YAML on this machine.")(run_pipeline)


def _carry_out(step: Step, words: list[str]) -> int:
    if not words or not {"--help", "-h"}.isdisjoint(words):
        print(help_of(step))
        return 0 if words else 2
    as_json = "--json" in words
    args = parse(step, flags([word for word in words if word != "--json"]))
    module, _, name = _WORK[step].partition(":")
    # what libraries print is for a person; stdout is for what was made
    with redirect_stdout(sys.stderr), _on_a_full_disk(step), _telling(step, as_json) as tell:
        work = getattr(import_module(f"luthier.component.{module}"), name)
        if step == "import":
            made = work(args, tell)
        else:
            with _stoppable() as stop:
                made, code = _unless_stopped(partial(work, args, tell, stop), stop, step)
            if made is None:
                return code
    if as_json:
        print_json(made)
    else:
        _print(step, made)
    return 0


#: How libraries that are not Python's tell the error of a system call: "… (os error 28)".
_OS_ERROR = re.compile(r"\(os error (\d+)\)")


@contextmanager
def _on_a_full_disk(step: Step) -> Iterator[None]:
    """Says what to do about it, whoever met it: tokenizers and safetensors have own errors."""
    try:
        yield
    except DiskFull as error:
        raise DiskFull(error.message, where=error.where, hint=_again(step)) from error
    except Exception as error:
        found = _OS_ERROR.search(str(error))
        if found is None or int(found[1]) not in FULL:
            raise
        message = f"no space left to write ({os.strerror(int(found[1]))})"
        raise DiskFull(message, where=f"luthier component {step}", hint=_again(step)) from error


def _again(step: Step) -> str:
    more = "; with --resume_from_checkpoint true it goes on" if step == "finetune" else ""
    return f"free some space, then give the same command{more}"


class _Stop:
    """Asked by the engine before each batch. The first signal asks to stop, the second stops."""

    def __init__(self) -> None:
        self.signal = 0

    def __call__(self) -> Any:
        return "interrupt" if self.signal else None

    def note(self, number: int, frame: object) -> None:
        if self.signal:
            raise KeyboardInterrupt
        self.signal = number
        note("stopping after this batch; once more stops at once")


@contextmanager
def _stoppable() -> Iterator[_Stop]:
    stop = _Stop()
    watched = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, stop.note) for number in watched]
    try:
        yield stop
    finally:
        for number, handler in zip(watched, before, strict=True):
            signal.signal(number, handler)


def _unless_stopped(
    work: Callable[[], dict[str, Any]], stop: _Stop, step: Step
) -> tuple[dict[str, Any] | None, int]:
    from luthier.engine.control import Stopped

    try:
        return work(), 0
    except Stopped:
        again = " with --resume_from_checkpoint true" if step == "finetune" else ""
        note(f"stopped; the same command{again} goes on")
        return None, 128 + stop.signal


@contextmanager
def _telling(step: Step, as_json: bool) -> Iterator[Callable[[str, dict[str, Any]], None]]:
    """Progress for the person: a bar on a terminal, lines elsewhere; both on stderr."""
    from luthier.runs.display import follower
    from luthier.runs.records import Event

    with follower(step, not as_json, before="starting") as show:
        yield lambda kind, data: show(Event(0, time(), 0, kind, data))


def help_of(step: Step) -> str:
    """A step's flags in groups, from the table."""
    lines = [f"luthier component {step}: {STEPS[step]}"]
    for row in TABLE[step]:
        group = _GROUPS[step].get(row.name)
        lines += ["", f"{group}:"] if group else []
        lines += [f"  --{row.name}  {row.help}", f"      {_facts(row)}"]
    lines += ["", "Other:", "  --json  what was made, as JSON on stdout", "  --help  this"]
    return "\n".join(lines)


def _facts(row: Parameter) -> str:
    facts = [row.takes()]
    if row.required:
        facts.append("required")
    elif row.default is not None:
        facts.append(f"default {row.text}")
    if row.tasks:
        facts.append(f"for {', '.join(row.tasks)}")
    return "; ".join(facts)


def _print(step: Step, made: Mapping[str, Any]) -> None:
    from luthier.cli.output import print_facts, print_table

    if step == "finetune":
        import_module("luthier.component.results").show(made)
    if step == "evaluate":
        rows = []
        for name, value in made["metrics"].items():
            low, high = made["intervals"].get(name, (None, None))
            rows.append([name, value, low, high])
        print_table(["metric", "value", "low", "high"], rows)
    folders = [row.name for row in TABLE[step] if row.output]
    print_facts({name: made[name] for name in folders})
