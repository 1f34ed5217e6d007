"""``luthier encode-corpus``: the vectors of all items by a model, to Parquet or PostgreSQL."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from luthier.cli.output import Home, Json, note, show

app = typer.Typer(rich_markup_mode=None)


@app.command("encode-corpus")
def encode_corpus(
    model: Annotated[
        str,
        typer.Argument(
            help="A run, an artifact, alias:NAME, a folder, or a model of `luthier models`."
        ),
    ],
    items: Annotated[
        Path, typer.Argument(metavar="ITEMS", help=".csv, .tsv, .jsonl, .parquet or .arrow")
    ],
    destination: Annotated[
        str, typer.Argument(metavar="DEST", help="A folder, or postgresql://user@host/database")
    ],
    id_column: Annotated[
        str | None, typer.Option("--id", metavar="COLUMN", help="The column that holds the ids.")
    ] = None,
    text_columns: Annotated[
        list[str] | None,
        typer.Option("--text", metavar="COLUMN", help="The column of the text; several, joined."),
    ] = None,
    table: Annotated[
        str, typer.Option("--table", help="PostgreSQL: the view that is read.")
    ] = "luthier_vectors",
    vector_type: Annotated[
        str, typer.Option("--vector-type", help="PostgreSQL: auto, vector (pgvector) or real.")
    ] = "auto",
    normalize: Annotated[
        bool, typer.Option("--normalize", help="Scale each vector to length 1.")
    ] = False,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1)] = 32,
    shard_rows: Annotated[
        int, typer.Option("--shard-rows", min=1, help="Rows that are kept together.")
    ] = 8192,
    device: Annotated[str | None, typer.Option("--device")] = None,
    onnx: Annotated[bool, typer.Option("--onnx", help="With the artifact's ONNX model.")] = False,
    prune: Annotated[
        bool, typer.Option("--prune", help="Then remove every version but the new one.")
    ] = False,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Encode all items of a file, with a model that may be new.

    Can be stopped at any time and goes on when called again; called once more it does nothing.
    Another model makes another version, which is read in place of the old one when it is whole.
    """
    from luthier import api
    from luthier.corpus.encoding import encode_corpus as encode

    api.connect(home)
    with _bar(as_json) as progress:
        done = encode(
            model, items, destination, id_column=id_column, text_columns=text_columns or (),
            table=table, vector_type=vector_type, normalize=normalize, batch_size=batch_size,
            shard_rows=shard_rows, device=device, is_onnx=onnx, prune=prune, progress=progress,
        )  # fmt: skip

    def human() -> None:
        for text in done.notes:
            note(text)
        did = f"{done.encoded:,} of {done.rows:,} items" if done.encoded else "nothing to do:"
        rest = (
            f"encoded in {done.seconds:.1f} s" if done.encoded else f"all {done.rows:,} are there"
        )
        note(f"{did} {rest}")
        note(f"{done.where}: version {done.version} of {done.model[:12]}")
        if done.removed:
            note(f"removed {', '.join(done.removed)}")

    show(dataclasses.asdict(done), as_json, human)


@contextmanager
def _bar(as_json: bool) -> Iterator[Callable[[int, int], None] | None]:
    """A bar for a person who looks; nothing in a pipe."""
    if as_json or not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import MofNCompleteColumn, Progress, TimeRemainingColumn

    columns = (*Progress.get_default_columns()[:-1], MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("encode", total=None)
        yield lambda done, rows: bar.update(task, completed=done, total=rows)
