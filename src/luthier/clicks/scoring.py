"""Vectors of queries and items by a model, in a process of its own: what a model takes of memory
is given back when that process ends.

``python -m luthier.clicks.scoring REQUEST`` is that process. The vectors are kept beside the
request, so that the same is not computed twice.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from luthier.clicks.rankers import RANKERS
from luthier.clicks.sessions import Floats, Ints
from luthier.errors import ModelError
from luthier.store.atomic import write_bytes

Vectors = NDArray[np.float32]
#: Impressions that are scored at a time.
_BLOCK = 100_000


@dataclass(frozen=True)
class Model:
    """What is to encode: an artifact of the home where there is one, else a model by name or
    folder, with the options it is opened with."""

    name: str
    artifact: str | None = None
    options: tuple[tuple[str, Any], ...] = ()
    device: str | None = None


def encoded(
    models: Sequence[Model], queries: Sequence[str], items: Sequence[str], folder: Path, home: str
) -> list[tuple[Vectors, Vectors]]:
    """By each model the vectors of queries [q, d] and of items [i, d]; what is not known yet, in
    one process. home: where artifacts are. Raises ModelError with what the process said."""
    texts = hashlib.sha256()
    for side in (queries, items):
        texts.update(f"\0{len(side)}".encode())
        for text in side:
            data = text.encode("utf-8", "surrogatepass")
            texts.update(f"\0{len(data)}:".encode() + data)
    shared = folder / texts.hexdigest()[:32]
    requests = []
    for model in models:
        facts = {"model": model.name, "artifact": model.artifact, "options": dict(model.options),
                 "device": model.device, "home": home}  # fmt: skip
        digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]
        requests.append((shared / digest, facts))
    missing = [each for each in requests if not (each[0] / "items.npy").is_file()]
    if missing:
        _encode(missing, queries, items, shared)
    return [(np.load(place / "queries.npy"), np.load(place / "items.npy")) for place, _ in requests]


def _encode(
    requests: Sequence[tuple[Path, dict[str, Any]]],
    queries: Sequence[str],
    items: Sequence[str],
    shared: Path,
) -> None:
    with tempfile.TemporaryDirectory(prefix=".texts-", dir=_made(shared)) as texts:
        for name, side in (("queries", queries), ("items", items)):
            table = pa.table({"text": pa.array(side, pa.string())})
            with pa.OSFile(f"{texts}/{name}.arrow", "wb") as sink, pa.ipc.new_file(
                sink, table.schema
            ) as writer:  # fmt: skip
                writer.write_table(table)
        places = [[str(place), facts] for place, facts in requests]
        request = Path(texts) / "request.json"
        request.write_text(json.dumps(places))
        done = subprocess.run(
            [sys.executable, "-m", "luthier.clicks.scoring", str(request)],
            capture_output=True, text=True, check=False,
            env={**os.environ, "TOKENIZERS_PARALLELISM": "false"},
        )  # fmt: skip
    if done.returncode:
        last = (done.stdout.strip() or done.stderr.strip() or "it was killed").splitlines()[-1]
        where = requests[0][1]["model"]
        raise ModelError(f"the process that makes vectors failed: {last}", where=where)


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def main(request: Path) -> None:
    """What the process does."""
    sides = {}
    for name in ("queries", "items"):
        with pa.memory_map(str(request.parent / f"{name}.arrow")) as source:
            sides[name] = pa.ipc.open_file(source).read_all()["text"].to_pylist()
    for place, facts in json.loads(request.read_text()):
        encoder = _opened(facts)
        for name, side in (("queries", "query"), ("items", "document")):
            texts = sides[name]
            width = encoder.dim
            found = (
                _side(encoder, side)(texts, normalize=False)
                if texts
                else np.zeros((0, width), np.float32)
            )
            buffer = io.BytesIO()
            np.save(buffer, found)
            write_bytes(_made(Path(place)) / f"{name}.npy", buffer.getvalue())


def _opened(facts: dict[str, Any]) -> Any:
    from luthier import api, inference
    from luthier.models.folder import is_router

    api.connect(facts["home"])
    folder = Path(facts["model"]).expanduser()
    if not facts["artifact"] and is_router(folder):  # two towers, as they were saved
        return inference.get_model(str(folder), device=facts["device"])
    if facts["artifact"]:
        return inference.get_model(facts["artifact"], device=facts["device"])
    return inference.build_model(
        facts["model"], device=facts["device"], model_options=facts["options"] or None
    )


def _side(encoder: Any, side: str) -> Any:
    """How one side is encoded: two towers have a way for each."""
    for holder in (encoder, encoder.model):
        if hasattr(holder, f"encode_{side}"):
            return getattr(holder, f"encode_{side}")
    return encoder.encode


def scores(
    ranker: str, queries: Vectors, items: Vectors, query: Ints, item: Ints
) -> Floats:  # fmt: skip
    """The score of impressions: query int64 [m] and item int64 [m] are rows of the vectors."""
    function = RANKERS[ranker][0]
    found = np.empty(len(query))
    for start in range(0, len(query), _BLOCK):
        part = slice(start, start + _BLOCK)
        found[part] = function(
            queries[query[part]].astype(np.float64), items[item[part]].astype(np.float64)
        )
    return found


if __name__ == "__main__":
    from luthier.errors import LuthierError

    try:
        main(Path(sys.argv[1]))
    except LuthierError as error:
        print(" ".join(str(error).split()))
        sys.exit(error.exit_code)
