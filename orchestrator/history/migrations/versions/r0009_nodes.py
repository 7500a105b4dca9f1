"""What was decided about nodes: drained, quarantined, on probation; and what happened to each."""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"

KEY = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
WHEN = sa.DateTime(timezone=True)
EVENTS = (
    "drained", "undrained", "quarantined", "probation", "cleared", "proposed", "fatal", "degraded", "recovered",
)  # fmt: skip


def upgrade() -> None:
    op.create_table(
        "node_marks",
        sa.Column("node", sa.String(), nullable=False),
        sa.Column("drain", sa.JSON(), nullable=True),
        sa.Column("quarantine", sa.JSON(), nullable=True),
        sa.Column("forgiven_at", WHEN, nullable=True),
        sa.Column("past", sa.JSON(), nullable=True),
        sa.PrimaryKeyConstraint("node"),
    )
    op.create_table(
        "node_events",
        sa.Column("id", KEY, autoincrement=True, nullable=False),
        sa.Column("at", WHEN, nullable=False),
        sa.Column("node", sa.String(), nullable=False),
        sa.Column("what", sa.String(), nullable=False),
        sa.Column("by", sa.String(), nullable=True),
        sa.Column("reason", sa.String(), nullable=True),
        sa.CheckConstraint(f"what IN ({', '.join(map(repr, EVENTS))})", name="node_events_what"),
        sa.PrimaryKeyConstraint("id"),
        sqlite_autoincrement=True,
    )
    op.create_index("node_events_by_node", "node_events", ["node", "id"], unique=False)
