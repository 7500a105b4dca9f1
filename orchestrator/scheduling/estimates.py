"""How long a run may hold its GPUs: what a time limit promises, and what its name's history lets expect.

Nothing is relied on beyond what is enforced or has been seen: a run that outlives its bound is from then on one that nobody can
say the end of.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from orchestrator.policy import Policy
from orchestrator.scheduling.ask import START_S, STOP_S, Ask
from orchestrator.scheduling.run import Run
from orchestrator.scheduling.snapshot import Snapshot

ENOUGH = 3
"""So many runs of a name must have ended before its history says anything."""


@dataclass(frozen=True, slots=True)
class Bound:
    """When something is over at the latest, in seconds from now."""

    seconds: float | None
    """None: nobody can say."""
    sure: bool = False
    """Whether it is enforced; else it is expected."""


UNKNOWN = Bound(None)


def gone_in_time(stay: Bound, start: Bound, *, strict: bool) -> bool:
    """Whether a run that stays so long is gone when another is to start.

    A promised start is risked only on what is enforced as well; one that is expected, also on what is expected, unless `strict`.
    """
    if stay.seconds is None or start.seconds is None or stay.seconds > start.seconds:
        return False
    return stay.sure or not (strict or start.sure)


def stay_of(ask: Ask, snapshot: Snapshot) -> Bound:
    """How long the run would hold its GPUs if it started now."""
    if ask.limit is not None:
        return Bound(ask.limit, sure=True)
    longest = _longest(snapshot.history.get((ask.run.user, ask.run.name), ()), snapshot.policy)
    return UNKNOWN if longest is None else Bound(START_S + longest)


def bound_of_running(run: Run, snapshot: Snapshot, now: datetime) -> Bound:
    """How long the run will go on holding its GPUs."""
    if (told := snapshot.ending.get(run.id)) is not None:
        # A rank that is not gone by then is on a node that does not answer.
        left = (told - now).total_seconds()
        return Bound(left, sure=True) if left >= 0 else UNKNOWN
    attempt, spec = run.attempt, run.spec
    if attempt is None:
        return UNKNOWN
    starting = attempt.ranks_started_at is None
    begun = (now - (attempt.ranks_started_at or attempt.started_at)).total_seconds()
    late = starting and begun > START_S
    if starting:
        begun = 0.0 if late else begun - START_S
    if spec.time_limit is not None:
        left = spec.time_limit + spec.grace + STOP_S - begun
        return Bound(left, sure=not late) if left >= 0 else UNKNOWN
    longest = _longest(snapshot.history.get((run.user, run.name), ()), snapshot.policy)
    return UNKNOWN if longest is None or longest < begun else Bound(longest - begun)


def typical_duration(run: Run, snapshot: Snapshot) -> float:
    """How long the run takes, as a guess to compare places by; never to promise anything by."""
    times = snapshot.history.get((run.user, run.name), ())
    if len(times) >= ENOUGH:
        return statistics.median(times)
    # A limit is what its owner fears, not what he expects.
    return min(run.spec.time_limit or snapshot.policy.assumed_duration, snapshot.policy.assumed_duration)


def _longest(times: Sequence[float], policy: Policy) -> float | None:
    return max(times) * policy.margin if len(times) >= ENOUGH else None
