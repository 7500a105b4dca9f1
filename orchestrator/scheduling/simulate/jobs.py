"""What is replayed: jobs as a trace tells of them, whatever format it has."""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True)
class Job:
    """One gang of a trace."""

    id: str
    gpus: int
    submit_s: float
    """Seconds after the trace's first submission."""
    duration_s: float | None = None
    """How long it ran, taken as its time at the best placement of an empty cluster; None where the trace has work and no
    time: `steps` of `batch_size` then."""
    name: str = "job"
    """What the same work was called before: a scheduler may learn durations by it."""
    user: str = "user"
    team: str | None = None
    model: str | None = None
    """What the profiles are asked for."""
    batch_size: int | None = None
    """Samples in a step of the whole gang."""
    steps: float | None = None
    nodes: int | None = None
    """Into how many equal parts it must be split; None: as the policy likes."""
    limit_s: float | None = None
    """What the scheduler is told of its duration. The replay does not end a job that runs longer."""
    priority: int = 0


@dataclass(frozen=True)
class Trace:
    """Jobs in the order of their submission."""

    jobs: tuple[Job, ...]
    notes: tuple[str, ...] = ()
    """What the reader left out or took for granted, in sentences."""

    @property
    def span_s(self) -> float:
        """From the first submission to the last."""
        return self.jobs[-1].submit_s if self.jobs else 0.0


def trace_of(jobs: Iterable[Job], notes: Iterable[str] = ()) -> Trace:
    """The trace of these jobs: ordered, its clock set to 0 at the first submission. Equal times keep their order."""
    ordered = sorted(jobs, key=lambda job: job.submit_s)
    begin = ordered[0].submit_s if ordered else 0.0
    return Trace(tuple(replace(job, submit_s=job.submit_s - begin) for job in ordered), tuple(notes))


def sampled(trace: Trace, share: float, seed: int) -> Trace:
    """That share of the jobs, each kept or not by a coin of its own; the same seed keeps the same jobs."""
    rng = random.Random(seed)  # noqa: S311 - a sample, not a secret
    return trace_of((job for job in trace.jobs if rng.random() < share), trace.notes)


def faster_arrivals(trace: Trace, factor: float) -> Trace:
    """The same jobs, submitted in 1/`factor` of the time: `factor` times the load."""
    return Trace(tuple(replace(job, submit_s=job.submit_s / factor) for job in trace.jobs), trace.notes)
