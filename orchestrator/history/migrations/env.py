"""Run by Alembic: applies the migrations on the connection and within the transaction that `upgrade` was given."""

from alembic import context

from orchestrator.history.database import VERSION_TABLE
from orchestrator.history.schema import METADATA

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=METADATA,
    version_table=VERSION_TABLE,
    transactional_ddl=True,  # also in SQLite, whose driver is told to leave transactions to us
)
with context.begin_transaction():
    context.run_migrations()
