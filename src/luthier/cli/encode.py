"""``luthier encode``: texts in, vectors out."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from luthier.cli.output import Home, Json, note, show
from luthier.cli.texts import read_texts
from luthier.errors import DataError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Vectors = NDArray[np.float32]

app = typer.Typer(rich_markup_mode=None)

#: Texts that are encoded between two writes: enough to sort by length, little enough to hold.
_CHUNK = 4096


@app.command("encode")
def encode(
    model: Annotated[
        str,
        typer.Argument(
            help="A run, an artifact, alias:NAME, a folder, or a model of `luthier models`."
        ),
    ],
    source: Annotated[
        str | None,
        typer.Argument(
            metavar="[FILE]", help=".txt, .csv, .tsv, .jsonl, .parquet, or - for lines of stdin."
        ),
    ] = None,
    text: Annotated[
        list[str] | None, typer.Option("--text", help="A text, as often as wanted.")
    ] = None,
    column: Annotated[
        str | None, typer.Option("--column", help="The column that holds the texts.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help=".npy, .parquet or .jsonl")
    ] = None,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1)] = 32,
    device: Annotated[str | None, typer.Option("--device")] = None,
    onnx: Annotated[bool, typer.Option("--onnx", help="With the artifact's ONNX model.")] = False,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Turn texts into vectors, with a tuned model or a pretrained one.

    Without --output the vectors go to stdout, one JSON object a line.
    """
    writer = _writer(output)
    texts = list(text or []) + (read_texts(source, column) if source is not None else [])
    if not texts:
        raise DataError("there is no text to encode", file=source, hint="a file, or --text '…'")
    loaded = open_encoder(model, home, batch_size, device, onnx)
    chunks = _encoded(loaded, texts, batch_size)
    if output is None:
        for block, vectors in chunks:
            typer.echo(_json_lines(block, vectors), nl=False)
        return
    width = writer(output, len(texts), chunks)
    facts = {"file": output, "rows": len(texts), "dim": width, "model": model}
    show(facts, as_json, lambda: note(f"{output}: {len(texts)} vectors of {width}"))


def open_encoder(
    name: str, home: str | None, batch_size: int, device: str | None, onnx: bool
) -> Any:
    """A folder, a catalog name, an alias, a run, or an artifact, in this order. Raises NotFound."""
    from luthier import api, inference

    found = inference.find_model(name, api.connect(home))
    return found.open(batch_size, device, onnx)


Chunks = Iterator[tuple[list[str], "Vectors"]]


def _encoded(model: Any, texts: list[str], batch_size: int) -> Chunks:
    from luthier import inference

    for start in range(0, len(texts), _CHUNK):
        block = texts[start : start + _CHUNK]
        yield block, inference.encode(model, block, batch_size=batch_size)


def _writer(output: Path | None) -> Callable[[Path, int, Chunks], int]:
    """What writes files of that kind. Asked first, so that nothing is computed in vain."""
    if output is None:
        return _write_jsonl
    writer = _WRITERS.get(output.suffix.lower())
    if writer is None:
        known = ", ".join(_WRITERS)
        raise DataError(f"'{output.suffix}' can hold no vectors", file=str(output), hint=known)
    if not output.absolute().parent.is_dir():
        raise DataError("its folder does not exist", file=str(output))
    return writer


def _write_jsonl(output: Path, rows: int, chunks: Chunks) -> int:
    return _write(output, chunks, lambda block, vectors: _json_lines(block, vectors).encode())


def _write_npy(output: Path, rows: int, chunks: Chunks) -> int:
    import io

    import numpy as np

    begun = False

    def encoded(block: list[str], vectors: Vectors) -> bytes:
        nonlocal begun
        header = io.BytesIO()
        if not begun:
            facts = {"descr": "<f4", "fortran_order": False, "shape": (rows, vectors.shape[1])}
            np.lib.format.write_array_header_1_0(header, facts)
            begun = True
        return header.getvalue() + np.ascontiguousarray(vectors, dtype="<f4").tobytes()

    return _write(output, chunks, encoded)


def _write_parquet(output: Path, rows: int, chunks: Chunks) -> int:
    """Columns ``text`` and ``embedding``, the latter a fixed-size list of float32."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from luthier.store import atomic

    sink = pa.BufferOutputStream()
    writer = None
    width = 0
    for block, vectors in chunks:
        width = vectors.shape[1]
        values = pa.array(vectors.reshape(-1), pa.float32())
        table = pa.table(
            {"text": block, "embedding": pa.FixedSizeListArray.from_arrays(values, width)}
        )
        writer = writer or pq.ParquetWriter(sink, table.schema)
        writer.write_table(table)
    if writer is not None:
        writer.close()
    atomic.write_bytes(output, sink.getvalue().to_pybytes())
    return int(width)


_WRITERS = {".npy": _write_npy, ".parquet": _write_parquet, ".jsonl": _write_jsonl}


def _write(output: Path, chunks: Chunks, encoded: Callable[[list[str], Vectors], bytes]) -> int:
    """Write chunk by chunk; the file is there when it is whole. The width of a vector."""
    from luthier.store import atomic

    width = 0

    def pieces() -> Iterator[bytes]:
        nonlocal width
        for block, vectors in chunks:
            width = int(vectors.shape[1])
            yield encoded(block, vectors)

    atomic.write_chunks(output.absolute().parent, pieces(), lambda: output.name)
    return width


def _json_lines(block: list[str], vectors: Vectors) -> str:
    rows = zip(block, vectors.tolist(), strict=True)
    return "".join(
        json.dumps({"text": text, "embedding": vector}, ensure_ascii=False) + "\n"
        for text, vector in rows
    )
