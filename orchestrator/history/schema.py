"""What the database looks like as a whole: every table, and the migration that brings one to it.

The tables are made by migrations/, which must say the same as the classes in the modules below (a test compares the two).
"""

from __future__ import annotations

from orchestrator.history import measured_models, models, summary_models  # noqa: F401 - each tells METADATA of its tables
from orchestrator.history.columns import Base

SCHEMA = "0009"
"""The newest migration. Revisions are numbers, so that newer and older can be told apart without importing Alembic."""

METADATA = Base.metadata
TABLES = tuple(METADATA.tables)
"""Their names."""
