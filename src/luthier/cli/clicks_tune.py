"""``luthier clicks tune``: from a log of searches to a better encoder, and the proof."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from luthier.cli.output import Home, Json, note, print_json, print_table
from luthier.cli.words import read_options
from luthier.errors import DataError

if TYPE_CHECKING:
    from luthier.clicks.tuning import Tuned

#: What is shown of a comparison, as people call it.
_SHOWN = {"ndcg_at_k": "nDCG@{k}", "reciprocal_rank": "MRR", "recall_at_k": "recall@{k}",
          "hit_at_k": "hit@{k}"}  # fmt: skip


def tune(
    model: Annotated[
        str, typer.Option("--model", help="Of `luthier models`, a hub id, a folder, a run, …")
    ],
    sessions: Annotated[
        Path, typer.Option("--sessions", help="The log: JSONL, CSV, or sessions (.arrow).")
    ],
    items: Annotated[
        str, typer.Option("--items", metavar="FILE|URL", help="The catalogue: JSONL, CSV, Parquet.")
    ],
    objective: Annotated[
        str, typer.Option("--objective", help="ips or dr (undo the positions' bias) or naive.")
    ] = "ips",
    loss: Annotated[
        str | None, typer.Option("--loss", help="One that takes rankings; ListwiseSoftmaxLoss.")
    ] = None,
    rows: Annotated[
        Literal["sessions", "queries"] | None,
        typer.Option("--rows", help="A list is a session, or all sessions of a query; sessions."),
    ] = None,
    param: Annotated[
        list[str] | None,
        typer.Option("--param", metavar="NAME=VALUE",
                     help="A parameter of fine-tuning; [a, b] or loguniform(a, b) searches."),
    ] = None,
    trials: Annotated[
        int | None, typer.Option("--trials", min=1, help="Of a search; 10.")
    ] = None,
    after: Annotated[
        list[str] | None,
        typer.Option("--after", metavar="RUN", help="Try the best of this earlier run first."),
    ] = None,
    split: Annotated[
        Literal["query", "time"], typer.Option("--split", help="How searches are held out.")
    ] = "query",
    test_size: Annotated[
        float, typer.Option("--test-size", help="The share that the verdict is of.")
    ] = 0.2,
    validation: Annotated[
        float, typer.Option("--validation", help="The share of the rest that stopping goes by.")
    ] = 0.1,
    epochs: Annotated[int | None, typer.Option("--epochs", min=1)] = None,
    batch_size: Annotated[
        int | None, typer.Option("--batch-size", min=1, help="Searches a step.")
    ] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, help="The k of nDCG@k.")] = 10,
    clip: Annotated[
        float, typer.Option("--clip", help="The least propensity that is divided by.")
    ] = 0.1,
    clean: Annotated[
        bool, typer.Option("--clean/--no-clean", help="Drop repetitions, bots and bursts.")
    ] = True,
    format: Annotated[
        str | None, typer.Option("--format", help="studio, ubi, metarank or csv.")
    ] = None,
    events: Annotated[
        Path | None, typer.Option("--events", help="UBI's events, where they are another file.")
    ] = None,
    column: Annotated[
        list[str] | None,
        typer.Option("--column", metavar="ROLE=NAME", help="A column of CSV called otherwise."),
    ] = None,
    id_field: Annotated[str | None, typer.Option("--id-field", help="Of the catalogue.")] = None,
    item_field: Annotated[
        str | None, typer.Option("--item-field", help="The text, of the catalogue.")
    ] = None,
    promote_to: Annotated[
        str | None,
        typer.Option("--promote-to", metavar="ALIAS", help="If it is better: production, …"),
    ] = None,
    run_name: Annotated[str | None, typer.Option("--run-name")] = None,
    seed: Annotated[int, typer.Option("--seed", min=0)] = 42,
    device: Annotated[str, typer.Option("--device")] = "auto",
    home: Home = None,
    as_json: Json = False,
) -> None:  # fmt: skip
    """Tune an encoder on the clicks of a log, and compare it with what it was.

    Reads and cleans the log, estimates how much less is seen further down, holds searches out,
    trains in a worker's process (which gives the memory back when it ends), and compares both
    models on what was held out. The same command again goes on with the same run.
    """
    from luthier import api
    from luthier.clicks.tuning import tune as tuned

    api.connect(home)
    done = tuned(
        model, sessions, items, objective=objective, loss=loss, rows=rows,
        params=read_options("param", param) or None, trials=trials, after=after or (),
        split=split, test_size=test_size, validation=validation, epochs=epochs,
        batch_size=batch_size, limit=limit, clip=clip, clean=clean, format=format, events=events,
        columns=read_columns(column), id_field=id_field, item_field=item_field,
        promote_to=promote_to, run_name=run_name, seed=seed, device=device,
        progress=not as_json, say=note,
    )  # fmt: skip
    if as_json:
        print_json(done.to_dict())
    else:
        _show(done, promote_to)


def read_columns(words: list[str] | None) -> dict[str, str] | None:
    """ROLE=NAME as often as wanted. Raises DataError."""
    found = {}
    for word in words or []:
        role, equals, name = word.partition("=")
        if not equals:
            raise DataError(f"--column {word} says no name", hint="--column query=Suche")
        found[role] = name
    return found or None


def _show(done: Tuned, promote_to: str | None) -> None:
    """The table, the verdict, and what became of the model."""
    told = done.metrics
    rows: list[list[Any]] = [
        [title.format(k=told["k"]), *(f"{told[side][name]['value']:.4f}"
                                      for side in ("before", "after")), _span(told, name)]
        for name, title in _SHOWN.items()
    ]  # fmt: skip
    print_table(["held out", "before", "after", "difference, 95%"], rows)
    if told["off_policy"] is not None:
        _show_off_policy(told["off_policy"])
    shifts = {name: value for name, value in told.items() if name.endswith("_dist_shift")}
    if shifts:
        print_table(["similarity gained", "mean"], [[n, f"{v:+.4f}"] for n, v in shifts.items()])
    print(f"{told['verdict']}: {told['reason']}")
    if told.get("stopped early"):
        print("stopped early: what was monitored no longer improved")
    if done.promoted:
        print(f"promoted: alias:{done.promoted} is {done.artifact_id[:12]}")
    elif promote_to:
        print(f"not promoted: the verdict is '{told['verdict']}'")
    else:
        print("not promoted: nobody asked for it"
              + (" (--promote-to production)" if told["verdict"] == "better" else ""))  # fmt: skip
    print(f"model     {done.artifact_id}")
    print(f"report    {done.folder / 'report.html'}")


def _span(told: dict[str, Any], name: str) -> str:
    found = told["difference"][name]
    return f"{found['value']:+.4f}  ({found['low']:+.4f} to {found['high']:+.4f})"


def _show_off_policy(told: dict[str, Any]) -> None:
    """Clicks a search, as the log had them, and as each model's ranking would have had them."""
    logged = told["logged"]
    rows = [["as logged", _interval(logged), ""]]
    for side in ("before", "after"):
        rows.append([f"ranked by the model {side}", _interval(told[side]["snips"]),
                     f"{told[side]['effective']:.0f}"])  # fmt: skip
    print_table(["clicks a search, off-policy", "estimate, 95%", "worth so many clicks"], rows)


def _interval(found: dict[str, float]) -> str:
    return f"{found['value']:.4f}  ({found['low']:.4f} to {found['high']:.4f})"
