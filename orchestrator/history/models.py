"""What was asked, decided and done: one class for each table of runs and nodes, with the rules that the database enforces.

These classes describe the schema; statements are built from them and run on plain connections, without the ORM's
session: a row is turned into one of scheduling/run.py's frozen values at once and never leaves this package.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import (
    JSON,
    CheckConstraint,
    ForeignKey,
    Index,
    PrimaryKeyConstraint,
    UniqueConstraint,
    text,
)
from sqlalchemy.orm import Mapped, mapped_column

from orchestrator.history.columns import Base, Key, OfAttempt, attempt_key, one_of
from orchestrator.scheduling.lifecycle import LIVE, TERMINAL, Event, Outcome, State

TERMINAL_STATES = tuple(sorted(state.value for state in TERMINAL))
LIVE_STATES = tuple(sorted(state.value for state in LIVE))

NODE_EVENTS = (
    "drained", "undrained", "quarantined", "probation", "cleared", "proposed", "fatal", "degraded", "recovered",
)  # fmt: skip
"""What happens to a node. `proposed`: it should be drained, or quarantined, and orch does not do so by itself."""


class RunRow(Base):
    """One submission."""

    __tablename__ = "runs"
    id: Mapped[int] = mapped_column(Key, primary_key=True, autoincrement=True)
    name: Mapped[str]
    username: Mapped[str]
    """Not "user": PostgreSQL reads that word, unquoted, as the name of whoever asks."""
    team: Mapped[str | None]
    state: Mapped[str]
    reason: Mapped[str | None]
    priority: Mapped[int]
    spec: Mapped[dict[str, Any]]
    """Of an array's run: only what was changed since, for itself; the rest follows from the array's."""
    code_sha256: Mapped[str | None]
    code_git: Mapped[str | None]
    code_dirty: Mapped[bool | None]
    workdir: Mapped[str]
    submit_key: Mapped[str | None]
    submitted_at: Mapped[datetime]
    queued_at: Mapped[datetime]
    started_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]
    version: Mapped[int] = mapped_column(server_default=text("1"))
    """Goes up by one with each change, so that a reader can tell whether it has seen this one."""

    __table_args__ = (
        one_of("state", State, "runs_state"),
        UniqueConstraint("username", "submit_key", name="runs_one_per_key"),
        Index("runs_by_name", "name", "id", postgresql_ops={"name": "text_pattern_ops"}),
        Index("runs_by_state", "state", "queued_at"),
        Index("runs_by_user", "username", "submitted_at"),
        Index("runs_by_submission", "submitted_at"),
        Index("runs_by_team", "team", "submitted_at"),
        Index("runs_by_end", "finished_at"),
        Index("runs_by_code_sha256", "code_sha256", postgresql_ops={"code_sha256": "text_pattern_ops"}),
        Index("runs_by_code_git", "code_git", postgresql_ops={"code_git": "text_pattern_ops"}),
        {"sqlite_autoincrement": True},
    )


class AttemptRow(Base):
    """One launch of a run's gang; at most one of a run's has not ended."""

    __tablename__ = "attempts"
    run_id: Mapped[int] = mapped_column(Key, ForeignKey("runs.id"))
    number: Mapped[int]
    placement: Mapped[dict[str, Any]]
    started_at: Mapped[datetime]
    ranks_started_at: Mapped[datetime | None]
    ended_at: Mapped[datetime | None]
    outcome: Mapped[str | None]
    failure: Mapped[dict[str, Any] | None]
    exit_codes: Mapped[dict[str, Any]]
    """By rank, as text: JSON has no other keys."""
    environment: Mapped[dict[str, Any] | None]
    """By node: the versions that the ranks were started with; NULL where no node has told them."""
    transport: Mapped[dict[str, Any] | None]
    """What NCCL's log showed; null before it is known, and where no log tells."""
    stop: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    """Why it is told to end, recorded before it is told."""

    __table_args__ = (
        PrimaryKeyConstraint("run_id", "number"),
        one_of("outcome", Outcome, "attempts_outcome"),
        CheckConstraint("(ended_at IS NULL) = (outcome IS NULL)", name="attempts_ended_with_outcome"),
        Index(
            "attempts_one_live",
            "run_id",
            unique=True,
            sqlite_where=text("ended_at IS NULL"),
            postgresql_where=text("ended_at IS NULL"),
        ),
    )


class AllocationRow(OfAttempt, Base):
    """One GPU (or CPU slot) of an attempt. The unique index over those not released is what forbids double booking."""

    __tablename__ = "allocations"
    node: Mapped[str]
    gpu: Mapped[int]
    since: Mapped[datetime]
    released_at: Mapped[datetime | None]
    fenced_until: Mapped[datetime | None]
    """Set where the attempt has ended but its ranks on the node may live until then: the GPU is not free before."""

    __table_args__ = (
        *attempt_key("node", "gpu"),
        Index(
            "allocations_one_holder",
            "node",
            "gpu",
            unique=True,
            sqlite_where=text("released_at IS NULL"),
            postgresql_where=text("released_at IS NULL"),
        ),
    )


class EventRow(Base):
    """One thing that happened to a run. Rows are only ever added: triggers refuse the rest (migrations/)."""

    __tablename__ = "events"
    sequence: Mapped[int] = mapped_column(Key, primary_key=True, autoincrement=True)
    run_id: Mapped[int] = mapped_column(Key, ForeignKey("runs.id"))
    at: Mapped[datetime]
    event: Mapped[str]
    state: Mapped[str]
    reason: Mapped[str | None]
    attempt: Mapped[int | None]
    by: Mapped[str | None]

    __table_args__ = (
        one_of("event", Event, "events_event"),
        one_of("state", State, "events_state"),
        Index("events_by_run", "run_id", "sequence"),
        {"sqlite_autoincrement": True},
    )


class ArrayRow(Base):
    """One submission of many runs, which have the ids from `id` on, without a gap."""

    __tablename__ = "arrays"
    id: Mapped[int] = mapped_column(Key, ForeignKey("runs.id"), primary_key=True, autoincrement=False)
    name: Mapped[str]
    username: Mapped[str]
    size: Mapped[int]
    run_limit: Mapped[int | None]
    spec: Mapped[dict[str, Any]]
    """As it was submitted, with its placeholders."""

    __table_args__ = (Index("arrays_by_name", "name", "id"),)


class DependencyRow(Base):
    """Runs, `first_id` to `last_id`, that must have succeeded before a run, or before the runs of an array, by its id."""

    __tablename__ = "dependencies"
    run_id: Mapped[int] = mapped_column(Key, ForeignKey("runs.id"))
    position: Mapped[int]
    first_id: Mapped[int]
    last_id: Mapped[int]
    word: Mapped[str]
    """What the submitter called them."""

    __table_args__ = (PrimaryKeyConstraint("run_id", "position"),)


class WaitRow(Base):
    """One wait in the queue that is over, and what it was for; `number` is that of the attempt which followed, or would have."""

    __tablename__ = "waits"
    run_id: Mapped[int] = mapped_column(Key, ForeignKey("runs.id"))
    number: Mapped[int]
    since: Mapped[datetime]
    until: Mapped[datetime]
    summary: Mapped[dict[str, Any]]

    __table_args__ = (PrimaryKeyConstraint("run_id", "number"),)


class NodeRow(Base):
    """What was last seen of a node."""

    __tablename__ = "nodes"
    name: Mapped[str] = mapped_column(primary_key=True)
    address: Mapped[str]
    state: Mapped[str]
    first_seen: Mapped[datetime]
    last_seen: Mapped[datetime]
    hardware: Mapped[dict[str, Any]]
    versions: Mapped[dict[str, Any]]

    __table_args__ = (one_of("state", ("up", "down"), "nodes_state"),)


class NodeMarkRow(Base):
    """What was decided about a node, and what its health is judged by; a node may be marked that is not in the cluster now."""

    __tablename__ = "node_marks"
    node: Mapped[str] = mapped_column(primary_key=True)
    drain: Mapped[dict[str, Any] | None]
    """at, by, reason, when_idle; NULL where nobody drained it."""
    quarantine: Mapped[dict[str, Any] | None]
    """stage, since, until, times, why; NULL where it never was in one."""
    forgiven_at: Mapped[datetime | None]
    past: Mapped[dict[str, Any] | None]
    """The most that it had, and its counters (health/node_past.py)."""


class NodeEventRow(Base):
    """One thing that was decided about a node, or found out about its health."""

    __tablename__ = "node_events"
    id: Mapped[int] = mapped_column(Key, primary_key=True, autoincrement=True)
    at: Mapped[datetime]
    node: Mapped[str]
    what: Mapped[str]
    by: Mapped[str | None]
    """Who asked; NULL: orch itself."""
    reason: Mapped[str | None]

    __table_args__ = (
        one_of("what", NODE_EVENTS, "node_events_what"),
        Index("node_events_by_node", "node", "id"),
        {"sqlite_autoincrement": True},
    )


class TagRow(Base):
    """One of a run's tags."""

    __tablename__ = "tags"
    run_id: Mapped[int] = mapped_column(Key, ForeignKey("runs.id"))
    key: Mapped[str]
    value: Mapped[str]

    __table_args__ = (PrimaryKeyConstraint("run_id", "key"), Index("tags_by_value", "key", "value", "run_id"))


class ControlRow(Base):
    """The one row that says which controller may write. Every write locks it first."""

    __tablename__ = "control"
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    epoch: Mapped[int]
    owner: Mapped[str | None]
    claimed_at: Mapped[datetime | None]

    __table_args__ = (CheckConstraint("id = 1", name="control_one_row"),)
