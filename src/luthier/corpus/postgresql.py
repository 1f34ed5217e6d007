"""Vectors in PostgreSQL: a table a version, and a view of the table's name over the current one.

With pgvector the column is ``vector(dim)``, without it ``real[]``. A shard is one transaction; a
swap turns the view in one transaction, so whoever reads sees the old version or the new.
"""

from __future__ import annotations

import dataclasses
import json
import re
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from luthier.corpus.place import Begun, Plan
from luthier.errors import Conflict, MissingExtra, Problem, SpecError, StoreError
from luthier.store.atomic import point

#: Leaves room for ``_`` and a version in the 63 bytes of a name.
_NAME = re.compile(r"[a-z_][a-z0-9_]{0,40}\Z")
KINDS = ("auto", "vector", "real")
#: COPY's binary format: signature, flags, length of a header extension; and the end of the rows.
_HEAD, _TAIL = b"PGCOPY\n\xff\r\n\x00" + bytes(8), struct.pack(">h", -1)
_REAL_OID = 700  # of pg_type.dat


class Table:
    """A table of a database. url: ``postgresql://…``. kind: of the column; "auto" is ``vector``
    where pgvector is there, else ``real[]``. Raises StoreError, MissingExtra, SpecError."""

    def __init__(self, url: str, table: str, kind: str = "auto") -> None:
        problems = []
        if not _NAME.match(table):
            hint = "small letters, digits and _; at most 41"
            problems.append(Problem("table", f"'{table:.80}' cannot be the name of one", hint))
        if kind not in KINDS:
            problems.append(Problem("vector_type", f"is {' or '.join(KINDS)}, not '{kind}'"))
        if problems:
            raise SpecError(problems)
        try:
            import psycopg
        except ImportError as error:
            raise MissingExtra("a PostgreSQL database", "postgres") from error
        self._psycopg, self._url, self.table, self._asked = psycopg, url, table, kind
        parts = urlsplit(url)
        self.where = f"{parts.hostname or ''}{parts.path} {table}"
        self.notes: list[str] = []
        self._connection: Any = None

    @contextmanager
    def alone(self) -> Iterator[None]:
        """As Place; connected meanwhile."""
        with self._translated():
            self._connection = self._psycopg.connect(self._url, autocommit=True)
        try:
            key = f"luthier corpus {self.table}"
            if not self._one("SELECT pg_try_advisory_lock(hashtextextended(%s, 0))", key):
                raise Conflict("another process encodes into this table", where=self.where)
            yield
        finally:
            self._connection.close()

    def begin(self, plan: Plan) -> Begun:
        with self._translated(), self._connection.transaction():
            self._make_books()
            row = self._row(plan.version)
            if row is None:
                self._run(
                    f"INSERT INTO {self.table}_versions (version, shard_rows, kind, plan) "
                    "VALUES (%s, %s, %s, %s)",
                    plan.version, plan.shard_rows, self._kind(), json.dumps(plan.facts()),
                )  # fmt: skip
                row = self._row(plan.version)
            assert row is not None
            plan = dataclasses.replace(plan, shard_rows=row["shard_rows"])
            if self._asked not in ("auto", row["kind"]):
                message = f"this version is of {row['kind']}, not of {self._asked}"
                raise Conflict(message, where=self.where, hint="leave vector_type out")
            if row["kind"] == "real":
                self.notes.append("pgvector is not used: the column is real[]")
            if self._one("SELECT to_regclass(%s)::text", self._data(plan.version)) is None:
                self._run(f"DELETE FROM {self.table}_shards WHERE version = %s", plan.version)
                self._run(
                    f"UPDATE {self.table}_versions SET finished_at = NULL WHERE version = %s",
                    plan.version,
                )
            query = f"SELECT shard FROM {self.table}_shards WHERE version = %s"
            done = frozenset(r[0] for r in self._all(query, plan.version))
            row = self._row(plan.version)
            assert row is not None
            return Begun(plan, done, row["finished_at"] is not None)

    def prepare(self, plan: Plan, dim: int) -> None:
        with self._translated(), self._connection.transaction():
            column = f"vector({dim})" if self._row_kind(plan.version) == "vector" else "real[]"
            self._run(
                f"CREATE TABLE IF NOT EXISTS {self._data(plan.version)} "
                f"(id text PRIMARY KEY, vector {column} NOT NULL, model text NOT NULL)"
            )

    def put(self, plan: Plan, shard: int, ids: Sequence[str], vectors: np.ndarray) -> None:
        packed = _packed(ids, vectors, plan.model, self._row_kind(plan.version))
        with self._translated(), self._connection.transaction():
            copy = f"COPY {self._data(plan.version)} (id, vector, model) FROM STDIN (FORMAT binary)"
            with self._connection.cursor() as cursor, cursor.copy(copy) as sink:
                for piece in packed:
                    sink.write(piece)
            self._run(
                f"INSERT INTO {self.table}_shards (version, shard, rows) VALUES (%s, %s, %s)",
                plan.version, shard, len(ids),
            )  # fmt: skip
        point("corpus.shard")

    def finish(self, plan: Plan, dim: int) -> None:
        with self._translated(), self._connection.transaction():
            rows = self._one(f"SELECT count(*) FROM {self._data(plan.version)}")
            if rows != plan.rows:
                message = f"the table has {rows} rows where {plan.rows} were written"
                raise StoreError(message, where=self.where, hint=f"drop {self._data(plan.version)}")
            self._run(
                f"UPDATE {self.table}_versions SET finished_at = now(), dim = %s "
                "WHERE version = %s",
                dim, plan.version,
            )  # fmt: skip
        point("corpus.finished")

    def swap(self, version: str) -> None:
        if self.current() == version:
            return
        view = f"VIEW {self.table} AS SELECT id, vector, model FROM {self._data(version)}"
        with self._translated(), self._connection.transaction():
            try:
                with self._connection.transaction():  # what else depends on the view stays
                    self._run(f"CREATE OR REPLACE {view}")
            except self._psycopg.errors.InvalidTableDefinition:  # vectors of another width
                self._run(f"DROP VIEW {self.table}")
                self._run(f"CREATE {view}")
            self._run(f"UPDATE {self.table}_versions SET current = (version = %s)", version)

    def current(self) -> str | None:
        with self._translated():
            query = f"SELECT version FROM {self.table}_versions WHERE current"
            rows = self._all(query)
        return str(rows[0][0]) if rows else None

    def prune(self) -> list[str]:
        with self._translated(), self._connection.transaction():
            query = f"SELECT version FROM {self.table}_versions WHERE NOT current ORDER BY version"
            gone = [str(row[0]) for row in self._all(query)]
            for version in gone:
                self._run(f"DROP TABLE IF EXISTS {self._data(version)}")
                self._run(f"DELETE FROM {self.table}_shards WHERE version = %s", version)
                self._run(f"DELETE FROM {self.table}_versions WHERE version = %s", version)
        return gone

    # What it is made of

    def _make_books(self) -> None:
        kind = self._one(
            "SELECT relkind::text FROM pg_class WHERE oid = to_regclass(%s)", self.table
        )
        ours = self._one("SELECT to_regclass(%s)::text", f"{self.table}_versions") is not None
        if kind is not None and not (kind == "v" and ours):
            raise Conflict(
                f"there is something called {self.table} already", where=self.where,
                hint="name another table",
            )  # fmt: skip
        self._run(
            f"CREATE TABLE IF NOT EXISTS {self.table}_versions (version text PRIMARY KEY, "
            "shard_rows int NOT NULL, kind text NOT NULL, dim int, plan text NOT NULL, "
            "current boolean NOT NULL DEFAULT false, finished_at timestamptz)"
        )
        self._run(
            f"CREATE TABLE IF NOT EXISTS {self.table}_shards (version text NOT NULL, "
            "shard int NOT NULL, rows int NOT NULL, PRIMARY KEY (version, shard))"
        )

    def _kind(self) -> str:
        """Of a new version's column."""
        if self._asked == "real":
            return "real"
        there = "SELECT count(*) FROM pg_extension WHERE extname = 'vector'"
        if self._one(there):
            return "vector"
        if self._one("SELECT count(*) FROM pg_available_extensions WHERE name = 'vector'"):
            try:
                with self._connection.transaction():
                    self._run("CREATE EXTENSION IF NOT EXISTS vector")
                return "vector"
            except self._psycopg.errors.InsufficientPrivilege:
                self.notes.append("pgvector may not be switched on by this user")
        if self._asked == "vector":
            hint = "CREATE EXTENSION vector, as its superuser; or vector_type='real'"
            raise StoreError("the database has no pgvector", where=self.where, hint=hint)
        return "real"

    def _row(self, version: str) -> dict[str, Any] | None:
        query = (
            f"SELECT shard_rows, kind, finished_at FROM {self.table}_versions WHERE version = %s"
        )
        rows = self._all(query, version)
        return (
            dict(zip(("shard_rows", "kind", "finished_at"), rows[0], strict=True)) if rows else None
        )

    def _row_kind(self, version: str) -> str:
        row = self._row(version)
        assert row is not None
        return str(row["kind"])

    def _data(self, version: str) -> str:
        return f"{self.table}_{version}"

    def _run(self, text: str, *values: Any) -> None:
        # Names were checked, and stand for themselves; values go beside the text.
        self._connection.execute(text.encode(), values)

    def _all(self, text: str, *values: Any) -> list[Any]:
        return list(self._connection.execute(text.encode(), values).fetchall())

    def _one(self, text: str, *values: Any) -> Any:
        rows = self._all(text, *values)
        return rows[0][0] if rows else None

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except self._psycopg.Error as error:
            text = str(error).strip().splitlines() or [type(error).__name__]
            raise StoreError(f"the database failed: {text[0]}", where=self.where) from error


def _packed(ids: Sequence[str], vectors: np.ndarray, model: str, kind: str) -> Iterator[bytes]:
    """Rows as COPY takes them in binary: exact, and without a digit being printed."""
    rows, dim = vectors.shape
    if kind == "vector":  # dim, unused, floats
        values = np.zeros(rows, dtype=[("dim", ">i2"), ("unused", ">i2"), ("x", ">f4", (dim,))])
        values["dim"], values["x"] = dim, vectors
    else:  # an array: dimensions, has nulls, type; length, lower bound; then a length each
        head = [("nd", ">i4"), ("nulls", ">i4"), ("oid", ">i4"), ("n", ">i4"), ("low", ">i4")]
        values = np.zeros(rows, dtype=[*head, ("x", [("len", ">i4"), ("v", ">f4")], (dim,))])
        values["nd"], values["oid"], values["n"], values["low"] = 1, _REAL_OID, dim, 1
        values["x"]["len"], values["x"]["v"] = 4, vectors
    name = model.encode()
    end = struct.pack(">i", len(name)) + name
    width = struct.pack(">i", values.dtype.itemsize)
    yield _HEAD
    for item, value in zip(ids, values, strict=True):
        text = item.encode()
        yield struct.pack(">hi", 3, len(text)) + text + width + value.tobytes() + end
    yield _TAIL
