"""Fragments of a search put together, however far apart they stand in the log.

Logs are longer than memory: fragments go to partitions on disk by a hash of their key, and each
partition, which holds all fragments of its searches, is then put together by itself.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from luthier.clicks.fragments import EVENTS, FRAGMENT, RESULTS
from luthier.clicks.rejected import Rejected
from luthier.clicks.sessions import SCHEMA

Ints = NDArray[np.int64]


class Partitions:
    """Files of fragments in a folder, by a hash of the key. Closed, they can be read back."""

    def __init__(self, folder: Path, count: int) -> None:
        self.paths = [folder / f"part-{number:04}.arrow" for number in range(count)]
        self._writers = [pa.ipc.new_stream(str(path), FRAGMENT) for path in self.paths]

    def __enter__(self) -> Partitions:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:  # fmt: skip
        for writer in self._writers:
            writer.close()

    def add(self, batch: pa.RecordBatch) -> None:
        """Put a batch's fragments where they belong."""
        if len(self.paths) == 1:
            self._writers[0].write_batch(batch)
            return
        keys = batch.column("key").dictionary_encode()
        hashes = [zlib.crc32(k.encode()) % len(self.paths) for k in keys.dictionary.to_pylist()]
        place = np.array(hashes, np.int64)[keys.indices.to_numpy()]
        order = np.argsort(place, kind="stable")
        bounds = np.searchsorted(place[order], np.arange(len(self.paths) + 1))
        sorted_batch = batch.take(pa.array(order))
        for number, writer in enumerate(self._writers):
            if bounds[number] < bounds[number + 1]:
                length = bounds[number + 1] - bounds[number]
                writer.write_batch(sorted_batch.slice(bounds[number], length))

    def tables(self) -> Iterator[pa.Table]:
        """All fragments, partition by partition, in the order of the log within each."""
        for path in self.paths:
            with pa.ipc.open_stream(str(path)) as reader:
                table = reader.read_all()
            path.unlink()
            if table.num_rows:
                yield table.combine_chunks()


def together(table: pa.Table, rejected: Rejected, *, whole: bool, gap_s: float) -> pa.Table:
    """The sessions (a table of ``sessions.SCHEMA``) of all fragments of some searches.

    whole: a fragment that says what was shown is a whole search; of several the first counts.
    Otherwise fragments of one key are one search unless ``gap_s`` seconds lie between them.
    """
    keys = table["key"].combine_chunks().dictionary_encode().indices.to_numpy()
    table, keys = _known(table, keys.astype(np.int64), rejected, whole)
    times = pc.fill_null(table["time"], np.nan).to_numpy()
    order = np.arange(len(keys)) if whole else np.lexsort((np.arange(len(keys)), times, keys))
    if whole:
        order = np.argsort(keys, kind="stable")
    table, keys, times = table.take(pa.array(order)), keys[order], times[order]
    new = np.ones(len(keys), bool)
    new[1:] = keys[1:] != keys[:-1]
    if not whole:
        with np.errstate(invalid="ignore"):
            new[1:] |= np.diff(times) > gap_s
    return _sessions(table, np.flatnonzero(new), keys, rejected)


def _known(
    table: pa.Table, keys: Ints, rejected: Rejected, whole: bool
) -> tuple[pa.Table, Ints]:  # fmt: skip
    """Without events of searches that the log lacks, and without second copies of searches."""
    shown = table["shown"].to_numpy()
    count = int(keys.max(initial=-1)) + 1
    firsts = np.full(count, len(keys))
    np.minimum.at(firsts, keys[shown], np.flatnonzero(shown))
    keep = firsts[keys] < len(keys)
    rows = table["row"].to_numpy()
    for place in np.flatnonzero(~keep):
        rejected.add("an event of a search that is not in the log", row=int(rows[place]))
    if whole:
        again = shown & (firsts[keys] != np.arange(len(keys))) & keep
        for place in np.flatnonzero(again):
            rejected.add("a search that was in the log before", row=int(rows[place]))
        keep &= ~again
    return table.filter(pa.array(keep)), keys[keep]


def _sessions(table: pa.Table, first: Ints, keys: Ints, rejected: Rejected) -> pa.Table:
    """One session from each run of fragments that begins at ``first``."""
    n = len(first)
    of_fragment = np.repeat(np.arange(n), np.diff(np.append(first, len(keys))))
    shown = table["shown"].to_numpy()
    head = np.full(n, len(keys))  # the fragment that names query and time
    np.minimum.at(head, of_fragment[shown], np.flatnonzero(shown))
    results = _Results(table, of_fragment)
    events = _Events(table, of_fragment, results, rejected)
    heads = table.take(pa.array(head))
    irrelevant = np.zeros(n, bool)
    np.logical_or.at(irrelevant, of_fragment, pc.fill_null(table["irrelevant"], False).to_numpy())
    columns = {
        "session": _named(heads, keys[head]),
        "query": heads["query"],
        "user": heads["user"],
        "time": heads["time"],
        "irrelevant": pa.array(irrelevant),
        **results.lists(n),
        **events.lists(n),
    }
    sessions = pa.table(columns, schema=SCHEMA)
    empty = np.flatnonzero(np.bincount(results.owner, minlength=n) == 0)
    rows = heads["row"].to_numpy()
    for place in empty:
        rejected.add("a search without results", row=int(rows[place]))
    if len(empty):
        keep = np.ones(n, bool)
        keep[empty] = False
        sessions = sessions.filter(pa.array(keep))
    return sessions


def _named(heads: pa.Table, keys: Ints) -> pa.Array:
    """Sessions' names; where a name has several searches, the second is ``name/2``."""
    codes = heads["session"].combine_chunks().dictionary_encode()
    places = codes.indices.to_numpy()
    order = np.argsort(places, kind="stable")
    sorted_places = places[order]
    begins = np.searchsorted(sorted_places, sorted_places)
    ordinal = np.empty(len(places), np.int64)
    ordinal[order] = np.arange(len(places)) - begins
    if not ordinal.any():
        return heads["session"].combine_chunks()
    names = heads["session"].to_pylist()
    return pa.array(
        [f"{name}/{o + 1}" if o else name for name, o in zip(names, ordinal, strict=True)]
    )


class _Results:
    """The impressions of all sessions: by position, an item once in a session."""

    def __init__(self, table: pa.Table, of_fragment: Ints) -> None:
        lengths = pc.list_value_length(table["items"]).to_numpy()
        owner = np.repeat(of_fragment, lengths)
        self.flat = {name: pc.list_flatten(table[name]).combine_chunks() for name in RESULTS}
        named = pc.list_flatten(table["event_items"]).combine_chunks()
        both = pa.concat_arrays([_array(self.flat["items"]), _array(named)]).dictionary_encode()
        codes = both.indices.to_numpy().astype(np.int64)
        self.codes, self.event_codes = codes[: len(owner)], codes[len(owner) :]
        self.items = max(1, len(both.dictionary))
        order = self._order(owner)
        _, kept = np.unique((owner * self.items + self.codes)[order], return_index=True)
        self.rows = order[np.sort(kept)]
        self.owner = owner[self.rows]
        begins = np.searchsorted(self.owner, self.owner)
        self.place = np.arange(len(self.owner)) - begins  # within its session, from 0

    def _order(self, owner: Ints) -> Ints:
        positions = _array(self.flat["positions"])
        known = pc.fill_null(positions, 0).to_numpy(zero_copy_only=False)
        order: Ints = np.lexsort((np.arange(len(owner)), known, owner))
        return order

    def find(self, owner: Ints, codes: Ints) -> Ints:
        """The place within its session of an item, -1 where it was not shown."""
        keys = self.owner * self.items + self.codes[self.rows]
        order = np.argsort(keys)
        wanted = owner * self.items + codes
        if not len(keys):
            return np.full(len(wanted), -1)
        at = order[np.minimum(np.searchsorted(keys[order], wanted), len(keys) - 1)]
        return np.where(keys[at] == wanted, self.place[at], -1)

    def lists(self, n: int) -> dict[str, pa.Array]:
        """The columns of results of n sessions."""
        offsets = _offsets(self.owner, n)
        taken = {name: _array(flat).take(pa.array(self.rows)) for name, flat in self.flat.items()}
        given = taken["positions"].to_numpy(zero_copy_only=False)
        places = np.where(np.isnan(given), self.place + 1, given) if len(given) else self.place
        taken["positions"] = pa.array(places.astype(np.int32))
        return {name: _lists(offsets, values) for name, values in taken.items()}


class _Events:
    """The events of all sessions; those on items that were not shown are rejected."""

    def __init__(
        self, table: pa.Table, of_fragment: Ints, results: _Results, rejected: Rejected
    ) -> None:  # fmt: skip
        lengths = pc.list_value_length(table["event_items"]).to_numpy()
        owner = np.repeat(of_fragment, lengths)
        self.flat = {n: _array(pc.list_flatten(table[n]).combine_chunks()) for n in EVENTS[1:]}
        place = results.find(owner, results.event_codes)
        rows = self.flat["event_rows"].to_numpy(zero_copy_only=False)
        for lost in np.flatnonzero(place < 0):
            rejected.add("an event on an item that was not shown", row=int(rows[lost]))
        order = np.argsort(owner, kind="stable")  # order of the log within a session
        order = order[place[order] >= 0]
        _, kept = np.unique(self._identity(owner, place)[order], axis=0, return_index=True)
        self.rows = order[np.sort(kept)]
        self.owner, self.place = owner[self.rows], place[self.rows]

    def _identity(self, owner: Ints, place: Ints) -> Ints:
        """What makes two events the same: their id; without one item, type and time."""
        names = self.flat["event_ids"].dictionary_encode().indices
        named = pc.fill_null(names, -1).to_numpy(zero_copy_only=False).astype(np.int64)
        kinds = self.flat["event_types"].dictionary_encode().indices.to_numpy(zero_copy_only=False)
        times = pc.fill_null(self.flat["event_times"], -1.0).to_numpy(zero_copy_only=False)
        bits = times.astype(np.float64).view(np.int64)
        by_name = np.stack([owner, named, np.zeros_like(owner), np.zeros_like(owner)], axis=1)
        by_place = np.stack([owner, -1 - place, kinds.astype(np.int64), bits], axis=1)
        return np.where((named >= 0)[:, None], by_name, by_place)

    def lists(self, n: int) -> dict[str, pa.Array]:
        """The columns of events of n sessions."""
        offsets = _offsets(self.owner, n)
        columns = {"event_results": _lists(offsets, pa.array(self.place.astype(np.int32)))}
        for name, flat in self.flat.items():
            if name != "event_rows":
                columns[name] = _lists(offsets, flat.take(pa.array(self.rows)))
        return columns


def _array(values: pa.ChunkedArray | pa.Array) -> pa.Array:
    if not isinstance(values, pa.ChunkedArray):
        return values
    return pa.concat_arrays(values.chunks) if values.num_chunks else pa.array([], values.type)


def _offsets(owner: Ints, n: int) -> Ints:
    return np.searchsorted(owner, np.arange(n + 1)).astype(np.int32)


def _lists(offsets: Ints, values: pa.Array) -> pa.Array:
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), values)
