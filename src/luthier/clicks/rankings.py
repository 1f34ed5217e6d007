"""Training inputs as the engine reads them: an Arrow file of the form "rankings"."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa

from luthier.clicks.conversion import Inputs, partners
from luthier.clicks.mining import Mined
from luthier.clicks.sessions import Bools, Floats, Ints
from luthier.errors import DataError, nearest
from luthier.store.atomic import cached_file

#: Searches that are laid out together: what writing takes of memory.
_TOGETHER = 8192


def to_rankings(
    inputs: Inputs,
    items: Mapping[str, str],
    destination: Path,
    *,
    scores: Floats | None = None,
    mined: Mined | None = None,
) -> Path:
    """Write one row a session that has something relevant: query, items, relevance, weight.

    items: id → text. Items of sessions without a click that take part are appended to a session
    with clicks (see ``Inputs.pairs``), with a 1 in the list ``irrelevant``. The weights are
    the inputs' confidences, where they are not all 1. scores: of all impressions, [m], by the
    starting model; without them those of the search, where all are known. mined: hard negatives
    of each query, whose scores must be of the same model.

    Returns destination. Raises DataError: an item has no text, or nothing is relevant.
    """
    texts = _texts(inputs, items, mined)
    at, row, irrelevant = _laid_out(inputs)
    if not len(at):
        hint = "sessions need a click on an item that takes part"
        raise DataError("no session has anything relevant to learn from", hint=hint)
    given = inputs.sessions.scores if scores is None else scores
    if len(given) != int(inputs.sessions.starts[-1]):
        raise DataError(f"{len(given)} scores of {inputs.sessions.starts[-1]} impressions")
    columns = _Columns(
        inputs,
        texts,
        at,
        row,
        irrelevant if irrelevant.any() else None,
        inputs.confidence if (inputs.confidence[at] != 1).any() else None,
        given if np.isfinite(given[at]).all() else None,
        mined,
    )
    starts = np.concatenate([[0], np.flatnonzero(np.diff(row)) + 1, [len(row)]])
    with cached_file(destination) as aside, pa.OSFile(str(aside), "wb") as sink:
        schema = columns.batch(starts[:2]).schema
        with pa.ipc.new_file(sink, schema) as writer:
            for first in range(0, len(starts) - 1, _TOGETHER):
                writer.write_batch(columns.batch(starts[first : first + _TOGETHER + 1]))
    return destination


def _laid_out(inputs: Inputs) -> tuple[Ints, Ints, Bools]:
    """The impressions that take part, by session, int64 [p]; the session that each stands
    with; and whether it is of another, without a click."""
    owner, kept = inputs.sessions.owner, inputs.kept
    clicked = owner[kept & (inputs.relevance > 0)]
    partner = np.where(
        inputs.irrelevant, partners(inputs, clicked), np.arange(len(inputs.irrelevant))
    )
    has_click = np.zeros(len(inputs.irrelevant), bool)
    has_click[clicked] = True
    at = np.flatnonzero(kept)
    with_whom = partner[owner[at]]
    there = (with_whom >= 0) & has_click[with_whom]
    at, with_whom = at[there], with_whom[there]
    order = np.argsort(with_whom, kind="stable")
    at = at[order]
    return at, with_whom[order], inputs.irrelevant[owner[at]]


def _texts(inputs: Inputs, items: Mapping[str, str], mined: Mined | None) -> pa.Array:
    """The text of each item, by its number; then those of the catalogue that mining knows."""
    used = np.zeros(len(inputs.sessions.item_names), bool)
    used[inputs.sessions.item_codes[inputs.kept]] = True
    names = [n if u else None for n, u in zip(inputs.sessions.item_names, used, strict=True)]
    names += list(mined.names) if mined is not None else []
    missing = [name for name in names if name is not None and not items.get(name)]
    if missing:
        hint = nearest(missing[0], list(items)[:1000]) or "give each item that was shown a text"
        message = f"{len(missing):,} items have no text, such as {missing[0]!r}"
        raise DataError(message, file="items", hint=hint)
    return pa.array([None if n is None else items[n] for n in names], pa.string())


class _Columns:
    """Rows as record batches."""

    def __init__(
        self, inputs: Inputs, texts: pa.Array, at: Ints, row: Ints, irrelevant: Bools | None,
        weight: Floats | None, score: Floats | None, mined: Mined | None,
    ) -> None:  # fmt: skip
        self.inputs, self.texts, self.at, self.row = inputs, texts, at, row
        self.irrelevant, self.weight, self.score, self.mined = irrelevant, weight, score, mined

    def batch(self, starts: Ints) -> pa.RecordBatch:
        """The rows that begin at these places (but the last, which is the end)."""
        place = np.arange(starts[0], starts[-1])
        at, sessions = self.at[place], self.inputs.sessions
        codes, lengths = sessions.item_codes[at], np.diff(starts)
        values = {"relevance": self.inputs.relevance[at]}
        if self.weight is not None:
            values["weight"] = self.weight[at]
        if self.score is not None:
            values["score"] = self.score[at]
        if self.irrelevant is not None:
            values["irrelevant"] = self.irrelevant[place].astype(np.float64)
        queries = sessions.query_codes[self.row[starts[:-1]]]
        if self.mined is not None:
            codes, lengths, values = self._with_mined(queries, codes, lengths, values)
        offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32))
        texts = self.texts.take(pa.array(codes))
        columns = {
            "query": pa.array([sessions.query_texts[code] for code in queries], pa.string()),
            "items": pa.ListArray.from_arrays(offsets, texts),
        }
        for name, found in values.items():
            columns[name] = pa.ListArray.from_arrays(offsets, pa.array(found, pa.float64()))
        return pa.record_batch(columns)

    def _with_mined(
        self, queries: Ints, codes: Ints, lengths: Ints, values: dict[str, Floats]
    ) -> tuple[Ints, Ints, dict[str, Floats]]:
        """Each row with what was mined for its query, but for what it has already."""
        assert self.mined is not None
        known = len(self.inputs.sessions.item_names)
        more, similarity = self.mined.of(queries)
        own = np.split(codes, np.cumsum(lengths)[:-1])
        names = self.inputs.sessions.item_names
        kept = [
            [i for i, code in enumerate(found) if self.mined.names[code] not in there]
            for found, there in zip(more, ([names[c] for c in o] for o in own), strict=True)
        ]
        added = [np.asarray(found)[k] for found, k in zip(more, kept, strict=True)]
        fill = {"relevance": 0.0, "weight": 1.0, "irrelevant": 0.0}
        joined = {}
        for name, flat in values.items():
            parts = np.split(flat, np.cumsum(lengths)[:-1])
            ends = (
                [np.asarray(s)[k] for s, k in zip(similarity, kept, strict=True)]
                if name == "score"
                else [np.full(len(k), fill[name]) for k in kept]
            )
            joined[name] = np.concatenate([x for p in zip(parts, ends, strict=True) for x in p])
        all_codes = np.concatenate(
            [x for o, a in zip(own, added, strict=True) for x in (o, a + known)]
        ).astype(np.int64)
        return all_codes, lengths + np.array([len(a) for a in added]), joined
