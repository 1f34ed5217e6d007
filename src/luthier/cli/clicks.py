"""``luthier clicks``: logs of searches, in and out, and what biases them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from luthier.cli import clicks_tasks
from luthier.cli.clicks_tune import read_columns, tune
from luthier.cli.output import Json, note, print_facts, print_table, show, when
from luthier.errors import DataError

if TYPE_CHECKING:
    from luthier.clicks.sessions import Sessions
    from luthier.clicks.simulate import Collection

app = typer.Typer(rich_markup_mode=None, no_args_is_help=True, help="Logs of searches.")
app.command("tune")(tune)
app.add_typer(clicks_tasks.app, name="task")
app.command("work")(clicks_tasks.work)
app.command("collect")(clicks_tasks.collect)

Log = Annotated[
    Path,
    typer.Argument(metavar="LOG", help="Sessions (.arrow), or a log of a format that is known."),
]
Format = Annotated[
    str | None,
    typer.Option("--format", help="studio, ubi, metarank or csv, if the file does not say."),
]
Out = Annotated[Path, typer.Argument(metavar="OUT", help="A file that ends in .arrow.")]


@app.command("import")
def import_(
    log: Annotated[Path, typer.Argument(metavar="LOG", help="JSON records a line, or CSV.")],
    out: Out,
    format: Format = None,
    events: Annotated[
        Path | None, typer.Option("--events", help="UBI's events, where they are another file.")
    ] = None,
    column: Annotated[
        list[str] | None,
        typer.Option("--column", metavar="ROLE=NAME", help="A column of CSV called otherwise."),
    ] = None,
    gap: Annotated[
        float, typer.Option("--gap", min=0, help="Seconds that part a user's same searches.")
    ] = 1800.0,
    strict: Annotated[
        bool, typer.Option("--strict", help="Refuse a log in which a row is bad.")
    ] = False,
    clean: Annotated[
        bool, typer.Option("--clean", help="Drop repetitions, bots and bursts.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Read a log into a file of sessions. Bad rows are left out, counted and listed."""
    from luthier.clicks.cleaning import clean as cleaned
    from luthier.clicks.importing import import_log

    _check_out(out, ".arrow")
    done = import_log(
        log, out, format=format, events=events, columns=read_columns(column), gap_s=gap,
        strict=strict,
    )  # fmt: skip
    found, dropped = done.sessions, {}
    if clean:
        result = cleaned(found)
        found, dropped = result.sessions, result.dropped
        found.save(out)
    document = {
        "file": str(out), **found.describe(), "rejected": done.rejected.to_dict(),
        "dropped": dropped,
    }  # fmt: skip

    def human() -> None:
        print_facts(_facts(found))
        for reason, count in {**done.rejected.reasons, **dropped}.items():
            note(f"left out {count:,}: {reason}")
        for problem in done.rejected.listed:
            note(f"  {problem}")

    show(document, as_json, human)


@app.command("show")
def show_log(log: Log, format: Format = None, as_json: Json = False) -> None:
    """What a log holds."""
    sessions = _read(log, format)
    show(sessions.describe(), as_json, lambda: print_facts(_facts(sessions)))


@app.command("bias")
def bias(
    log: Log,
    format: Format = None,
    method: Annotated[
        str, typer.Option("--method", help="harvest (interventions) or em.")
    ] = "harvest",
    positions: Annotated[
        int | None, typer.Option("--positions", min=1, help="So many from the top; all.")
    ] = None,
    as_json: Json = False,
) -> None:
    """How much less is seen at each position than at the first, estimated from the log."""
    from luthier.clicks.propensity import expectation_maximization, harvest

    methods = {"harvest": harvest, "em": expectation_maximization}
    if method not in methods:
        raise DataError(f"no method is called '{method}'", hint="harvest or em")
    sessions = _read(log, format)
    found = methods[method](sessions, sessions.grades() > 0, positions)
    rows = [
        {"position": k, "propensity": float(value), "known": bool(known), "support": float(support)}
        for k, (value, known, support) in enumerate(
            zip(found.values, found.known, found.support, strict=True), start=1
        )
    ]

    def human() -> None:
        print_table(
            ["position", "propensity", "from"],
            [
                [str(row["position"]), f"{row['propensity']:.3f}",
                 f"{row['support']:,.0f}" if row["known"] else "the position above"]
                for row in rows
            ],
        )  # fmt: skip

    show({"method": found.method, "positions": rows}, as_json, human)


@app.command("simulate")
def simulate_log(
    collection: Annotated[
        Path, typer.Argument(metavar="PAIRS", help="Queries, each with a document: two columns.")
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT", help=".arrow, .jsonl or .csv")],
    sessions: Annotated[int, typer.Option("--sessions", min=1)] = 10_000,
    results: Annotated[int, typer.Option("--results", min=1, help="Shown each time.")] = 10,
    model: Annotated[
        str, typer.Option("--model", help="Who clicks: position, cascade or dbn.")
    ] = "position",
    eta: Annotated[
        float, typer.Option("--eta", min=0, help="position: looked at with 1 / k^eta.")
    ] = 1.0,
    satisfaction: Annotated[
        float, typer.Option("--satisfaction", help="dbn: satisfied by a click.")
    ] = 0.7,
    perseverance: Annotated[
        float, typer.Option("--perseverance", help="dbn: goes on if not satisfied.")
    ] = 0.9,
    noise: Annotated[
        float, typer.Option("--noise", min=0, help="How much the ranking varies.")
    ] = 1.0,
    seed: Annotated[int, typer.Option("--seed", min=0)] = 0,
    as_json: Json = False,
) -> None:
    """Make a log whose bias is known, of queries and the documents that answer them."""
    from luthier.clicks.click_models import click_model
    from luthier.clicks.simulate import simulate
    from luthier.clicks.writing import write_sessions

    _check_out(out, ".arrow", ".jsonl", ".csv")
    clicker = click_model(
        model, results, eta=eta, satisfaction=satisfaction, perseverance=perseverance
    )
    made = simulate(
        _collection(collection), clicker, sessions=sessions, results=results, noise=noise, seed=seed
    )
    write_sessions(made.sessions, out)
    document = {"file": str(out), **made.sessions.describe()}
    show(document, as_json, lambda: print_facts(_facts(made.sessions)))


def _check_out(out: Path, *suffixes: str) -> None:
    """Before anything is computed."""
    if out.suffix not in suffixes:
        raise DataError(f"sessions are written as {' or '.join(suffixes)}", file=str(out))
    if not out.absolute().parent.is_dir():
        raise DataError("there is no such folder", file=str(out.parent))


def _read(log: Path, format: str | None) -> Sessions:
    from luthier.clicks.importing import import_log
    from luthier.clicks.sessions import Sessions

    if log.suffix == ".arrow" and format is None:
        return Sessions.open(log)
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        done = import_log(log, Path(folder) / "sessions.arrow", format=format)
        for reason, count in done.rejected.reasons.items():
            note(f"left out {count:,}: {reason}")
        return done.sessions  # mapped, so it outlives the file


def _collection(path: Path) -> Collection:
    """The first two columns of text of a file, or anchor and positive."""
    from luthier.clicks.simulate import Collection
    from luthier.data.rows import read_rows
    from luthier.spec import CSVOptions

    if not path.is_file():
        raise DataError("there is no such file", file=str(path))
    rows = read_rows(path, CSVOptions())
    if len(rows.columns) < 2:
        hint = "a query and a document that answers it, a row"
        raise DataError("two columns are needed", file=str(path), hint=hint)
    first, second = (rows.column(name).to_pylist() for name in rows.columns[:2])
    for number, pair in enumerate(zip(first, second, strict=True)):
        if not all(isinstance(text, str) and text for text in pair):
            raise DataError("a text lacks", file=str(path), row=rows.line(number))
    return Collection.of_pairs(list(zip(first, second, strict=True)))


def _facts(sessions: Sessions) -> dict[str, Any]:
    facts = sessions.describe()
    return {name: when(v) if name in ("first", "last") and v else v for name, v in facts.items()}
