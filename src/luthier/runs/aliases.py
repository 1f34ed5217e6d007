"""Names for artifacts: ``production``, ``previous``, or any other. What serves reads a name.

A change is one transaction: it may be conditional on what the name stood for (compare and set),
and is kept for good with who made it and when. Each change remembers the one that it took the
place of, so rollbacks go back one promotion after another.
"""

from __future__ import annotations

import getpass
import re
import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import sqlalchemy as sa

from luthier.errors import Conflict, IllegalTransition, NotFound, Problem, SpecError, nearest
from luthier.runs.tables import alias_changes, aliases, now

if TYPE_CHECKING:
    from luthier.runs.database import Database
    from luthier.store.blobs import Store

#: What stands before the name wherever an artifact is asked for.
PREFIX = "alias:"
#: Not None, which says that the name must stand for nothing yet.
ANY: Final = "*"

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}\Z")


@dataclass(frozen=True)
class Alias:
    """A name as it is now. at: seconds since 1970. before: what a rollback would bring back."""

    name: str
    artifact_id: str
    revision: int
    at: float
    by: str
    note: str
    before: str | None


@dataclass(frozen=True)
class Change:
    """One change of a name. artifact_id: None where the name was taken away."""

    name: str
    revision: int
    artifact_id: str | None
    action: str
    at: float
    by: str
    note: str


class Aliases:
    """The names of a home: ``home.aliases``.

    ``expected`` of a change: the id of the artifact that the name must stand for (its first
    digits will do), None for nothing, ``ANY`` for whatever it is. Who: by default the user and
    the machine. All raise StoreError where the database fails.
    """

    def __init__(self, database: Database, store: Store) -> None:
        self._database, self._store = database, store

    # Looking

    def find(self, name: str) -> Alias:
        """What a name stands for; with or without ``alias:`` before it. Raises NotFound."""
        name = _checked(name)
        with self._database.read() as connection:
            found = _alias(connection, name)
            if found is not None:
                return found
            known = connection.scalars(
                sa.select(aliases.c.name).where(aliases.c.artifact_id.is_not(None))
            ).all()
        hint = nearest(name, known) or (f"there are: {', '.join(sorted(known))}" if known else None)
        raise NotFound(f"no alias is called '{name}'", hint=hint)

    def all(self) -> list[Alias]:
        """All names that stand for something, by name."""
        query = sa.select(aliases.c.name).where(aliases.c.artifact_id.is_not(None))
        with self._database.read() as connection:
            names = connection.scalars(query.order_by(aliases.c.name)).all()
            return [found for name in names if (found := _alias(connection, name)) is not None]

    def history(self, name: str) -> list[Change]:
        """All changes of a name, the newest first. Raises NotFound for one that never was."""
        name = _checked(name)
        columns = [alias_changes.c[field] for field in Change.__dataclass_fields__]
        query = sa.select(*columns).where(alias_changes.c.name == name)
        with self._database.read() as connection:
            rows = connection.execute(query.order_by(alias_changes.c.revision.desc())).all()
        if not rows:
            raise NotFound(f"no alias is called '{name}'")
        return [Change(**row._mapping) for row in rows]

    # Changing

    def set(
        self, name: str, artifact: str, *, expected: str | None = ANY, by: str | None = None,
        note: str = "",
    ) -> Alias:  # fmt: skip
        """Let a name stand for an artifact; nothing changes where it does so already.

        Raises NotFound for the artifact, Conflict where the name stands for another than
        ``expected``.
        """
        name, artifact_id = _checked(name), self._store.find(artifact)
        expected = self._known(expected)
        with self._database.write() as connection:
            _change(connection, name, artifact_id, "set", expected, by, note)
            self._store.find(artifact_id)  # a search gives up what no alias stands for
            return _there(connection, name)

    def promote(
        self, artifact: str, *, name: str = "production", keep: str | None = "previous",
        expected: str | None = ANY, by: str | None = None, note: str = "",
    ) -> Alias:  # fmt: skip
        """As ``set``; and what the name stood for until now is from then on called ``keep``."""
        name, artifact_id = _checked(name), self._store.find(artifact)
        expected = self._known(expected)
        with self._database.write() as connection:
            found = promote(
                connection, artifact_id, name=name, keep=keep, expected=expected, by=by, note=note
            )
            self._store.find(artifact_id)  # as above
            return found

    def rollback(
        self, name: str = "production", *, keep: str | None = "previous",
        expected: str | None = ANY, by: str | None = None, note: str = "",
    ) -> Alias:  # fmt: skip
        """Go back to what the name stood for before; once more, to what was before that.

        Raises NotFound for the name and where the artifact is there no more, IllegalTransition
        where there is nothing before, Conflict as ``set``.
        """
        name = _checked(name)
        expected = self._known(expected)
        with self._database.write() as connection:
            row = _newest(connection, name, lock=True)
            if row is None or row.artifact_id is None:
                raise NotFound(f"no alias is called '{name}'")
            earlier = None if row.before is None else _revision(connection, name, row.before)
            if earlier is None:
                raise IllegalTransition(f"'{name}' was nothing else before", where=PREFIX + name)
            self._store.find(earlier.artifact_id)
            _change(
                connection, name, earlier.artifact_id, "rollback", expected, by, note,
                before=earlier.before,
            )  # fmt: skip
            return _followed(connection, name, keep, by)

    def remove(self, name: str, *, expected: str | None = ANY, by: str | None = None) -> None:
        """Take a name away; its history stays. Raises NotFound, Conflict."""
        name = _checked(name)
        expected = self._known(expected)
        with self._database.write() as connection:
            row = _newest(connection, name)
            if row is None or row.artifact_id is None:
                raise NotFound(f"no alias is called '{name}'")
            _change(connection, name, None, "remove", expected, by, "")

    def _known(self, expected: str | None) -> str | None:
        return expected if expected in (None, ANY) else self._store.find(str(expected))


def promote(
    connection: sa.Connection, artifact_id: str, *, name: str, keep: str | None,
    expected: str | None = ANY, by: str | None = None, note: str = "",
) -> Alias:  # fmt: skip
    """``Aliases.promote`` of a whole id, within a transaction."""
    _change(connection, _checked(name), artifact_id, "promote", expected, by, note)
    return _followed(connection, _checked(name), keep, by)


def standing(connection: sa.Connection, name: str) -> str | None:
    """The artifact that a name stands for, which nobody else changes before the transaction
    ends."""
    _insert_new(connection, _checked(name))
    found: str | None = _newest(connection, _checked(name), lock=True).artifact_id
    return found


def _followed(connection: sa.Connection, name: str, keep: str | None, by: str | None) -> Alias:
    """Let ``keep`` stand for what was before; away with it where nothing was."""
    found = _there(connection, name)
    if keep is not None and (keep := _checked(keep)) != name:
        _change(connection, keep, found.before, "follow", ANY, by, f"of {name}")
    return found


def _checked(name: str) -> str:
    name = name.removeprefix(PREFIX)
    if not _NAME.match(name):
        hint = "small letters, digits and . _ - ; at most 64"
        raise SpecError([Problem("alias", f"'{name:.80}' cannot be the name of one", hint)])
    return name


def _change(
    connection: sa.Connection, name: str, artifact_id: str | None, action: str,
    expected: str | None, by: str | None, note: str, *, before: Any = ANY,
) -> None:  # fmt: skip
    """The next revision of a name, within a transaction that from here on holds its row."""
    _insert_new(connection, name)
    row = _newest(connection, name, lock=True)
    current = row.artifact_id
    if expected not in (ANY, current):
        raise Conflict(
            f"'{name}' stands for {current[:12] if current else 'nothing'}, "
            f"not for {expected[:12] if expected else 'nothing'}",
            where=PREFIX + name,
            hint="somebody changed it meanwhile: look again, then decide",
        )
    if current == artifact_id:
        return
    if before == ANY:
        before = row.revision if current is not None else None
    values = {"revision": row.revision + 1, "artifact_id": artifact_id}
    connection.execute(sa.update(aliases).where(aliases.c.name == name).values(values))
    who = by or f"{getpass.getuser()}@{socket.gethostname()}"
    connection.execute(
        sa.insert(alias_changes).values(
            name=name, before=before, action=action, at=now(), by=who[:200], note=note, **values
        )
    )


def _insert_new(connection: sa.Connection, name: str) -> None:
    """A row for a name that has none, so that there is one to be held."""
    from sqlalchemy.dialects import postgresql, sqlite

    insert = sqlite.insert if connection.dialect.name == "sqlite" else postgresql.insert
    values = {"name": name, "revision": 0, "artifact_id": None}
    connection.execute(insert(aliases).values(values).on_conflict_do_nothing())


def _newest(connection: sa.Connection, name: str, *, lock: bool = False) -> Any:
    """The row of a name with the revision that it would go back to; None where it never was."""
    query = sa.select(aliases).where(aliases.c.name == name)
    row = connection.execute(query.with_for_update() if lock else query).one_or_none()
    if row is None or not row.revision:
        return row
    return _revision(connection, name, row.revision)


def _revision(connection: sa.Connection, name: str, revision: int) -> Any:
    where = (alias_changes.c.name == name, alias_changes.c.revision == revision)
    return connection.execute(sa.select(alias_changes).where(*where)).one()


def _alias(connection: sa.Connection, name: str) -> Alias | None:
    row = _newest(connection, name)
    if row is None or row.artifact_id is None:
        return None
    earlier = None if row.before is None else _revision(connection, name, row.before)
    return Alias(
        name, row.artifact_id, row.revision, row.at, row.by, row.note,
        earlier.artifact_id if earlier is not None else None,
    )  # fmt: skip


def _there(connection: sa.Connection, name: str) -> Alias:
    found = _alias(connection, name)
    assert found is not None
    return found
