"""What calculators score while a model trains: searches of both sides, one row each, also those
without a click."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from luthier.clicks.carrying import carried
from luthier.clicks.conversion import convert
from luthier.clicks.items_sets import ItemsSet
from luthier.clicks.sessions import Sessions
from luthier.clicks.settings import FineTuningSettings
from luthier.data import load_dataset
from luthier.data.rankings import Rankings
from luthier.doors.clicks_data import Calculated
from luthier.errors import DataError
from luthier.evaluation.calculators import Layout, laid_out
from luthier.spec import CSVOptions, Source

if TYPE_CHECKING:
    from luthier.runs.connection import Home

#: Searches of a side that are scored at each evaluation; of more a sample, the same each time.
#: The mean of a shift is known to a twentieth of its spread, and training is not held up.
SCORED = 500


def of_sessions(
    settings: FineTuningSettings,
    parts: Mapping[str, Sessions | None],
    items: ItemsSet,
    home: Home,
    seed: int,
) -> tuple[Calculated | None, list[str]]:
    """The settings' calculators with the searches that they score, and notes.

    parts: "train" and "test". None where there is nothing to calculate.
    """
    notes: list[str] = []
    sources: dict[str, Source] = {}
    for stage, sessions in parts.items() if settings.metric_calculators else ():
        source = None if sessions is None else _source(_sample(sessions, seed), items, home)
        if source is not None:
            sources[stage] = source
    return of_sources(settings, sources, home, notes), notes


def of_sources(
    settings: FineTuningSettings, sources: Mapping[str, Source], home: Home, notes: list[str]
) -> Calculated | None:
    """The same for rankings that are there already."""
    if not settings.metric_calculators or not sources:
        return None
    layouts = {stage: _layout(source, home) for stage, source in sources.items()}
    found = carried(
        settings.metric_calculators, layouts, home, is_similarity=bool(settings.is_similarity)
    )
    for name, why in found.left.items():
        notes.append(f"{name} is calculated before and after training only: {why}")
    return Calculated(
        found.calculators, sources.get("train"), sources.get("test"), found.names, found.left
    )


def _sample(sessions: Sessions, seed: int) -> Sessions:
    if len(sessions) <= SCORED:
        return sessions
    rng = np.random.default_rng(seed)
    return sessions.take(np.sort(rng.choice(len(sessions), SCORED, replace=False)))


def _source(sessions: Sessions, items: ItemsSet, home: Home) -> Source | None:
    """One row a search, in the home's store; None where no item has a text."""
    inputs = convert(sessions, not_irrelevant_only=False).of_catalogue(set(items.ids))
    inputs = items.expand(inputs)
    found, texts = inputs.sessions, items.texts
    at = np.flatnonzero(inputs.kept)
    if not len(at):
        return None
    owners, first = np.unique(found.owner[at], return_index=True)
    offsets = pa.array(np.append(first, len(at)).astype(np.int32))
    names = [found.item_names[code] for code in found.item_codes[at]]
    irrelevant = inputs.irrelevant[found.owner[at]]
    lists = {
        "items": pa.array([texts[name] for name in names], pa.string()),
        "relevance": pa.array(inputs.relevance[at], pa.float64()),
        "irrelevant": pa.array(irrelevant.astype(np.float64), pa.float64()),
    }
    queries = [found.query_texts[code] for code in found.query_codes[owners]]
    columns = {"query": pa.array(queries, pa.string())}
    for name, values in lists.items():
        columns[name] = pa.ListArray.from_arrays(offsets, values)
    table = pa.table(columns)
    with tempfile.TemporaryDirectory(dir=home.scratch()) as folder:
        file = Path(folder) / "scored.arrow"
        with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table)
        sha256 = home.store.put_blob(file)
    return Source(uri=f"blob:{sha256}", sha256=sha256)


def _layout(source: Source, home: Home) -> Layout:
    from luthier.store.urls import local_file

    path = local_file(source.uri, home.cache, home.store.blob)
    dataset = load_dataset(path, CSVOptions(), home.cache, name=source.uri)
    if not isinstance(dataset, Rankings):
        raise DataError(f"the data is {dataset.form}, not rankings", file=source.uri)
    return laid_out(dataset)
