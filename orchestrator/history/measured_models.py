"""What was measured of attempts, GPUs and links, and what the GPUs' time was used for: one class for each table."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import CheckConstraint, ForeignKey, Index
from sqlalchemy.orm import Mapped, mapped_column

from orchestrator.history.columns import Base, GpuTimeColumns, Key, OfAttempt, attempt_key, one_of

SOURCES = ("auto", "log", "report")
"""How a throughput is known: measured in the ranks, read from rank 0's log, or told by the script itself."""


class ProgressRow(OfAttempt, Base):
    """What was measured of an attempt as a whole. There is no row where nothing was."""

    __tablename__ = "attempt_progress"
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
        *attempt_key(),
        one_of("source", SOURCES, "attempt_progress_source"),
    )


class GangSampleRow(OfAttempt, Base):
    """A stretch of an attempt's time, all ranks together. Rows of an attempt do not overlap; older ones are longer."""

    __tablename__ = "gang_samples"
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

    __table_args__ = attempt_key("at")


class RankSampleRow(OfAttempt, Base):
    """The same of one rank, in longer stretches: 60, 600 or 3600 s."""

    __tablename__ = "rank_samples"
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

    __table_args__ = attempt_key("rank", "at")


class GpuSampleRow(OfAttempt, Base):
    """A stretch of a GPU's time while a run had it: 60, 600 or 3600 s."""

    __tablename__ = "gpu_samples"
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

    __table_args__ = attempt_key("node", "gpu", "at")


class GpuTimeRow(OfAttempt, GpuTimeColumns, Base):
    """The ledger: what the GPUs of an attempt on one node were used for, in GPU-milliseconds (slots on CPU nodes).

    Written when the attempt begins, again and again while it lives (control/measuring.py), when it ends, when its last GPU
    is released, and when a later attempt shows that more of it was lost.
    """

    __tablename__ = "gpu_time"
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

    __table_args__ = (
        *attempt_key("node"),
        CheckConstraint(
            "allocated_ms = starting_ms + productive_ms + checkpoint_ms + lost_ms + idle_ms", name="gpu_time_sums"
        ),
        Index("gpu_time_by_node", "node", "since"),
        Index("gpu_time_by_time", "since"),
    )


class BenchRow(OfAttempt, Base):
    """What a link was measured to carry: one collective by one backend at one size, in one attempt of a run."""

    __tablename__ = "benches"
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
        *attempt_key("backend", "collective", "bytes"),
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
