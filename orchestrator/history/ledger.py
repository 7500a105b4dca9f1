"""What GPU time was used for: every allocated millisecond is starting, productive, checkpoint, lost or idle. Pure.

- starting: from the allocation to the first progress (processes, imports, reading the checkpoint, the first step);
- productive: the gang got on, and what it did was kept;
- checkpoint: a save was under way and the gang waited for it;
- lost: the gang got on, and a failure, a preemption or a cancel threw it away: what came after the newest complete
  checkpoint, or all of it where a later attempt began anew;
- idle: held without progress, among it the time until ranks that were stopped are gone and a lease has run out.

A script of which nothing could be seen is taken at its end: productive if it succeeded or lives, else lost.

Goodput is productive over allocated time. The effective training time ratio also has the queue in its denominator:
productive over queue and allocated time of a run (Kokolis et al., "Revisiting Reliability in Large-Scale Machine
Learning Research Clusters", HPCA 2025).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from statistics import median

from orchestrator.progress.gpu_time import GpuTime, total
from orchestrator.progress.values import patience_ms
from orchestrator.scheduling.lifecycle import Outcome, State
from orchestrator.scheduling.run import Attempt, Run


def milliseconds(span: timedelta) -> int:
    """To the nearest; none where a clock was set back."""
    return max(0, round(span / timedelta(milliseconds=1)))


def account(attempt: Attempt, since: datetime, until: datetime, *, began_anew: bool = False) -> GpuTime:
    """One GPU's time that the attempt held from `since` to `until`.

    `began_anew`: a later attempt of the run did not read a checkpoint, so that nothing of this one was kept.
    """
    held = milliseconds(until - since)
    kept = attempt.outcome in (None, Outcome.SUCCEEDED) and not began_anew
    progress = attempt.progress
    if progress is None or progress.first_step_at is None:
        return _unseen(attempt, since, until, kept=kept)
    starting = min(held, milliseconds(progress.first_step_at - since))
    saving = min(held - starting, progress.save_ms)
    busy = min(held - starting - saving, progress.busy_ms)
    if attempt.ended_at is None and progress.last_step_at is not None:
        # The step that is under way, unless it has been for too long.
        since_then = milliseconds(until - progress.last_step_at)
        if since_then <= patience_ms((progress.step_time_p50 or progress.step_time or 0) * 1000):
            busy = min(held - starting - saving, busy + since_then)
    lost = 0 if kept else busy if began_anew else min(busy, max(0, progress.unsaved_ms))
    return GpuTime(starting, busy - lost, saving, lost, held - starting - saving - busy)


def _unseen(attempt: Attempt, since: datetime, until: datetime, *, kept: bool) -> GpuTime:
    held = milliseconds(until - since)
    end = until if attempt.ended_at is None else min(until, attempt.ended_at)
    ran_from = attempt.ranks_started_at
    if ran_from is None:
        # Where the start of the ranks was never heard of, a success has run all along and anything else never has.
        ran_from = since if attempt.outcome is Outcome.SUCCEEDED else end
    starting = min(held, milliseconds(min(ran_from, end) - since))
    ran = min(held - starting, milliseconds(end - max(ran_from, since)))
    productive, lost = (ran, 0) if kept else (0, ran)
    return GpuTime(starting, productive, 0, lost, held - starting - ran)


def began_anew(attempts: Sequence[Attempt]) -> list[bool]:
    """Of each attempt whether a later one got on without having read a checkpoint."""
    found, anew = [], False
    for attempt in reversed(attempts):
        found.append(anew)
        anew = anew or (attempt.progress is not None and attempt.progress.resumed is False)
    return found[::-1]


def gpu_time(run: Run, now: datetime | None = None) -> GpuTime:
    """What the run's GPUs were used for, all nodes and attempts together.

    What was recorded of each node counts as recorded. An attempt of which nothing is recorded yet, or not up to its end, is
    counted from its own times, up to `now` if it lives, and not without it.
    """
    parts = []
    for attempt, anew in zip(run.attempts, began_anew(run.attempts), strict=True):
        if attempt.used and (attempt.ended_at is None or all(node.until >= attempt.ended_at for node in attempt.used)):
            parts.append(total(node.time for node in attempt.used))
        elif (end := attempt.ended_at or now) is not None:
            one = account(attempt, attempt.started_at, end, began_anew=anew)
            parts.append(one * attempt.placement.world_size)
    return total(parts)


def cost(run: Run) -> float | None:
    """By the prices that held when it ran; None where none was configured for any of its GPUs."""
    costs = [node.cost for attempt in run.attempts for node in attempt.used if node.cost is not None]
    return sum(costs) if costs else None


def queue_ms(run: Run, now: datetime | None = None) -> int | None:
    """How long the run has waited in the queue, its returns to it included; None without its events."""
    waited = 0
    since: datetime | None = None
    for event in run.events:
        if event.state is State.QUEUED and since is None:
            since = event.at
        elif event.state is not State.QUEUED and since is not None:
            waited, since = waited + milliseconds(event.at - since), None
    if since is not None and now is not None:
        waited += milliseconds(now - since)
    return waited if run.events else None


def effective_ratio(run: Run, now: datetime | None = None) -> float | None:
    """Productive time over the time in the queue and on GPUs, in wall-clock time of the whole gang; 0 to 1."""
    waited, used = queue_ms(run, now), gpu_time(run, now)
    if waited is None or not run.attempts or not used.allocated:
        return None
    size = run.attempts[-1].placement.world_size
    return used.productive / (used.allocated + waited * size)


# Over several runs ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Scale:
    """How well a job uses more workers: what one size does beside the smallest."""

    workers: int
    samples_per_s: float
    """The median over the runs of that size."""
    runs: int
    efficiency: float
    """Samples a second for each worker, over that of the smallest size; 1 is ideal."""


def scaling(measured: Iterable[tuple[int, float]]) -> list[Scale]:
    """Scaling over sizes, smallest first, of (workers, samples a second) of runs that differ only in size."""
    by_size: dict[int, list[float]] = {}
    for workers, rate in measured:
        if workers > 0 and rate > 0:
            by_size.setdefault(workers, []).append(rate)
    if not by_size:
        return []
    smallest = min(by_size)
    base = median(by_size[smallest]) / smallest
    return [
        Scale(workers, rate := median(rates), len(rates), rate / workers / base)
        for workers, rates in sorted(by_size.items())
    ]
