"""Sessions as Embedding Studio hands them over, their queries, and the split into parts."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from luthier.clicks.importing import import_log
from luthier.clicks.loaders import ItemMeta
from luthier.clicks.preprocessing import clean_text
from luthier.clicks.sessions import SCHEMA, Sessions
from luthier.clicks.splits import By, Split, split_sessions
from luthier.errors import DataError

#: A session with its events, as the routes show it: see ``readers.studio``.
SessionWithEvents = Mapping[str, Any]


@dataclass(frozen=True)
class TextQueryItem:
    """A query that is a text."""

    text: str


class QueryRetriever:
    """From a query item to the text that the model reads. Subclasses override ``__call__``."""

    def setup(self, clickstream: Sessions) -> None:
        """Called once with all sessions."""

    def __call__(self, query: Any) -> str:
        raise NotImplementedError


class TextQueryRetriever(QueryRetriever):
    """The text of a ``TextQueryItem``, or a text, cleaned."""

    def __call__(self, query: Any) -> str:
        found = getattr(query, "text", query)
        if not isinstance(found, str):
            raise DataError(f"a query is a text, not {type(found).__name__}")
        return clean_text(found)


class ClickstreamSessionConverter:
    """Sessions with events → ``Sessions`` in columns, and the items that they show.

    item_type: called with ``object_id`` and what the log says of an item, by name.
    query_item_type: called with the query's text; a retriever gets what it returns.
    """

    def __init__(
        self,
        item_type: Callable[..., Any] = ItemMeta,
        query_item_type: Callable[[str], Any] = TextQueryItem,
    ) -> None:
        self.item_type, self.query_item_type = item_type, query_item_type

    def convert(self, clickstream: Sessions | Iterable[SessionWithEvents]) -> Sessions:
        """Sessions of dicts (or of objects with ``model_dump``). Raises DataError that names the
        session by its number."""
        if isinstance(clickstream, Sessions):
            return clickstream
        with tempfile.TemporaryDirectory(prefix="luthier-clicks-") as folder:
            log = Path(folder) / "clickstream"
            with open(log, "w", encoding="utf-8") as file:
                for number, session in enumerate(clickstream, start=1):
                    file.write(_line(session, number) + "\n")
            done = import_log(log, Path(folder) / "sessions.arrow", format="studio", strict=True)
            return done.sessions  # mapped, so it outlives the file

    def items(self, clickstream: Sessions | Iterable[SessionWithEvents]) -> list[Any]:
        """An ``item_type`` for each item that was shown, once."""
        if isinstance(clickstream, Sessions):
            return [self.item_type(object_id=name) for name in clickstream.item_names]
        found: dict[str, Any] = {}
        for session in clickstream:
            for result in _plain(session).get("search_results", ()):
                name, meta = str(result["object_id"]), result.get("meta")
                more = {"meta": meta} if meta else {}
                if name not in found:
                    found[name] = self.item_type(object_id=name, **more)
        return list(found.values())

    def queries(self, sessions: Sessions, retriever: QueryRetriever) -> Sessions:
        """The sessions with the texts of the retriever as queries."""
        retriever.setup(sessions)
        texts = []
        for query in sessions.query_texts:
            text = retriever(self.query_item_type(query))
            if not isinstance(text, str) or not text:
                raise DataError(f"the retriever made no text of the query {query!r:.60}")
            texts.append(text)
        if texts == sessions.query_texts:
            return sessions
        column = pa.array(np.array(texts, object)[sessions.query_codes], pa.string())
        at = SCHEMA.get_field_index("query")
        return Sessions(sessions.table.set_column(at, SCHEMA.field("query"), column))


def _plain(session: Any) -> Mapping[str, Any]:
    found = session.model_dump() if hasattr(session, "model_dump") else session
    return found if isinstance(found, Mapping) else {}


def _line(session: Any, number: int) -> str:
    found = _plain(session)
    if not found:
        raise DataError(f"a session is a mapping, not {type(session).__name__}", row=number)
    try:
        return json.dumps(found, ensure_ascii=False)
    except (TypeError, ValueError) as error:
        raise DataError(f"no JSON ({error})", row=number) from None


class TrainTestSplitter:
    """Holds a share of the sessions out, so that no query is on both sides.

    by: "query", drawn by ``random_state``, or "time", the latest; where it is not said, a split
    that is not shuffled is by time. A split that draws single sessions is not on offer: the same
    query with the same clicks would be on both sides. What both sides still share is counted in
    ``Split.overlap``.
    """

    def __init__(
        self,
        test_size_ratio: float = 0.2,
        shuffle: bool = True,
        random_state: int | None = None,
        by: By | None = None,
    ) -> None:
        self.test_size_ratio = test_size_ratio
        self.by: By = by or ("query" if shuffle else "time")
        self.seed = 0 if random_state is None else random_state

    def split(self, sessions: Sessions) -> Split:
        """Raises DataError where a side would be empty, or a time lacks."""
        return split_sessions(
            sessions, test_size_ratio=self.test_size_ratio, by=self.by, seed=self.seed
        )
