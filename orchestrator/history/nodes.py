"""Nodes in the history: what was decided about each, what happened to it, and what became of the attempts there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Connection, and_, case, delete, func, insert, select, update

from orchestrator.health.marks import Drain, Mark, Quarantine
from orchestrator.history.models import AttemptRow, NodeEventRow, NodeMarkRow, NodeRow
from orchestrator.history.summaries import count_node_events
from orchestrator.history.summary_models import AttemptNodeRow
from orchestrator.history.upsert import replacing
from orchestrator.scheduling.lifecycle import Outcome
from orchestrator.scheduling.run import NodeRecord


@dataclass(frozen=True)
class NodeEvent:
    """One row of a node's history."""

    at: datetime
    node: str
    what: str
    """One of models.NODE_EVENTS."""
    by: str | None = None
    reason: str | None = None


@dataclass(frozen=True)
class Broken:
    """An attempt that broke through infrastructure."""

    run: int
    ended_at: datetime
    failure: Mapping[str, Any]
    """As `attempts.failure` has it."""


def upsert(connection: Connection, found: Sequence[NodeRecord]) -> None:
    """Records what is known of nodes now; when each was first seen stays as it was."""
    connection.execute(replacing(connection.dialect.name, NodeRow, "first_seen"), [vars(node) for node in found])


# -- marks -------------------------------------------------------------------------------------------------------------


def set_mark(connection: Connection, node: str, mark: Mark) -> None:
    values = {
        "drain": None if mark.drain is None else _plain(mark.drain),
        "quarantine": None if mark.quarantine is None else _plain(mark.quarantine),
        "forgiven_at": mark.forgiven_at,
    }
    _upsert(connection, node, values)


def set_past(connection: Connection, node: str, past: Mapping[str, Any]) -> None:
    _upsert(connection, node, {"past": dict(past)})


def _upsert(connection: Connection, node: str, values: Mapping[str, Any]) -> None:
    if not connection.execute(update(NodeMarkRow).where(NodeMarkRow.node == node).values(**values)).rowcount:
        connection.execute(insert(NodeMarkRow).values(node=node, **values))


def marks(connection: Connection) -> tuple[dict[str, Mark], dict[str, dict[str, Any]]]:
    """By node: what was decided about it, and what its health is judged by."""
    decided, pasts = {}, {}
    for row in connection.execute(select(NodeMarkRow)):
        drain = None if row.drain is None else Drain(**_timed(row.drain, "at"))
        quarantine = None if row.quarantine is None else Quarantine(**_timed(row.quarantine, "since", "until"))
        decided[row.node] = Mark(drain, quarantine, row.forgiven_at)
        if row.past is not None:
            pasts[row.node] = row.past
    return decided, pasts


def _plain(value: Drain | Quarantine) -> dict[str, Any]:
    return {key: one.isoformat() if isinstance(one, datetime) else one for key, one in vars(value).items()}


def _timed(data: Mapping[str, Any], *times: str) -> dict[str, Any]:
    return dict(data) | {key: datetime.fromisoformat(data[key]) for key in times if data[key] is not None}


# -- what happened -----------------------------------------------------------------------------------------------------


def add_events(connection: Connection, events: Sequence[NodeEvent]) -> None:
    """Tells them in their nodes' history, and counts those that are news in the sums over days."""
    if not events:
        return
    news = []
    latest: dict[tuple[str, tuple[str, ...]], str | None] = {}
    for event in events:
        kind = next((kind for kind in _LASTING if event.what in kind), None)
        if kind is not None:
            if (event.node, kind) not in latest:
                latest[event.node, kind] = _latest(connection, event.node, kind)
            if latest[event.node, kind] == event.what:
                continue
            latest[event.node, kind] = event.what
        news.append((event.at, event.node, event.what))
    connection.execute(insert(NodeEventRow), [vars(event) for event in events])
    count_node_events(connection, news)


_LASTING = (("drained", "undrained"), ("degraded", "fatal", "recovered"))
"""What holds until the next of its kind. A controller that starts tells anew what still does, which is no news."""


def _latest(connection: Connection, node: str, kind: Sequence[str]) -> str | None:
    """The word of the node's newest event of a kind."""
    there = select(NodeEventRow.what).where(NodeEventRow.node == node, NodeEventRow.what.in_(kind))
    return connection.execute(there.order_by(NodeEventRow.id.desc()).limit(1)).scalar()


def expire_events(connection: Connection, before: datetime, most: int) -> int:
    """Deletes up to `most` events from before a time, the oldest first; gives how many.

    The newest of each kind that lasts stays: it says since when a node is as it is.
    """
    kind = case(*((NodeEventRow.what.in_(words), number) for number, words in enumerate(_LASTING)))
    holds = select(func.max(NodeEventRow.id)).where(kind.is_not(None)).group_by(NodeEventRow.node, kind)
    old = (
        select(NodeEventRow.id)
        .where(NodeEventRow.at < before, NodeEventRow.id.not_in(holds))
        .order_by(NodeEventRow.id)
        .limit(most)
    )
    return connection.execute(delete(NodeEventRow).where(NodeEventRow.id.in_(old))).rowcount


def events(connection: Connection, names: Sequence[str], limit: int) -> list[NodeEvent]:
    """The newest `limit` events, oldest first; of these nodes, of all where none is named."""
    question = select(NodeEventRow).order_by(NodeEventRow.id.desc()).limit(limit)
    if names:
        question = question.where(NodeEventRow.node.in_(names))
    rows = connection.execute(question).all()
    return [NodeEvent(row.at, row.node, row.what, row.by, row.reason) for row in reversed(rows)]


# -- what became of attempts -------------------------------------------------------------------------------------------


def ended(connection: Connection, since: datetime, later: Mapping[str, datetime]) -> dict[str, int]:
    """By node: the attempts with a part there that ended since then; of nodes in `later`, since their own time."""

    def count(start: datetime, which: ColumnElement[bool]) -> dict[str, int]:
        rows = select(AttemptNodeRow.node, func.count()).where(which, AttemptNodeRow.ended_at >= start)
        return {node: ended for node, ended in connection.execute(rows.group_by(AttemptNodeRow.node))}  # noqa: C416 - rows

    # By node, so that the index over node and end serves, and not all that ever ended is read.
    found = count(since, AttemptNodeRow.node.in_(select(NodeRow.name)))
    for name, own in later.items():
        found[name] = count(max(since, own), AttemptNodeRow.node == name).get(name, 0)
    return found


def broken(connection: Connection, since: datetime) -> list[Broken]:
    """The attempts that broke through infrastructure since then."""
    parts = (
        select(AttemptNodeRow.run_id, AttemptNodeRow.attempt)
        .where(
            AttemptNodeRow.node.in_(select(NodeRow.name)),
            AttemptNodeRow.ended_at >= since,
            AttemptNodeRow.outcome == Outcome.INFRA_ERROR.value,
        )
        .distinct()
        .subquery()
    )
    question = (
        select(AttemptRow.run_id, AttemptRow.ended_at, AttemptRow.failure)
        .join(parts, and_(AttemptRow.run_id == parts.c.run_id, AttemptRow.number == parts.c.attempt))
        .where(AttemptRow.failure.is_not(None))
    )
    return [Broken(row.run_id, row.ended_at, row.failure) for row in connection.execute(question)]
