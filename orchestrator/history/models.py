"""What the database holds: one class for each table, with the rules that the database itself enforces.

These classes describe the schema; statements are built from them and run on plain connections, without the ORM's
session: a row is turned into one of scheduling/run.py's frozen values at once and never leaves this package.
The tables are made by migrations/, which must say the same as this file (a test compares the two).
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    CheckConstraint,
    DateTime,
    Dialect,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    Integer,
    PrimaryKeyConstraint,
    String,
    TypeDecorator,
    UniqueConstraint,
    text,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from orchestrator.scheduling.lifecycle import LIVE, TERMINAL, Event, Outcome, State

SCHEMA = "0008"
"""The newest migration. Revisions are numbers, so that newer and older can be told apart without importing Alembic."""


class UtcDateTime(TypeDecorator[datetime]):
    """An aware datetime: UTC without its zone in SQLite (which has none), timestamptz in PostgreSQL, UTC when read."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError(f"a time without a zone cannot be recorded: {value!r}")
        utc = value.astimezone(UTC)
        return utc.replace(tzinfo=None) if dialect.name == "sqlite" else utc

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if dialect.name == "sqlite" else value.astimezone(UTC)


def words(text: str) -> str:
    """Text from anywhere, a rank's last words included: what a database cannot hold becomes U+FFFD instead of an error.

    PostgreSQL refuses NUL, and both refuse the lone surrogates that Python makes of bytes that are not UTF-8.
    """
    if text.isascii():
        return text if "\0" not in text else text.replace("\0", "\ufffd")
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace").replace("\0", "\ufffd")


class Words(TypeDecorator[str]):
    """Text as `words` makes it."""

    impl = String
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Dialect) -> str | None:
        return None if value is None else words(value)


# SQLite gives out each number once only for a column that is exactly INTEGER.
Key = BigInteger().with_variant(Integer, "sqlite")


def _one_of(
    column: str, values: type[State] | type[Event] | type[Outcome] | tuple[str, ...], name: str
) -> CheckConstraint:
    listed = ", ".join(f"'{value}'" for value in values)
    return CheckConstraint(f"{column} IN ({listed})", name=name)


class Base(DeclarativeBase):
    type_annotation_map = {
        datetime: UtcDateTime(),
        str: Words(),
        int: BigInteger(),
        # Not JSONB: it refuses \u0000, which an environment or a log line may bring.
        dict[str, Any]: JSON(none_as_null=True),
    }


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
        _one_of("state", State, "runs_state"),
        UniqueConstraint("username", "submit_key", name="runs_one_per_key"),
        Index("runs_by_name", "name", "id"),
        Index("runs_by_state", "state", "queued_at"),
        Index("runs_by_user", "username", "submitted_at"),
        Index("runs_by_submission", "submitted_at"),
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
        _one_of("outcome", Outcome, "attempts_outcome"),
        CheckConstraint("(ended_at IS NULL) = (outcome IS NULL)", name="attempts_ended_with_outcome"),
        Index(
            "attempts_one_live",
            "run_id",
            unique=True,
            sqlite_where=text("ended_at IS NULL"),
            postgresql_where=text("ended_at IS NULL"),
        ),
    )


class AllocationRow(Base):
    """One GPU (or CPU slot) of an attempt. The unique index over those not released is what forbids double booking."""

    __tablename__ = "allocations"
    run_id: Mapped[int] = mapped_column(Key)
    attempt: Mapped[int]
    node: Mapped[str]
    gpu: Mapped[int]
    since: Mapped[datetime]
    released_at: Mapped[datetime | None]
    fenced_until: Mapped[datetime | None]
    """Set where the attempt has ended but its ranks on the node may live until then: the GPU is not free before."""

    __table_args__ = (
        PrimaryKeyConstraint("run_id", "attempt", "node", "gpu"),
        ForeignKeyConstraint(["run_id", "attempt"], ["attempts.run_id", "attempts.number"]),
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
        _one_of("event", Event, "events_event"),
        _one_of("state", State, "events_state"),
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

    __table_args__ = (_one_of("state", ("up", "down"), "nodes_state"),)


class TagRow(Base):
    """One of a run's tags."""

    __tablename__ = "tags"
    run_id: Mapped[int] = mapped_column(Key, ForeignKey("runs.id"))
    key: Mapped[str]
    value: Mapped[str]

    __table_args__ = (PrimaryKeyConstraint("run_id", "key"), Index("tags_by_value", "key", "value", "run_id"))


class BenchRow(Base):
    """What a link was measured to carry: one collective by one backend at one size, in one attempt of a run."""

    __tablename__ = "benches"
    run_id: Mapped[int] = mapped_column(Key)
    attempt: Mapped[int]
    backend: Mapped[str]
    collective: Mapped[str]
    bytes: Mapped[int]
    at: Mapped[datetime]
    link: Mapped[str]
    """The nodes, sorted, with + between them."""
    model: Mapped[str]
    level: Mapped[str]
    kind: Mapped[str]
    ranks: Mapped[int]
    time_us: Mapped[float]
    algbw: Mapped[float]
    busbw: Mapped[float]
    predicted: Mapped[float | None]
    modelled: Mapped[float | None]
    details: Mapped[dict[str, Any]]
    """per_node, gpus (by node), iterations, in_place, bottleneck, versions, transport."""

    __table_args__ = (
        PrimaryKeyConstraint("run_id", "attempt", "backend", "collective", "bytes"),
        ForeignKeyConstraint(["run_id", "attempt"], ["attempts.run_id", "attempts.number"]),
        Index("benches_by_link", "link", "at"),
        Index("benches_by_time", "at"),
    )


class TrialRow(Base):
    """What came of a short collective between two nodes, before a run was started on them."""

    __tablename__ = "trials"
    id: Mapped[int] = mapped_column(Key, primary_key=True, autoincrement=True)
    run_id: Mapped[int] = mapped_column(Key, ForeignKey("runs.id"))
    at: Mapped[datetime]
    link: Mapped[str]
    """The two nodes, sorted, with + between them."""
    model: Mapped[str]
    ranks: Mapped[int]
    busbw: Mapped[float | None]
    promised: Mapped[float | None]
    failure: Mapped[str | None]
    versions: Mapped[dict[str, Any]]

    __table_args__ = (Index("trials_by_time", "at"),)


class ControlRow(Base):
    """The one row that says which controller may write. Every write locks it first."""

    __tablename__ = "control"
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    epoch: Mapped[int]
    owner: Mapped[str | None]
    claimed_at: Mapped[datetime | None]

    __table_args__ = (CheckConstraint("id = 1", name="control_one_row"),)


TERMINAL_STATES = tuple(sorted(state.value for state in TERMINAL))
LIVE_STATES = tuple(sorted(state.value for state in LIVE))
