"""Whether an attempt that broke is followed by another, when, and away from which nodes: budgets by cause, in numbers.

A fault of the cluster draws on `retry.infra`, of which a long run gets a new one each day; an error of the script on
`retry.user`, which is 0 unless the submitter says so. What orch itself asked for (preemption, drain) draws on neither. All of it
follows from the attempts that are recorded, so that a controller that takes over decides the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import takewhile

from orchestrator.scheduling.lifecycle import Outcome
from orchestrator.scheduling.run import Attempt, Run

DAY = timedelta(hours=24)
"""How long a fault of the cluster counts: one training of 54 days on 16,384 GPUs met 419 of them (Llama 3, arXiv 2407.21783)."""
STARTS_IN_VAIN, RUNS_IN_VAIN = 3, 5
"""So many attempts in a row that never had all ranks up, or that got nowhere, and it is not the cluster's luck any more."""
LONG_ENOUGH = timedelta(minutes=10)
"""An attempt of which nothing can be seen has got on if its ranks ran for that long."""
FIRST_PAUSE_S, GROWTH, LONGEST_PAUSE_S = 10.0, 1.5, 600.0
"""The first retry is at once; after that each waits longer, until the run gets on again."""
FIRST_HOLD_S, LONGEST_HOLD_S = 2.0, 60.0
"""Before a node that other work of the cluster holds is asked for again."""
AVOIDED = timedelta(minutes=10)
"""How long a run keeps away from the nodes that its attempts broke on."""

FREE = frozenset({"hold_refused", "controller"})
"""Failures that say nothing of the run, nor of its nodes: they draw on no budget."""
FINAL = frozenset({"time_limit", "degraded", "code_missing", "secrets_missing"})
"""What another attempt would only repeat, or what the job file itself makes an end."""


@dataclass(frozen=True)
class Again:
    """It goes back to the queue, where it is kept back until `not_before`."""

    reason: str
    """Which of how many retries it is, and when it comes."""


@dataclass(frozen=True)
class Enough:
    """It has failed for good."""

    reason: str | None
    """Which budget is used up; None where none of them is for it."""


def decide(run: Run) -> Again | Enough:
    """What follows for a run whose last attempt has just ended with a failure."""
    last = run.attempts[-1]
    assert last.failure is not None
    if last.failure.kind in FREE:
        return Again(f"tried again {_when(run)}, which counts as no retry")
    if last.failure.kind in FINAL:
        return Enough(None)
    by_cluster = last.outcome is Outcome.INFRA_ERROR
    budget = run.spec.retry.infra if by_cluster else run.spec.retry.user
    what = "faults of the cluster in 24 h" if by_cluster else "errors of the script"
    drawn = _drawn(run, last)
    if drawn > budget:
        # Who never asked for retries of errors need not hear that there are none.
        return Enough(f"all {budget} retries for {what} are used" if budget else None)
    if by_cluster and (vain := _in_vain(run)) is not None:
        return Enough(vain)
    return Again(f"tried again {_when(run)}, retry {drawn} of {budget} for {what}")


def not_before(run: Run) -> datetime | None:
    """When a waiting run may have its next attempt; None where nothing but room keeps it."""
    last = run.attempt
    if last is None or last.ended_at is None or last.failure is None or run.queued_at > last.ended_at:
        return None
    pause = _pause_s(run)
    return last.ended_at + timedelta(seconds=pause) if pause else None


def avoided(run: Run, now: datetime) -> Mapping[str, str]:
    """By node: why the run should not get it while others will do."""
    found: dict[str, str] = {}
    for attempt in run.attempts:
        failure, ended = attempt.failure, attempt.ended_at
        if failure is None or ended is None or attempt.outcome is not Outcome.INFRA_ERROR or failure.kind in FREE:
            continue
        if now - ended < AVOIDED:
            found |= dict.fromkeys(failure.suspects, f"attempt {attempt.number} broke there: {failure.kind}")
    return found


def _counts(attempt: Attempt) -> bool:
    return attempt.failure is not None and attempt.failure.kind not in FREE


def _asked_since(run: Run) -> list[Attempt]:
    """The attempts since somebody last asked for one, the newest first."""
    return [attempt for attempt in reversed(run.attempts) if attempt.started_at >= run.queued_at]


def _drawn(run: Run, last: Attempt) -> int:
    """How many retries its attempts ask of the budget that the last one draws on, itself included."""
    alike = [one for one in _asked_since(run) if one.outcome is last.outcome and _counts(one)]
    if last.outcome is Outcome.USER_ERROR:
        return len(alike)
    ended = last.ended_at
    return sum(ended is not None and one.ended_at is not None and ended - one.ended_at < DAY for one in alike)


def _row(run: Run) -> list[Attempt]:
    """The newest attempts that broke alike, one after the other, back to one that had got on before it broke."""
    row: list[Attempt] = []
    for attempt in _asked_since(run):
        if not _counts(attempt) or attempt.outcome is not run.attempts[-1].outcome:
            break
        row.append(attempt)
        if _got_on(attempt):
            break
    return row


def _got_on(attempt: Attempt) -> bool:
    if attempt.progress is not None and attempt.progress.first_step_at is not None:
        return True
    began, ended = attempt.ranks_started_at, attempt.ended_at
    return began is not None and ended is not None and ended - began >= LONG_ENOUGH


def _in_vain(run: Run) -> str | None:
    """Why its newest attempts say that another will break too."""
    row = [attempt for attempt in _row(run) if not _got_on(attempt)]
    starts = next((i for i, one in enumerate(row) if one.ranks_started_at is not None), len(row))
    if starts >= STARTS_IN_VAIN:
        return f"the last {starts} attempts could not be started"
    if len(row) >= RUNS_IN_VAIN:
        return f"the last {len(row)} attempts broke before they got on"
    return None


def _when(run: Run) -> str:
    pause = _pause_s(run)
    return f"in {pause:.0f} s" if pause else "at once"


def _pause_s(run: Run) -> float:
    """Before the next attempt of a run whose last one broke."""
    last = run.attempts[-1]
    if last.failure is not None and last.failure.kind == "hold_refused":
        # Other work of the cluster is there for longer than a moment.
        alike = takewhile(lambda one: one.failure is not None and one.failure.kind == "hold_refused", _asked_since(run))
        return min(LONGEST_HOLD_S, FIRST_HOLD_S * GROWTH ** (sum(1 for _ in alike) - 1))
    turn = len(_row(run))
    return 0.0 if turn <= 1 else min(LONGEST_PAUSE_S, FIRST_PAUSE_S * GROWTH ** (turn - 2))
