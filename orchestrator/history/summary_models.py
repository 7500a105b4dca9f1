"""What is summed up while it happens, so that a million runs can be asked in a blink: one class for each such table.

`attempt_nodes` says where each attempt was and how it ended; `run_summaries` has a run's figures in one row. The other
four are sums over days (and weeks and months) that are kept in step with them in the same transaction (summaries.py), and
outlive both: what retention deletes stays counted here. In the keys of sums, what a run has none of (a team, a GPU model) is ''.
"""

from __future__ import annotations

from datetime import date, datetime

from sqlalchemy import ForeignKey, Index, PrimaryKeyConstraint
from sqlalchemy.orm import Mapped, mapped_column

from orchestrator.history.columns import Base, GpuTimeColumns, Key, OfAttempt, attempt_key, one_of

PERIODS = ("day", "week", "month")


class AttemptNodeRow(OfAttempt, Base):
    """One node of one attempt: what it was, how long the attempt was there, and how it ended."""

    __tablename__ = "attempt_nodes"
    node: Mapped[str]
    leaf: Mapped[str | None]
    gpu: Mapped[str | None]
    """The model."""
    gpus: Mapped[int]
    """How many GPUs (or CPU slots) of the node the attempt held."""
    started_at: Mapped[datetime]
    ended_at: Mapped[datetime | None]
    outcome: Mapped[str | None]
    failure_kind: Mapped[str | None]
    at_fault: Mapped[bool | None]
    """Whether the attempt broke through infrastructure and the failure names this node."""

    __table_args__ = (
        *attempt_key("node"),
        Index("attempt_nodes_by_node", "node", "ended_at"),
        Index("attempt_nodes_by_leaf", "leaf", "ended_at"),
        Index("attempt_nodes_by_outcome", "outcome", "run_id"),
        Index("attempt_nodes_by_failure", "failure_kind", "run_id"),
    )


class RunSummaryRow(GpuTimeColumns, Base):
    """A run in one row: there from the end of its first attempt, or from its end where it never got a place."""

    __tablename__ = "run_summaries"
    run_id: Mapped[int] = mapped_column(Key, ForeignKey("runs.id"), primary_key=True, autoincrement=False)
    day: Mapped[date]
    """Of its submission, in UTC: where the sums over days count it."""
    state: Mapped[str | None]
    """The state that it ended in, under which it is counted; None while it has not ended."""
    attempts: Mapped[int]
    device: Mapped[str | None]
    gpu: Mapped[str | None]
    """The model; where several were mixed, with + between them."""
    gpus: Mapped[int | None]
    """Ranks of the last attempt."""
    nodes: Mapped[int | None]
    leaves: Mapped[int | None]
    level: Mapped[str | None]
    outcome: Mapped[str | None]
    """Of the last attempt that ended."""
    failure_kind: Mapped[str | None]
    wait_ms: Mapped[int | None]
    """From submission to the first placement."""
    neighbours: Mapped[int | None]
    """How many other runs were on the last attempt's leaves (or nodes) while it ran."""
    samples_per_s: Mapped[float | None]
    step_time_s: Mapped[float | None]
    steps: Mapped[int | None]
    samples: Mapped[int | None]
    cost: Mapped[float | None]
    """What the allocated time cost; None where no price is known."""

    __table_args__ = (
        Index("run_summaries_by_throughput", "samples_per_s", "run_id"),
        Index("run_summaries_by_gpu", "gpu", "run_id"),
        Index("run_summaries_by_gpu_time", "allocated_ms", "run_id"),
    )


class Counted(GpuTimeColumns):
    """Sums over ended runs."""

    runs: Mapped[int] = mapped_column(sort_order=60)
    attempts: Mapped[int] = mapped_column(sort_order=61)
    waited: Mapped[int] = mapped_column(sort_order=62)
    """Runs that got a place: what wait_ms is the sum over."""
    wait_ms: Mapped[int] = mapped_column(sort_order=63)
    measured: Mapped[int] = mapped_column(sort_order=64)
    """Runs whose throughput is known: what samples_per_s is the sum over."""
    samples_per_s: Mapped[float] = mapped_column(sort_order=65)
    samples: Mapped[int] = mapped_column(sort_order=66)
    cost: Mapped[float] = mapped_column(sort_order=67)


class RunSumRow(Counted, Base):
    """The ended runs that one user submitted within one day, week or month (UTC), by team, state and GPU model."""

    __tablename__ = "run_sums"
    period: Mapped[str]
    """One of PERIODS. The same runs are in a day's row, a week's and a month's: a question takes the longest that do."""
    start: Mapped[date]
    """The first day: of a week, its Monday."""
    username: Mapped[str]
    team: Mapped[str]
    state: Mapped[str]
    gpu: Mapped[str]

    __table_args__ = (
        PrimaryKeyConstraint("period", "start", "username", "team", "state", "gpu"),
        one_of("period", PERIODS, "run_sums_period"),
    )


class NameSumRow(Counted, Base):
    """The ended runs of one name that were submitted within one day, week or month (UTC), by state."""

    __tablename__ = "name_sums"
    period: Mapped[str]
    start: Mapped[date]
    name: Mapped[str]
    state: Mapped[str]

    __table_args__ = (
        PrimaryKeyConstraint("period", "start", "name", "state"),
        one_of("period", PERIODS, "name_sums_period"),
    )


class GpuDayRow(GpuTimeColumns, Base):
    """GPU time of ended runs on the day (UTC) on which it was used."""

    __tablename__ = "gpu_days"
    day: Mapped[date]
    username: Mapped[str]
    team: Mapped[str]
    name: Mapped[str]
    gpu: Mapped[str]
    cost: Mapped[float] = mapped_column(sort_order=60)

    __table_args__ = (PrimaryKeyConstraint("day", "username", "team", "name", "gpu"),)


class NodeDayRow(GpuTimeColumns, Base):
    """GPU time of ended runs on one node on one day (UTC), and how the attempts that ended on that day did."""

    __tablename__ = "node_days"
    day: Mapped[date]
    node: Mapped[str]
    attempts: Mapped[int]
    infra_failures: Mapped[int]
    """Attempts that broke through infrastructure with this node named."""
    last_failure_at: Mapped[datetime | None]

    __table_args__ = (PrimaryKeyConstraint("day", "node"),)


class ExpiredRunRow(Base):
    """A run that retention has deleted: what the sums still count and `orch show` cannot show any more."""

    __tablename__ = "expired_runs"
    run_id: Mapped[int] = mapped_column(Key, primary_key=True, autoincrement=False)
    name: Mapped[str]
    state: Mapped[str]
    finished_at: Mapped[datetime | None]
    expired_at: Mapped[datetime]
