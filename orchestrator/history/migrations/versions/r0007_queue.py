"""Arrays, dependencies, what a wait was for, why a live attempt is told to end, and two more kinds of event."""

import re

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"

KEY = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
WHEN = sa.DateTime(timezone=True)
NEW_EVENTS = ("stop_asked", "changed")


def upgrade() -> None:
    op.create_table(
        "arrays",
        sa.Column("id", KEY, autoincrement=False, nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("username", sa.String(), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("run_limit", sa.BigInteger(), nullable=True),
        sa.Column("spec", sa.JSON(), nullable=False),
        sa.ForeignKeyConstraint(["id"], ["runs.id"]),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("arrays_by_name", "arrays", ["name", "id"], unique=False)
    op.create_table(
        "dependencies",
        sa.Column("run_id", KEY, nullable=False),
        sa.Column("position", sa.BigInteger(), nullable=False),
        sa.Column("first_id", sa.BigInteger(), nullable=False),
        sa.Column("last_id", sa.BigInteger(), nullable=False),
        sa.Column("word", sa.String(), nullable=False),
        sa.ForeignKeyConstraint(["run_id"], ["runs.id"]),
        sa.PrimaryKeyConstraint("run_id", "position"),
    )
    op.create_table(
        "waits",
        sa.Column("run_id", KEY, nullable=False),
        sa.Column("number", sa.BigInteger(), nullable=False),
        sa.Column("since", WHEN, nullable=False),
        sa.Column("until", WHEN, nullable=False),
        sa.Column("summary", sa.JSON(), nullable=False),
        sa.ForeignKeyConstraint(["run_id"], ["runs.id"]),
        sa.PrimaryKeyConstraint("run_id", "number"),
    )
    op.add_column("attempts", sa.Column("stop", sa.JSON(), nullable=True))
    _widen_events()


def _widen_events() -> None:
    """More words for `event`, beside those that are there by now."""
    bind = op.get_bind()
    checks = {one["name"]: one["sqltext"] for one in sa.inspect(bind).get_check_constraints("events")}
    words = list(dict.fromkeys([*re.findall(r"'([a-z_]+)'", checks["events_event"]), *NEW_EVENTS]))
    listed = ", ".join(f"'{word}'" for word in words)
    if bind.dialect.name == "postgresql":
        op.drop_constraint("events_event", "events", type_="check")
        op.create_check_constraint("events_event", "events", f"event IN ({listed})")
        return
    # SQLite changes no constraint of a table that is there: the table is made anew.
    kept = bind.exec_driver_sql(
        "SELECT sql FROM sqlite_master WHERE tbl_name = 'events' AND type IN ('index', 'trigger')"
    )
    again = [row.sql for row in kept if row.sql]
    states = re.findall(r"'([a-z_]+)'", checks["events_state"])
    op.create_table(
        "events_wider",
        sa.Column("sequence", KEY, autoincrement=True, nullable=False),
        sa.Column("run_id", KEY, nullable=False),
        sa.Column("at", WHEN, nullable=False),
        sa.Column("event", sa.String(), nullable=False),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("reason", sa.String(), nullable=True),
        sa.Column("attempt", sa.BigInteger(), nullable=True),
        sa.Column("by", sa.String(), nullable=True),
        sa.CheckConstraint(f"event IN ({listed})", name="events_event"),
        sa.CheckConstraint(f"state IN ({', '.join(repr(state) for state in states)})", name="events_state"),
        sa.ForeignKeyConstraint(["run_id"], ["runs.id"]),
        sa.PrimaryKeyConstraint("sequence"),
        sqlite_autoincrement=True,
    )
    op.execute('INSERT INTO events_wider SELECT sequence, run_id, at, event, state, reason, attempt, "by" FROM events')
    op.drop_table("events")
    op.rename_table("events_wider", "events")
    for statement in again:
        op.execute(statement)
