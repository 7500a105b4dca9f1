"""Least attained service: a run that has had many GPU-hours gives way to those that have had few. Off by default.

Two queues, as Tiresias has them (Gu et al., NSDI 2019): most jobs are short, and one that has run for long is expected to go on for
long, so that a short one should not wait for it. A run that has passed `policy.service` stands half a step below its priority:
never below a run of lower priority, and level with those that have had as much, so that two never take from each other in turns.
One whose waits add up to `policy.overdue` has given way enough: whatever stream of short runs comes, it comes to its end.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime

from orchestrator.policy import Policy
from orchestrator.scheduling.run import Attempt, Run


def attained(run: Run, now: datetime | None = None) -> float:
    """GPU-hours that the run's attempts have had, up to `now` of one that lives."""
    return sum(attempt.placement.world_size * _seconds(attempt, now) for attempt in run.attempts) / 3600.0


def waited(run: Run, now: datetime) -> float:
    """Seconds that it has spent in the queue since it entered it, all its waits together."""
    return (now - run.queued_at).total_seconds() - ran(run, now)


def ran(run: Run, now: datetime | None = None) -> float:
    """Seconds that its attempts have held a place since it entered the queue, up to `now` of one that lives."""
    return sum(_seconds(attempt, now) for attempt in run.attempts if attempt.started_at >= run.queued_at)


def standing(run: Run, policy: Policy, now: datetime | None = None) -> float:
    """What is compared as the run's priority. `now` of one that runs: it gives way no more once its waits are overdue."""
    priority = run.spec.priority
    if not policy.service or attained(run, now) < policy.service:
        return priority
    return priority if now is not None and waited(run, now) >= policy.overdue else priority - 0.5


def _seconds(attempt: Attempt, now: datetime | None) -> float:
    end = attempt.ended_at or now
    return 0.0 if end is None else max(0.0, (end - attempt.started_at).total_seconds())


def passes_in(running: Iterable[Run], policy: Policy, now: datetime) -> float | None:
    """Seconds until the next of these runs has had so much; None where that is off, or all have."""
    if not policy.service:
        return None
    left = (
        (policy.service - had) * 3600.0 / run.spec.workers.total
        for run in running
        if run.attempts and (had := attained(run, now)) < policy.service
    )
    return min(left, default=None)
