"""Runs as flat rows: the columns of the view v_runs, chosen by name. What `orch runs --columns` and the export show."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import BigInteger, Boolean, Connection, Double, String, column, select, table
from sqlalchemy.types import TypeEngine

from orchestrator.history.columns import UtcDateTime
from orchestrator.history.filters import RunFilter, among, page
from orchestrator.history.models import TagRow
from orchestrator.history.render import time_json

COLUMNS: dict[str, type] = {
    "id": int,
    "name": str,
    "user": str,
    "team": str,
    "state": str,
    "reason": str,
    "priority": int,
    "submitted_at": datetime,
    "started_at": datetime,
    "finished_at": datetime,
    "took_s": float,
    "code_sha256": str,
    "code_git": str,
    "code_dirty": bool,
    "attempts": int,
    "device": str,
    "gpu": str,
    "gpus": int,
    "nodes": int,
    "leaves": int,
    "level": str,
    "outcome": str,
    "failure_kind": str,
    "neighbours": int,
    "wait_s": float,
    "samples_per_s": float,
    "step_time_s": float,
    "steps": int,
    "samples": int,
    "allocated_s": float,
    "starting_s": float,
    "productive_s": float,
    "checkpoint_s": float,
    "lost_s": float,
    "idle_s": float,
    "cost": float,
    "tags": str,
}
"""What a run can be asked for by name, with its type; nothing else reaches the database. `tags` is an object."""

_SQL: dict[type, TypeEngine[Any]] = {
    str: String(),
    int: BigInteger(),
    float: Double(),
    bool: Boolean(),
    datetime: UtcDateTime(),
}

_VIEW_NAMES = {"user": "username"}
_VIEW = table(
    "v_runs", *(column(_VIEW_NAMES.get(name, name), _SQL[kind]) for name, kind in COLUMNS.items() if name != "tags")
)


def check_columns(names: Sequence[str]) -> tuple[str, ...]:
    """The names, each once. Raises ValueError for one that there is not."""
    if not names:
        raise ValueError(f"columns: name at least one of {', '.join(COLUMNS)}")
    for name in names:
        if name not in COLUMNS:
            raise ValueError(f"columns: {name!r} is not one of {', '.join(COLUMNS)}")
    return tuple(dict.fromkeys(names))


def flat(connection: Connection, wanted: RunFilter, columns: Sequence[str]) -> list[dict[str, Any]]:
    """The runs that `wanted` describes, in its order."""
    ids = page(connection, wanted)
    rows = {row["id"]: row for row in rows_of(connection, ids, ("id", *columns))}
    return [{name: json_value(rows[run][name]) for name in columns} for run in ids]


def rows_of(connection: Connection, ids: Sequence[int], columns: Sequence[str]) -> Iterator[dict[str, Any]]:
    """These runs by id, their values as Python has them."""
    asked = [_VIEW.c[_VIEW_NAMES.get(name, name)].label(name) for name in dict.fromkeys(columns) if name != "tags"]
    tags: dict[int, dict[str, str]] = defaultdict(dict)
    if "tags" in columns:
        for tag in connection.execute(select(TagRow).where(among(connection, TagRow.run_id, ids)).order_by(TagRow.key)):
            tags[tag.run_id][tag.key] = tag.value
    question = select(_VIEW.c.id.label("_id"), *asked).where(among(connection, _VIEW.c.id, ids)).order_by(_VIEW.c.id)
    for row in connection.execute(question).mappings():
        yield {name: tags[row["_id"]] if name == "tags" else row[name] for name in columns}


def json_value(value: Any) -> Any:
    return time_json(value) if isinstance(value, datetime) else value
