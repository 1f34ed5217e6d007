"""Vectors of queries and items by a model, in a process of its own: what a model takes of memory
is given back when that process ends.

``python -m luthier.clicks.scoring REQUEST`` is that process. The vectors are kept beside the
request, so that the same is not computed twice.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
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
    model: Model, queries: Sequence[str], items: Sequence[str], folder: Path, home: str
) -> tuple[Vectors, Vectors]:
    """Vectors of queries [q, d] and of items [i, d]. home: where artifacts are. Raises ModelError
    with what the process said."""
    facts = {"model": model.name, "artifact": model.artifact, "options": dict(model.options),
             "device": model.device, "home": home}  # fmt: skip
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    for texts in (queries, items):
        digest.update(f"\0{len(texts)}".encode())
        for text in texts:
            data = text.encode("utf-8", "surrogatepass")
            digest.update(f"\0{len(data)}:".encode() + data)
    place = folder / digest.hexdigest()[:32]
    if not (place / "items.npy").is_file():
        _encode(facts, queries, items, place)
    return np.load(place / "queries.npy"), np.load(place / "items.npy")


def _encode(
    facts: dict[str, Any], queries: Sequence[str], items: Sequence[str], place: Path
) -> None:
    place.mkdir(parents=True, exist_ok=True)
    for name, texts in (("queries", queries), ("items", items)):
        table = pa.table({"text": pa.array(texts, pa.string())})
        with pa.OSFile(str(place / f"{name}.arrow"), "wb") as sink, pa.ipc.new_file(
            sink, table.schema
        ) as writer:  # fmt: skip
            writer.write_table(table)
    (place / "request.json").write_text(json.dumps(facts))
    done = subprocess.run(
        [sys.executable, "-m", "luthier.clicks.scoring", str(place / "request.json")],
        capture_output=True, text=True, check=False,
        env={**os.environ, "TOKENIZERS_PARALLELISM": "false"},
    )  # fmt: skip
    if done.returncode:
        last = (done.stdout.strip() or done.stderr.strip() or "it was killed").splitlines()[-1]
        raise ModelError(f"the process that makes vectors failed: {last}", where=facts["model"])
    for name in ("queries", "items"):
        (place / f"{name}.arrow").unlink()


def main(request: Path) -> None:
    """What the process does."""
    from luthier import api, inference
    from luthier.store.atomic import write_bytes

    facts = json.loads(request.read_text())
    api.connect(facts["home"])
    if facts["artifact"]:
        encoder = inference.get_model(facts["artifact"], device=facts["device"])
    else:
        encoder = inference.build_model(
            facts["model"], device=facts["device"], model_options=facts["options"] or None
        )
    for name, side in (("queries", "query"), ("items", "document")):
        with pa.memory_map(str(request.parent / f"{name}.arrow")) as source:
            texts = pa.ipc.open_file(source).read_all()["text"].to_pylist()
        vectors = _side(encoder, side)(texts) if texts else np.zeros((0, encoder.dim), np.float32)
        import io

        buffer = io.BytesIO()
        np.save(buffer, vectors)
        write_bytes(request.parent / f"{name}.npy", buffer.getvalue())


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
