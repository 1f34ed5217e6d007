"""The tables of clicks, beside those of runs. Times are seconds since 1970."""

from __future__ import annotations

from pathlib import Path

import sqlalchemy as sa

from luthier.runs.database import Database

#: The newest migration; see migrations/versions. A test holds the two together.
HEAD = "0002"
VERSION_TABLE = "click_version"

#: A batch goes from left to right; a training that failed gives its batch back.
LEGAL = frozenset(
    {("released", "fine_tuning"), ("fine_tuning", "released"), ("fine_tuning", "archived"),
     ("released", "archived")}
)  # fmt: skip
STATES = ("collecting", "released", "fine_tuning", "archived")

metadata = sa.MetaData()

batches = sa.Table(
    "click_batches",
    metadata,
    sa.Column("id", sa.String(32), primary_key=True),
    sa.Column("state", sa.String(16), nullable=False),  # one of STATES; one collecting at most
    sa.Column("release_id", sa.String(200), unique=True),  # idempotency
    sa.Column("created_at", sa.Double, nullable=False),
    sa.Column("released_at", sa.Double),
)

sessions = sa.Table(
    "click_sessions",
    metadata,
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("session_id", sa.String(200), nullable=False, unique=True),
    sa.Column("batch_id", sa.String(32), sa.ForeignKey("click_batches.id"), nullable=False),
    sa.Column("search_query", sa.Text, nullable=False),
    sa.Column("search_results", sa.Text, nullable=False),  # JSON
    sa.Column("search_meta", sa.Text),  # JSON
    sa.Column("user_id", sa.String(200)),
    sa.Column("created_at", sa.Double, nullable=False),
    sa.Column("is_irrelevant", sa.Boolean, nullable=False),
)

events = sa.Table(
    "click_events",
    metadata,
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("session_number", sa.Integer, sa.ForeignKey("click_sessions.number"), nullable=False),
    sa.Column("event_id", sa.String(200), nullable=False),
    sa.Column("object_id", sa.Text, nullable=False),
    sa.Column("event_type", sa.String(200), nullable=False),
    sa.Column("created_at", sa.Double, nullable=False),
    sa.Column("meta", sa.Text),  # JSON
)

#: What a task of fine-tuning can be. Those of OPEN hold their model and batch.
TASK_STATUSES = ("pending", "processing", "done", "canceled", "failed", "refused")
OPEN = ("pending", "processing")

#: One processing task at most a model, and a batch: unique indexes guard it.
tasks = sa.Table(
    "click_tasks",
    metadata,
    sa.Column("id", sa.String(32), primary_key=True),
    sa.Column("request", sa.Text, nullable=False),  # JSON, as it came
    sa.Column("idempotency_key", sa.String(200), unique=True),
    sa.Column("embedding_model_id", sa.Text, nullable=False),
    sa.Column("model_key", sa.String(500), nullable=False),  # what that stands for
    sa.Column("batch_id", sa.String(32), sa.ForeignKey("click_batches.id")),
    sa.Column("status", sa.String(16), nullable=False),  # one of TASK_STATUSES
    sa.Column("detail", sa.Text, nullable=False),  # why it failed or was refused
    sa.Column("result", sa.Text),  # JSON
    sa.Column("generation", sa.Integer, nullable=False),  # grows with every restart
    sa.Column("epoch", sa.Integer, nullable=False),  # of the lease; grows with every claim
    sa.Column("holder", sa.Text),  # the process that holds the lease: host|boot|pid|start
    sa.Column("lease_expires_at", sa.Double),
    sa.Column("cancel_requested_at", sa.Double),
    sa.Column("created_at", sa.Double, nullable=False),
    sa.Column("started_at", sa.Double),
    sa.Column("finished_at", sa.Double),
    sa.Column("updated_at", sa.Double, nullable=False),
)


def migrate(database: Database) -> None:
    """Bring the tables up to date; one process does, the others wait and find it done."""
    import alembic.command
    import alembic.config

    with database.read() as connection:
        if _version(connection) == HEAD:
            return
    config = alembic.config.Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    config.set_main_option("path_separator", "os")
    with database.write() as connection:
        if not database.is_sqlite:
            connection.execute(sa.text("SELECT pg_advisory_xact_lock(7262082)"))
        if _version(connection) == HEAD:
            return
        config.attributes["connection"] = connection
        alembic.command.upgrade(config, "head")


def _version(connection: sa.Connection) -> str | None:
    if not sa.inspect(connection).has_table(VERSION_TABLE):
        return None
    found = connection.execute(sa.text(f"SELECT version_num FROM {VERSION_TABLE}")).scalar()
    return None if found is None else str(found)
