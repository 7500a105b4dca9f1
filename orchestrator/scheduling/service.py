"""Least attained service: a run that has had many GPU-hours gives way to those that have had few. Off by default.

Two queues, as Tiresias has them (Gu et al., NSDI 2019): most jobs are short, and one that has run for long is expected to go on for
long, so that a short one should not wait for it. A run that has passed `policy.service` stands half a step below its priority:
never below a run of lower priority, and level with those that have had as much, so that two never take from each other in turns.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime

from orchestrator.policy import Policy
from orchestrator.scheduling.run import Run


def attained(run: Run, now: datetime | None = None) -> float:
    """GPU-hours that the run's attempts have had, up to `now` of one that lives."""
    seconds = 0.0
    for attempt in run.attempts:
        if (end := attempt.ended_at or now) is not None:
            seconds += attempt.placement.world_size * max(0.0, (end - attempt.started_at).total_seconds())
    return seconds / 3600.0


def standing(run: Run, policy: Policy, now: datetime | None = None) -> float:
    """What is compared as the run's priority."""
    priority = run.spec.priority
    return priority - 0.5 if policy.service and attained(run, now) >= policy.service else priority


def passes_in(running: Iterable[Run], policy: Policy, now: datetime) -> float | None:
    """Seconds until the next of these runs has had so much; None where that is off, or all have."""
    if not policy.service:
        return None
    left = (
        ((policy.service - attained(run, now)) * 3600.0 / run.spec.workers.total)
        for run in running
        if run.attempts and attained(run, now) < policy.service
    )
    return min(left, default=None)
