"""A row in place of the one of its key: the words for that are each database's own."""

from __future__ import annotations

from functools import cache
from typing import Any

from sqlalchemy.dialects.postgresql import insert as postgresql_insert
from sqlalchemy.dialects.sqlite import insert as sqlite_insert

from orchestrator.history.columns import Base


def insert_or(dialect: str, table: type[Base]) -> Any:
    """An insert that can be told what to do where the key is there already."""
    return (postgresql_insert if dialect == "postgresql" else sqlite_insert)(table)


@cache
def replacing(dialect: str, table: type[Base], *keeps: str) -> Any:
    """A whole row in place of the one of its key, of which the columns `keeps` stay as they are."""
    statement = insert_or(dialect, table)
    key = [column.name for column in table.__table__.primary_key]
    stay = {*key, *keeps}
    new = {
        column.name: statement.excluded[column.name] for column in table.__table__.columns if column.name not in stay
    }
    return statement.on_conflict_do_update(index_elements=key, set_=new)
