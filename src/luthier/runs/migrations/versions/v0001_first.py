"""The first tables, and the triggers that guard every transition of a run.

Checks at the end of each transition are written in SQL, so that neither a bug of ours nor
someone with a database shell can make a run finish twice or rise from FINISHED.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

#: A condition under which an update of a run is refused, and what the database says.
UPDATE_RULES = [
    (
        "NEW.status <> OLD.status AND (OLD.status || '>' || NEW.status) NOT IN ("
        "'CREATED>STARTED', 'CREATED>CANCELLED', 'STARTED>CREATED', 'STARTED>FINISHED', "
        "'STARTED>FAILED', 'STARTED>CANCELLED', 'FAILED>CREATED', 'CANCELLED>CREATED')",
        "illegal transition of a run",
    ),
    (
        "NEW.epoch <> OLD.epoch + (CASE WHEN OLD.status = 'CREATED' AND NEW.status = 'STARTED' "
        "THEN 1 ELSE 0 END)",
        "illegal transition of a run: its epoch grows with a claim and only then",
    ),
    (
        "NEW.id <> OLD.id OR NEW.spec <> OLD.spec OR NEW.spec_id <> OLD.spec_id "
        "OR coalesce(NEW.key, '') <> coalesce(OLD.key, '') OR NEW.created_at <> OLD.created_at",
        "illegal transition of a run: what was submitted cannot be changed",
    ),
    (
        "OLD.status = 'FINISHED' AND coalesce(NEW.artifact_id, '') <> OLD.artifact_id",
        "illegal transition of a run: the result of a finished run cannot be changed",
    ),
    (
        "OLD.cancel_requested_at IS NOT NULL AND NEW.cancel_requested_at IS NULL "
        "AND OLD.status = 'STARTED'",
        "illegal transition of a run: a cancellation cannot be taken back",
    ),
]
INSERT_RULE = (
    "NEW.status <> 'CREATED' OR NEW.epoch <> 0",
    "illegal transition of a run: a new run is CREATED, with epoch 0",
)
DELETE_RULE = ("OLD.status = 'STARTED'", "illegal transition of a run: it is at work")
EVENT_RULE = ("1 = 1", "illegal change of an event: history is only added to")


def upgrade() -> None:
    """Make the tables and their guards."""
    op.create_table(
        "experiments",
        sa.Column("id", sa.String(32), primary_key=True),
        sa.Column("name", sa.String(200), nullable=False, unique=True),
        sa.Column("description", sa.Text, nullable=False),
        sa.Column("status", sa.String(16), nullable=False),
        sa.Column("created_at", sa.Double, nullable=False),
        sa.CheckConstraint("status IN ('ACTIVE')", name="experiment_status"),
    )
    _create_runs()
    op.create_index("runs_queue", "runs", ["status", "crashes", "created_at"])
    op.create_index("runs_parent", "runs", ["parent_id"])
    op.create_table(
        "events",
        sa.Column(
            "run_id", sa.String(32), sa.ForeignKey("runs.id", ondelete="CASCADE"), primary_key=True
        ),
        sa.Column("seq", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("at", sa.Double, nullable=False),
        sa.Column("epoch", sa.Integer, nullable=False),
        sa.Column("kind", sa.String(32), nullable=False),
        sa.Column("data", sa.Text, nullable=False),
    )
    op.create_table(
        "workers",
        sa.Column("id", sa.String(32), primary_key=True),
        sa.Column("process", sa.Text, nullable=False),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("devices", sa.Text, nullable=False),
        sa.Column("registered_at", sa.Double, nullable=False),
        sa.Column("expires_at", sa.Double, nullable=False),
    )
    guard = _sqlite_guard if op.get_bind().dialect.name == "sqlite" else _postgresql_guard
    guard("runs_update", "runs", "UPDATE", UPDATE_RULES)
    guard("runs_insert", "runs", "INSERT", [INSERT_RULE])
    guard("runs_delete", "runs", "DELETE", [DELETE_RULE])
    guard("events_update", "events", "UPDATE", [EVENT_RULE])


def _create_runs() -> None:
    op.create_table(
        "runs",
        sa.Column("id", sa.String(32), primary_key=True),
        sa.Column("experiment_id", sa.String(32), sa.ForeignKey("experiments.id"), nullable=False),
        sa.Column("name", sa.String(200), nullable=False),
        sa.Column("description", sa.Text, nullable=False),
        sa.Column("spec", sa.Text, nullable=False),
        sa.Column("spec_id", sa.String(64), nullable=False),
        sa.Column("key", sa.String(200), unique=True),
        sa.Column("device", sa.String(32), nullable=False),
        sa.Column("public", sa.Boolean, nullable=False),
        sa.Column("parent_id", sa.String(32), sa.ForeignKey("runs.id", ondelete="CASCADE")),
        sa.Column("status", sa.String(16), nullable=False),
        sa.Column("reason", sa.String(64)),
        sa.Column("details", sa.Text, nullable=False),
        sa.Column("epoch", sa.Integer, nullable=False),
        sa.Column("attempt", sa.Integer, nullable=False),
        sa.Column("crashes", sa.Integer, nullable=False),
        sa.Column("generation", sa.Integer, nullable=False),
        sa.Column("checkpoint_step", sa.Integer),
        sa.Column("worker_id", sa.String(32)),
        sa.Column("holder", sa.Text),
        sa.Column("lease_expires_at", sa.Double),
        sa.Column("cancel_requested_at", sa.Double),
        sa.Column("artifact_id", sa.String(64)),
        sa.Column("metrics", sa.Text),
        sa.Column("created_at", sa.Double, nullable=False),
        sa.Column("started_at", sa.Double),
        sa.Column("finished_at", sa.Double),
        sa.Column("updated_at", sa.Double, nullable=False),
        sa.UniqueConstraint("experiment_id", "name", name="run_name"),
        sa.CheckConstraint(
            "status IN ('CREATED', 'STARTED', 'FINISHED', 'FAILED', 'CANCELLED')",
            name="run_status",
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
    )


def _sqlite_guard(name: str, table: str, verb: str, rules: list[tuple[str, str]]) -> None:
    for number, (condition, message) in enumerate(rules):
        op.execute(
            f"CREATE TRIGGER {name}_{number} BEFORE {verb} ON {table} WHEN {condition} "
            f"BEGIN SELECT RAISE(ABORT, '{message}'); END"
        )


def _postgresql_guard(name: str, table: str, verb: str, rules: list[tuple[str, str]]) -> None:
    checks = " ".join(
        f"IF {condition} THEN RAISE EXCEPTION '{message}'; END IF;" for condition, message in rules
    )
    kept = "OLD" if verb == "DELETE" else "NEW"
    op.execute(
        f"CREATE FUNCTION {name}() RETURNS trigger LANGUAGE plpgsql AS "
        f"$$ BEGIN {checks} RETURN {kept}; END $$"
    )
    op.execute(
        f"CREATE TRIGGER {name} BEFORE {verb} ON {table} FOR EACH ROW EXECUTE FUNCTION {name}()"
    )
