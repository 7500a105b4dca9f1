"""Runs, attempts, allocations, events, nodes, tags, and the row that says who may write."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

# Written out, and not taken from models.py: a migration says what was, whatever the models become.
KEY = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
WHEN = sa.DateTime(timezone=True)

APPEND_ONLY = {
    "sqlite": [
        """CREATE TRIGGER events_no_update BEFORE UPDATE ON events
           BEGIN SELECT RAISE(ABORT, 'events are append-only'); END""",
        """CREATE TRIGGER events_no_delete BEFORE DELETE ON events
           BEGIN SELECT RAISE(ABORT, 'events are append-only'); END""",
        # INSERT OR REPLACE deletes without asking the trigger above.
        """CREATE TRIGGER events_no_replace BEFORE INSERT ON events
           WHEN EXISTS (SELECT 1 FROM events WHERE sequence = NEW.sequence)
           BEGIN SELECT RAISE(ABORT, 'events are append-only'); END""",
    ],
    "postgresql": [
        """CREATE FUNCTION events_append_only() RETURNS trigger LANGUAGE plpgsql AS
           $$ BEGIN RAISE EXCEPTION 'events are append-only'; END $$""",
        """CREATE TRIGGER events_no_change BEFORE UPDATE OR DELETE ON events
           FOR EACH ROW EXECUTE FUNCTION events_append_only()""",
        """CREATE TRIGGER events_no_truncate BEFORE TRUNCATE ON events
           FOR EACH STATEMENT EXECUTE FUNCTION events_append_only()""",
    ],
}


def upgrade() -> None:
    op.create_table(
        "control",
        sa.Column("id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("epoch", sa.BigInteger(), nullable=False),
        sa.Column("owner", sa.String(), nullable=True),
        sa.Column("claimed_at", WHEN, nullable=True),
        sa.CheckConstraint("id = 1", name="control_one_row"),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_table(
        "nodes",
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("address", sa.String(), nullable=False),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("first_seen", WHEN, nullable=False),
        sa.Column("last_seen", WHEN, nullable=False),
        sa.Column("hardware", sa.JSON(), nullable=False),
        sa.Column("versions", sa.JSON(), nullable=False),
        sa.CheckConstraint("state IN ('up', 'down')", name="nodes_state"),
        sa.PrimaryKeyConstraint("name"),
    )
    op.create_table(
        "runs",
        sa.Column("id", KEY, autoincrement=True, nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("username", sa.String(), nullable=False),
        sa.Column("team", sa.String(), nullable=True),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("reason", sa.String(), nullable=True),
        sa.Column("priority", sa.BigInteger(), nullable=False),
        sa.Column("spec", sa.JSON(), nullable=False),
        sa.Column("code_sha256", sa.String(), nullable=True),
        sa.Column("code_git", sa.String(), nullable=True),
        sa.Column("code_dirty", sa.Boolean(), nullable=True),
        sa.Column("workdir", sa.String(), nullable=False),
        sa.Column("submit_key", sa.String(), nullable=True),
        sa.Column("submitted_at", WHEN, nullable=False),
        sa.Column("queued_at", WHEN, nullable=False),
        sa.Column("started_at", WHEN, nullable=True),
        sa.Column("finished_at", WHEN, nullable=True),
        sa.Column("version", sa.BigInteger(), server_default=sa.text("1"), nullable=False),
        sa.CheckConstraint(
            "state IN ('queued', 'starting', 'running', 'stopping', 'succeeded', 'failed', 'cancelled')",
            name="runs_state",
        ),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("username", "submit_key", name="runs_one_per_key"),
        sqlite_autoincrement=True,
    )
    op.create_index("runs_by_name", "runs", ["name", "id"], unique=False)
    op.create_index("runs_by_state", "runs", ["state", "queued_at"], unique=False)
    op.create_index("runs_by_submission", "runs", ["submitted_at"], unique=False)
    op.create_index("runs_by_user", "runs", ["username", "submitted_at"], unique=False)
    op.create_table(
        "attempts",
        sa.Column("run_id", KEY, nullable=False),
        sa.Column("number", sa.BigInteger(), nullable=False),
        sa.Column("placement", sa.JSON(), nullable=False),
        sa.Column("started_at", WHEN, nullable=False),
        sa.Column("ranks_started_at", WHEN, nullable=True),
        sa.Column("ended_at", WHEN, nullable=True),
        sa.Column("outcome", sa.String(), nullable=True),
        sa.Column("failure", sa.JSON(), nullable=True),
        sa.Column("exit_codes", sa.JSON(), nullable=False),
        sa.CheckConstraint(
            "outcome IN ('succeeded', 'user_error', 'infra_error', 'preempted', 'drained', 'cancelled')",
            name="attempts_outcome",
        ),
        sa.CheckConstraint("(ended_at IS NULL) = (outcome IS NULL)", name="attempts_ended_with_outcome"),
        sa.ForeignKeyConstraint(["run_id"], ["runs.id"]),
        sa.PrimaryKeyConstraint("run_id", "number"),
    )
    op.create_index(
        "attempts_one_live",
        "attempts",
        ["run_id"],
        unique=True,
        sqlite_where=sa.text("ended_at IS NULL"),
        postgresql_where=sa.text("ended_at IS NULL"),
    )
    op.create_table(
        "events",
        sa.Column("sequence", KEY, autoincrement=True, nullable=False),
        sa.Column("run_id", KEY, nullable=False),
        sa.Column("at", WHEN, nullable=False),
        sa.Column("event", sa.String(), nullable=False),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("reason", sa.String(), nullable=True),
        sa.Column("attempt", sa.BigInteger(), nullable=True),
        sa.Column("by", sa.String(), nullable=True),
        sa.CheckConstraint(
            "event IN ('submitted', 'placed', 'started', 'succeeded', 'failed', 'requeued',"
            " 'cancel_asked', 'stopped', 'retry_asked')",
            name="events_event",
        ),
        sa.CheckConstraint(
            "state IN ('queued', 'starting', 'running', 'stopping', 'succeeded', 'failed', 'cancelled')",
            name="events_state",
        ),
        sa.ForeignKeyConstraint(["run_id"], ["runs.id"]),
        sa.PrimaryKeyConstraint("sequence"),
        sqlite_autoincrement=True,
    )
    op.create_index("events_by_run", "events", ["run_id", "sequence"], unique=False)
    op.create_table(
        "tags",
        sa.Column("run_id", KEY, nullable=False),
        sa.Column("key", sa.String(), nullable=False),
        sa.Column("value", sa.String(), nullable=False),
        sa.ForeignKeyConstraint(["run_id"], ["runs.id"]),
        sa.PrimaryKeyConstraint("run_id", "key"),
    )
    op.create_index("tags_by_value", "tags", ["key", "value", "run_id"], unique=False)
    op.create_table(
        "allocations",
        sa.Column("run_id", KEY, nullable=False),
        sa.Column("attempt", sa.BigInteger(), nullable=False),
        sa.Column("node", sa.String(), nullable=False),
        sa.Column("gpu", sa.BigInteger(), nullable=False),
        sa.Column("since", WHEN, nullable=False),
        sa.Column("released_at", WHEN, nullable=True),
        sa.Column("fenced_until", WHEN, nullable=True),
        sa.ForeignKeyConstraint(["run_id", "attempt"], ["attempts.run_id", "attempts.number"]),
        sa.PrimaryKeyConstraint("run_id", "attempt", "node", "gpu"),
    )
    op.create_index(
        "allocations_one_holder",
        "allocations",
        ["node", "gpu"],
        unique=True,
        sqlite_where=sa.text("released_at IS NULL"),
        postgresql_where=sa.text("released_at IS NULL"),
    )
    for statement in APPEND_ONLY[op.get_bind().dialect.name]:
        op.execute(statement)
    op.execute("INSERT INTO control (id, epoch) VALUES (1, 0)")
