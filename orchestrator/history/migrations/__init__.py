"""How the database came to its shape. Importing this imports Alembic: only for a database that needs an upgrade."""

from __future__ import annotations

import threading
from pathlib import Path

from alembic import command
from alembic.config import Config
from sqlalchemy import Connection

# Alembic keeps the migration under way in its module's globals: two threads would apply theirs on one connection.
_ONE_AT_A_TIME = threading.Lock()


def config(connection: Connection | None = None) -> Config:
    """Alembic's configuration, without a file of its own."""
    made = Config()
    made.set_main_option("script_location", str(Path(__file__).parent).replace("%", "%%"))
    made.set_main_option("path_separator", "os")
    made.attributes["connection"] = connection
    return made


def upgrade(connection: Connection, revision: str = "head") -> None:
    """Applies what is missing, within the transaction that `connection` is in."""
    with _ONE_AT_A_TIME:
        command.upgrade(config(connection), revision)
