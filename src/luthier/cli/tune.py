"""``luthier tune``: update the model of a configuration file, and say what was kept."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from luthier.cli.following import wait_for
from luthier.cli.output import Home, Json, note, print_json, print_table
from luthier.errors import Problem, SpecError

if TYPE_CHECKING:
    from luthier.doors.config_file import ConfigFile

app = typer.Typer(rich_markup_mode=None)

_FURTHER = """\
Every other --NAME VALUE is a key of the configuration: a hyperparameter (--learning-rate 0.05,
--optimizer SGD, --memory-size 500), an option of the updater (--alpha 0.5), or an argument of the
functions in the file (--hidden-size 100), whose annotated type the value must have.
"""


@app.command(
    "tune",
    epilog=_FURTHER,
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
)
def tune(
    context: typer.Context,
    config_file: Annotated[
        Path, typer.Option("--config-file", help="Python with model_fn and data_module_fn.")
    ],
    updater: Annotated[str, typer.Option(help="What is done against forgetting.")] = "ER",
    max_epochs: Annotated[int, typer.Option(min=0)] = 50,
    chunk_id: Annotated[int | None, typer.Option(help="Which part of the data is new.")] = None,
    input_state_url: Annotated[
        str | None, typer.Option(help="Start from this state; not given: a new model.")
    ] = None,
    output_state_url: Annotated[
        str | None, typer.Option(help="Commit the state here: a folder, or s3://….")
    ] = None,
    metric: Annotated[str | None, typer.Option(help="Chooses the best epoch.")] = None,
    mode: Annotated[Literal["min", "max"] | None, typer.Option()] = None,
    working_directory: Annotated[
        str, typer.Option(help="Its folder data is the data_path of the functions.")
    ] = "~/.luthier/tuning",
    seed: Annotated[int, typer.Option(min=0)] = 0,
    accelerator: Annotated[str, typer.Option(help="auto, cpu, gpu or mps.")] = "auto",
    precision: Annotated[str, typer.Option(help="32, bf16 or 16.")] = "32",
    gradient_clip_val: Annotated[float | None, typer.Option(min=0)] = None,
    job_name: Annotated[str | None, typer.Option(help="The name of the run.")] = None,
    home: Home = None,
    as_json: Json = False,
) -> int:
    """Update a model with new data, and measure what it still knows of the old."""
    from luthier.runs import connection
    from luthier.updates import read_config_file, run_training_job

    file = read_config_file(config_file)
    space = read_space(context.args, file)
    if home is not None:
        connection.connect(home)
    run = run_training_job(
        config_file=config_file,
        config_space=space,
        updater=updater,
        max_epochs=max_epochs,
        chunk_id=chunk_id,
        input_state_url=input_state_url,
        output_state_url=output_state_url,
        metric=metric,
        mode=mode,
        working_directory=working_directory,
        seed=seed,
        accelerator=accelerator,
        precision=precision,
        gradient_clip_val=gradient_clip_val,
        job_name=job_name,
        wait=False,
    )
    code = wait_for(run, as_json)
    if code == 0:
        metrics = run.metrics()
        if as_json:
            print_json({"run": run.name, **metrics})
        else:
            _show(metrics["update"])
    return code


def read_space(words: list[str], file: ConfigFile) -> dict[str, Any]:
    """Flags as keys of a configuration. Text stays text where the file says str; else it is
    read as YAML. Raises SpecError for a word that is no flag, and a flag without a value."""
    import yaml

    space: dict[str, Any] = {}
    problems: list[Problem] = []
    left = list(words)
    while left:
        flag = left.pop(0)
        if not flag.startswith("--"):
            problems.append(Problem(flag, "is no flag", "write --NAME VALUE"))
            continue
        flag, equals, value = flag.partition("=")
        if not equals:
            if not left:
                problems.append(Problem(flag, "has no value"))
                continue
            value = left.pop(0)
        name = flag[2:].replace("-", "_")
        argument = file.arguments.get(name)
        if name in space:
            problems.append(Problem(flag, "given twice"))
        space[name] = value if argument and argument.kinds == (str,) else yaml.safe_load(value)
    if problems:
        raise SpecError(problems)
    return space


def _show(update: dict[str, Any]) -> None:
    """The matrix of updates and chunks, and what follows from it."""
    matrix = update["matrix"]
    for text in update["notes"]:
        note(text)
    if not matrix:
        return
    what = "accuracy" if update["score"] == "correct" else "loss"
    print_table(
        [f"{what} after update", *(f"chunk {i + 1}" for i in range(len(matrix[-1])))],
        [
            [str(number), *(f"{value:.3f}" for value in row), *[""] * (len(matrix[-1]) - len(row))]
            for number, row in enumerate(matrix, 1)
        ],
    )
    said = {"mean": update["average"], "forgotten": update["forgetting"]}
    print(", ".join(f"{k} {v:.3f}" for k, v in said.items() if v is not None))
    if update.get("verdict"):
        print(f"{update['verdict']}: {update['reason']}")
    for reason in update.get("reasons") or ():
        note(reason)
    if not update.get("promoted", True):
        note("not promoted: the state is what it was")
