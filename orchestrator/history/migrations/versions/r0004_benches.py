"""What links were measured to carry."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"

KEY = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    op.create_table(
        "benches",
        sa.Column("run_id", KEY, nullable=False),
        sa.Column("attempt", sa.BigInteger(), nullable=False),
        sa.Column("backend", sa.String(), nullable=False),
        sa.Column("collective", sa.String(), nullable=False),
        sa.Column("bytes", sa.BigInteger(), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("link", sa.String(), nullable=False),
        sa.Column("model", sa.String(), nullable=False),
        sa.Column("level", sa.String(), nullable=False),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("ranks", sa.BigInteger(), nullable=False),
        sa.Column("time_us", sa.Double(), nullable=False),
        sa.Column("algbw", sa.Double(), nullable=False),
        sa.Column("busbw", sa.Double(), nullable=False),
        sa.Column("predicted", sa.Double(), nullable=True),
        sa.Column("modelled", sa.Double(), nullable=True),
        sa.Column("details", sa.JSON(), nullable=False),
        sa.ForeignKeyConstraint(["run_id", "attempt"], ["attempts.run_id", "attempts.number"]),
        sa.PrimaryKeyConstraint("run_id", "attempt", "backend", "collective", "bytes"),
    )
    op.create_index("benches_by_link", "benches", ["link", "at"], unique=False)
    op.create_index("benches_by_time", "benches", ["at"], unique=False)
