"""The tables, and what the database itself guards. Times are seconds since 1970, by its clock."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.functions import FunctionElement

#: The newest migration; see migrations/versions. A test holds the two together.
HEAD = "0003"

STATUSES = ("CREATED", "STARTED", "FINISHED", "FAILED", "CANCELLED")
TERMINAL = ("FINISHED", "FAILED", "CANCELLED")

#: What a run may do; the database refuses everything else, whoever asks.
LEGAL = frozenset(
    {
        ("CREATED", "STARTED"),  # claimed
        ("CREATED", "CANCELLED"),
        ("STARTED", "CREATED"),  # interrupted, or its worker died
        ("STARTED", "FINISHED"),
        ("STARTED", "FAILED"),
        ("STARTED", "CANCELLED"),
        ("FAILED", "CREATED"),  # resumed or retried
        ("CANCELLED", "CREATED"),
    }
)

metadata = sa.MetaData()

experiments = sa.Table(
    "experiments",
    metadata,
    sa.Column("id", sa.String(32), primary_key=True),
    sa.Column("name", sa.String(200), nullable=False, unique=True),
    sa.Column("description", sa.Text, nullable=False),
    sa.Column("status", sa.String(16), nullable=False),
    sa.Column("created_at", sa.Double, nullable=False),
    sa.CheckConstraint("status IN ('ACTIVE')", name="experiment_status"),
)

runs = sa.Table(
    "runs",
    metadata,
    sa.Column("id", sa.String(32), primary_key=True),
    sa.Column("experiment_id", sa.ForeignKey("experiments.id"), nullable=False),
    sa.Column("name", sa.String(200), nullable=False),
    sa.Column("description", sa.Text, nullable=False),
    sa.Column("spec", sa.Text, nullable=False),  # JSON, in full
    sa.Column("spec_id", sa.String(64), nullable=False),
    sa.Column("key", sa.String(200), unique=True),  # idempotency
    sa.Column("device", sa.String(32), nullable=False),  # auto, cpu, cuda, mps
    sa.Column("public", sa.Boolean, nullable=False),
    sa.Column("parent_id", sa.ForeignKey("runs.id", ondelete="CASCADE")),
    sa.Column("status", sa.String(16), nullable=False),
    sa.Column("reason", sa.String(64)),  # why: interrupted, quarantined, disk_full, user, …
    sa.Column("details", sa.Text, nullable=False),
    sa.Column("epoch", sa.Integer, nullable=False),  # of the lease; grows with every claim
    sa.Column("attempt", sa.Integer, nullable=False),
    sa.Column("crashes", sa.Integer, nullable=False),  # in a row, without a new checkpoint
    sa.Column("generation", sa.Integer, nullable=False),  # grows with every retry from the start
    sa.Column("checkpoint_step", sa.Integer),
    sa.Column("worker_id", sa.String(32)),
    sa.Column("holder", sa.Text),  # the process that holds the lease: host|boot|pid|start
    sa.Column("lease_expires_at", sa.Double),
    sa.Column("cancel_requested_at", sa.Double),
    sa.Column("artifact_id", sa.String(64)),
    sa.Column("metrics", sa.Text),  # JSON
    sa.Column("created_at", sa.Double, nullable=False),
    sa.Column("started_at", sa.Double),
    sa.Column("finished_at", sa.Double),
    sa.Column("updated_at", sa.Double, nullable=False),
    sa.Column("kind", sa.String(16), nullable=False, server_default="training"),  # or search
    sa.Column("pause_after", sa.Integer),  # evaluations; then a trial waits to be let go on
    sa.UniqueConstraint("experiment_id", "name", name="run_name"),
    sa.CheckConstraint(
        "status IN ('CREATED', 'STARTED', 'FINISHED', 'FAILED', 'CANCELLED')", name="run_status"
    ),
    sa.CheckConstraint(
        "(status = 'STARTED') = (lease_expires_at IS NOT NULL AND holder IS NOT NULL)",
        name="run_lease",
    ),
    sa.CheckConstraint(
        "(status IN ('FINISHED', 'FAILED', 'CANCELLED')) = (finished_at IS NOT NULL)",
        name="run_end",
    ),
    sa.CheckConstraint("status <> 'FINISHED' OR artifact_id IS NOT NULL", name="run_artifact"),
    sa.CheckConstraint(
        "cancel_requested_at IS NULL OR status IN ('STARTED', 'CANCELLED')", name="run_cancel"
    ),
    sa.Index("runs_queue", "status", "crashes", "created_at"),
    sa.Index("runs_parent", "parent_id"),
)

events = sa.Table(
    "events",
    metadata,
    sa.Column("run_id", sa.ForeignKey("runs.id", ondelete="CASCADE"), primary_key=True),
    sa.Column("seq", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("at", sa.Double, nullable=False),
    sa.Column("epoch", sa.Integer, nullable=False),
    sa.Column("kind", sa.String(32), nullable=False),
    sa.Column("data", sa.Text, nullable=False),  # JSON
)

workers = sa.Table(
    "workers",
    metadata,
    sa.Column("id", sa.String(32), primary_key=True),
    sa.Column("process", sa.Text, nullable=False),  # host|boot|pid|start
    sa.Column("kind", sa.String(16), nullable=False),  # embedded or standing
    sa.Column("devices", sa.Text, nullable=False),  # JSON list
    sa.Column("registered_at", sa.Double, nullable=False),
    sa.Column("expires_at", sa.Double, nullable=False),
)

#: Names for artifacts. A row stays when its name is taken away: its revision never goes back.
aliases = sa.Table(
    "aliases",
    metadata,
    sa.Column("name", sa.String(64), primary_key=True),
    sa.Column("revision", sa.Integer, nullable=False),  # the newest of its changes
    sa.Column("artifact_id", sa.String(64)),
)

alias_changes = sa.Table(
    "alias_changes",
    metadata,
    sa.Column("name", sa.ForeignKey("aliases.name"), primary_key=True),
    sa.Column("revision", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("artifact_id", sa.String(64)),  # none: the name was taken away
    sa.Column("before", sa.Integer),  # the revision that a rollback goes to
    sa.Column("action", sa.String(16), nullable=False),
    sa.Column("at", sa.Double, nullable=False),
    sa.Column("by", sa.String(200), nullable=False),
    sa.Column("note", sa.Text, nullable=False),
    sa.CheckConstraint(
        "action IN ('set', 'promote', 'rollback', 'follow', 'remove')", name="alias_action"
    ),
)


class now(FunctionElement[float]):
    """Seconds since 1970 by the database's clock: one clock, however many machines."""

    type = sa.Double()
    inherit_cache = True


@compiles(now, "sqlite")
def _sqlite_now(element: Any, compiler: Any, **kw: Any) -> str:
    # 2440587.5 is the Julian day of 1970; unixepoch('subsec') needs SQLite 3.42.
    return "((julianday('now') - 2440587.5) * 86400.0)"


@compiles(now, "postgresql")
def _postgresql_now(element: Any, compiler: Any, **kw: Any) -> str:
    # Not now(), which stands still within a transaction.
    return "CAST(extract(epoch from clock_timestamp()) AS double precision)"
