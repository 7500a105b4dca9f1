"""The versions that an attempt ran with, by node."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.add_column("attempts", sa.Column("environment", sa.JSON(), nullable=True))
