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

SCHEMA = "0010"
"""The newest migration. Revisions are numbers, so that newer and older can be told apart without importing Alembic."""


NODE_EVENTS = (
    "drained", "undrained", "quarantined", "probation", "cleared", "proposed", "fatal", "degraded", "recovered",
)  # fmt: skip
"""What happens to a node. `proposed`: it should be drained, or quarantined, and orch does not do so by itself."""

SOURCES = ("auto", "log", "report")
"""How a throughput is known: measured in the ranks, read from rank 0's log, or told by the script itself."""


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


def one_of(
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


class ProgressRow(Base):
    """What was measured of an attempt as a whole. There is no row where nothing was."""

    __tablename__ = "attempt_progress"
    run_id: Mapped[int] = mapped_column(Key)
    attempt: Mapped[int]
    source: Mapped[str]
    steps: Mapped[int]
    """Of the rank that is ahead; ranks of a gang step together."""
    samples: Mapped[int | None]
    """Over all ranks."""
    samples_per_s: Mapped[float | None]
    step_time: Mapped[float | None]
    """Seconds, the mean."""
    step_time_p50: Mapped[float | None]
    step_time_p99: Mapped[float | None]
    rank_time_min: Mapped[float | None]
    """Seconds a step of the fastest rank's own work: before it waits for others, where that can be told."""
    rank_time_max: Mapped[float | None]
    slowest_rank: Mapped[int | None]
    data_wait: Mapped[float | None]
    """The share of the time, 0 to 1, in which ranks waited for their DataLoader; the mean over ranks."""
    first_step_at: Mapped[datetime | None]
    last_step_at: Mapped[datetime | None]
    busy_ms: Mapped[int]
    """From the first progress on: the time in which the gang got on, what is lost later included."""
    save_ms: Mapped[int]
    idle_ms: Mapped[int]
    unsaved_ms: Mapped[int]
    """The part of busy_ms that came after the newest complete checkpoint."""
    saves: Mapped[int]
    saved_steps: Mapped[int]
    """The attempt's steps that the newest complete checkpoint holds; 0 without one."""
    saved_at: Mapped[datetime | None]
    resumed: Mapped[bool | None]
    """Whether a checkpoint was read before the first step; null where no step was seen."""
    repeated_steps: Mapped[int | None]
    """Steps of the attempt before that its newest checkpoint did not hold, and that this one therefore does again."""
    metrics: Mapped[dict[str, Any] | None]
    """The newest value of each name that the script reported or its log told: loss, tokens_per_s, ..."""
    updated_at: Mapped[datetime]

    __table_args__ = (
        PrimaryKeyConstraint("run_id", "attempt"),
        ForeignKeyConstraint(["run_id", "attempt"], ["attempts.run_id", "attempts.number"]),
        one_of("source", SOURCES, "attempt_progress_source"),
    )


class GangSampleRow(Base):
    """A stretch of an attempt's time, all ranks together. Rows of an attempt do not overlap; older ones are longer."""

    __tablename__ = "gang_samples"
    run_id: Mapped[int] = mapped_column(Key)
    attempt: Mapped[int]
    at: Mapped[datetime]
    """Its beginning."""
    seconds: Mapped[int]
    """How long it is: 10, 60 or 600."""
    measured_ms: Mapped[int]
    """How much of it was measured: rates are per this time."""
    steps: Mapped[int]
    samples: Mapped[int | None]
    step_time: Mapped[float | None]
    step_time_p50: Mapped[float | None]
    step_time_p99: Mapped[float | None]
    rank_time_min: Mapped[float | None]
    rank_time_max: Mapped[float | None]
    metrics: Mapped[dict[str, Any] | None]

    __table_args__ = (
        PrimaryKeyConstraint("run_id", "attempt", "at"),
        ForeignKeyConstraint(["run_id", "attempt"], ["attempts.run_id", "attempts.number"]),
    )


class RankSampleRow(Base):
    """The same of one rank, in longer stretches: 60, 600 or 3600 s."""

    __tablename__ = "rank_samples"
    run_id: Mapped[int] = mapped_column(Key)
    attempt: Mapped[int]
    rank: Mapped[int]
    at: Mapped[datetime]
    seconds: Mapped[int]
    measured_ms: Mapped[int]
    steps: Mapped[int]
    samples: Mapped[int | None]
    step_time: Mapped[float | None]
    own_time: Mapped[float | None]
    """Seconds a step of the rank's own work, before it waits for others; null where that cannot be told."""
    data_wait_ms: Mapped[int]

    __table_args__ = (
        PrimaryKeyConstraint("run_id", "attempt", "rank", "at"),
        ForeignKeyConstraint(["run_id", "attempt"], ["attempts.run_id", "attempts.number"]),
    )


class GpuSampleRow(Base):
    """A stretch of a GPU's time while a run had it: 60, 600 or 3600 s."""

    __tablename__ = "gpu_samples"
    run_id: Mapped[int] = mapped_column(Key)
    attempt: Mapped[int]
    node: Mapped[str]
    gpu: Mapped[int]
    at: Mapped[datetime]
    seconds: Mapped[int]
    looks: Mapped[int]
    """How many looks at the GPU the means are made of."""
    utilization: Mapped[float | None]
    """Percent of the time in which a kernel ran."""
    memory_mib: Mapped[float | None]
    """The most that was in use."""
    power_w: Mapped[float | None]
    temperature_c: Mapped[float | None]
    """The highest."""
    sm_clock_mhz: Mapped[float | None]
    throttled: Mapped[float | None]
    """The share of the looks, 0 to 1, that found it slowed down by heat, power or hardware."""
    throttled_by: Mapped[str | None]
    """Why, comma-separated: sw_thermal, hw_thermal, hw_slowdown, hw_power_brake, sw_power_cap."""

    __table_args__ = (
        PrimaryKeyConstraint("run_id", "attempt", "node", "gpu", "at"),
        ForeignKeyConstraint(["run_id", "attempt"], ["attempts.run_id", "attempts.number"]),
    )


class GpuTimeRow(Base):
    """The ledger: what the GPUs of an attempt on one node were used for, in GPU-milliseconds (slots on CPU nodes).

    Written when the attempt begins, again and again while it lives (control/measuring.py), when it ends, when its last GPU
    is released, and when a later attempt shows that more of it was lost.
    """

    __tablename__ = "gpu_time"
    run_id: Mapped[int] = mapped_column(Key)
    attempt: Mapped[int]
    node: Mapped[str]
    gpus: Mapped[int]
    device: Mapped[str]
    model: Mapped[str | None]
    """The GPUs' model, where the node tells it."""
    price: Mapped[float | None]
    """Per GPU-hour, as the configuration had it then."""
    since: Mapped[datetime]
    until: Mapped[datetime]
    """Up to when it is counted: the release, or the latest count of an attempt that lives."""
    allocated_ms: Mapped[int]
    starting_ms: Mapped[int]
    productive_ms: Mapped[int]
    checkpoint_ms: Mapped[int]
    lost_ms: Mapped[int]
    idle_ms: Mapped[int]

    __table_args__ = (
        PrimaryKeyConstraint("run_id", "attempt", "node"),
        ForeignKeyConstraint(["run_id", "attempt"], ["attempts.run_id", "attempts.number"]),
        CheckConstraint(
            "allocated_ms = starting_ms + productive_ms + checkpoint_ms + lost_ms + idle_ms", name="gpu_time_sums"
        ),
        Index("gpu_time_by_node", "node", "since"),
        Index("gpu_time_by_time", "since"),
    )


TERMINAL_STATES = tuple(sorted(state.value for state in TERMINAL))
LIVE_STATES = tuple(sorted(state.value for state in LIVE))
