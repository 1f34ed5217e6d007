"""Opening the database, its transactions, and what its errors mean.

SQLite runs with a write-ahead log and ``synchronous=FULL``, asserted at every connection: with
NORMAL a power cut may lose the last commits, and an acknowledged run would be gone.
"""

from __future__ import annotations

import sqlite3
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from luthier.errors import DiskFull, IllegalTransition, LuthierError, MissingExtra, StoreError
from luthier.runs.tables import HEAD

#: How long a writer waits for its turn. Turns take milliseconds, unless a process is stopped
#: in the middle of one.
_BUSY_S = 20


class Database:
    """One database: ``sqlite:///path`` or ``postgresql://…``; its tables are brought up to date.

    Raises StoreError, DiskFull, or MissingExtra for PostgreSQL without its driver.
    """

    def __init__(self, url: str) -> None:
        self.url = _with_driver(url)
        self.is_sqlite = self.url.startswith("sqlite")
        self._engine = _engine(self.url, self.is_sqlite)
        weakref.finalize(self, self._engine.dispose)  # for who forgets to close
        with self.read() as connection:
            version = _version(connection)
        if version != HEAD:
            self._migrate()

    @contextmanager
    def read(self) -> Iterator[sa.Connection]:
        """A transaction that only reads."""
        with self._translated(), self._engine.connect() as connection:
            yield connection.execution_options(luthier_read=True)
            connection.rollback()

    @contextmanager
    def write(self) -> Iterator[sa.Connection]:
        """A transaction that holds SQLite's write lock from its start; it commits at the end."""
        with self._translated(), self._engine.begin() as connection:
            yield connection

    def close(self) -> None:
        """Close all connections; the next use opens new ones. To be called before a fork."""
        self._engine.dispose()

    def _migrate(self) -> None:
        import alembic.command
        import alembic.config

        config = alembic.config.Config()
        config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
        config.set_main_option("path_separator", "os")
        with self.write() as connection:
            if not self.is_sqlite:  # one process migrates, the others wait and find it done
                connection.execute(sa.text("SELECT pg_advisory_xact_lock(7262081)"))
            version = _version(connection)
            if version == HEAD:
                return
            if version is not None and version > HEAD:
                raise StoreError(
                    f"the database has version {version}, this luthier knows {HEAD}",
                    where=self._shown(),
                    hint="a newer luthier made it: upgrade luthier",
                )
            config.attributes["connection"] = connection
            alembic.command.upgrade(config, "head")

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except LuthierError:
            raise
        except sa.exc.IntegrityError:
            raise  # the caller knows which constraint means what
        except sa.exc.DBAPIError as error:
            raise _meaning(str(error.orig), self._shown()) from error

    def _shown(self) -> str:
        return sa.make_url(self.url).render_as_string(hide_password=True)


def refused(error: sa.exc.IntegrityError) -> IllegalTransition | None:
    """The error as IllegalTransition when a trigger or a check of ours spoke."""
    text = str(error.orig)
    if "illegal" in text or "CHECK constraint" in text or "check constraint" in text:
        return IllegalTransition(text.splitlines()[0])
    return None


def _meaning(text: str, where: str) -> LuthierError:
    low = text.lower()
    if "illegal transition" in low:
        return IllegalTransition(text.splitlines()[0])
    if "disk is full" in low or "no space left" in low:
        return DiskFull("no space left for the ledger", where=where, hint="free some space")
    if "locked" in low:
        return StoreError(
            f"the database stayed locked for {_BUSY_S} s",
            where=where,
            hint="a stopped process may hold it: look for one in state T",
        )
    if "malformed" in low or "not a database" in low:
        return StoreError(f"the database is damaged ({text.strip()})", where=where)
    return StoreError(f"the database failed: {text.strip()}", where=where)


def _engine(url: str, is_sqlite: bool) -> sa.Engine:
    try:
        if not is_sqlite:
            return sa.create_engine(url, pool_pre_ping=True)
        engine = sa.create_engine(url, connect_args={"timeout": _BUSY_S})
    except ModuleNotFoundError as error:
        raise MissingExtra("a PostgreSQL ledger", "postgres") from error
    except (sa.exc.ArgumentError, ValueError) as error:
        raise StoreError(
            "this is not a database URL",
            where=url.rpartition("@")[2],  # without a password, if there was one
            hint="for example postgresql://user@host/database, or a folder",
        ) from error
    sa.event.listen(engine, "connect", _prepare)
    sa.event.listen(engine, "begin", _begin)
    return engine


def _with_driver(url: str) -> str:
    if url.startswith(("postgresql://", "postgres://")):
        return f"postgresql+psycopg://{url.partition('://')[2]}"
    return url


def _version(connection: sa.Connection) -> str | None:
    if not sa.inspect(connection).has_table("alembic_version"):
        return None
    found = connection.execute(sa.text("SELECT version_num FROM alembic_version")).scalar()
    return None if found is None else str(found)


def _prepare(connection: sqlite3.Connection, record: Any) -> None:
    connection.isolation_level = None  # the driver's own BEGINs are in the way of ours
    cursor = connection.cursor()
    cursor.execute(f"PRAGMA busy_timeout = {_BUSY_S * 1000}")
    mode = cursor.execute("PRAGMA journal_mode = WAL").fetchone()[0]
    cursor.execute("PRAGMA synchronous = FULL")
    cursor.execute("PRAGMA foreign_keys = ON")
    level = cursor.execute("PRAGMA synchronous").fetchone()[0]
    cursor.close()
    if (mode, level) != ("wal", 2):
        raise StoreError(
            f"the database cannot promise durability (journal {mode}, synchronous {level})",
            hint="a network folder cannot hold it: use a local disk, or PostgreSQL",
        )


def _begin(connection: sa.Connection) -> None:
    reads = connection.get_execution_options().get("luthier_read")
    connection.exec_driver_sql("BEGIN" if reads else "BEGIN IMMEDIATE")
