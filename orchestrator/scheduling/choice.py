"""Take a looser place now, or wait for a tighter one? By predicted completion, of this run and of those that wait behind it.

A gang that takes a loose place runs longer, holds its GPUs longer, and so splits the next one: with Philly's arrivals on machines
whose fabric is slow, gangs that took what there was were done three times later in the mean than those that waited for one node. So
the GPU time that the loose place would waste counts twice: once as this run's own delay, and once for every run that waits,
each of which it delays by its part of the cluster. And because taking feeds back in a way that no single prediction sees, a
place that makes steps longer by `policy.split` is not taken at all.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from orchestrator.placement.explain import hint_levels
from orchestrator.placement.values import Placement
from orchestrator.scheduling.ask import Ask
from orchestrator.scheduling.decision import Choice
from orchestrator.scheduling.estimates import typical_duration
from orchestrator.scheduling.memory import Memory
from orchestrator.scheduling.snapshot import Snapshot, alike
from orchestrator.scheduling.timeline import Opening, Timeline

WORTH_IT = 1.02
"""A place that makes steps shorter by less than that is not waited for."""


def slowdown(busbw: float, best: float, communication: float) -> float:
    """How much longer a step takes at `busbw` than at `best` GB/s, of which `communication` is the part that nothing hides."""
    return 1.0 - communication + communication * best / busbw


def weigh(
    ask: Ask,
    now: Placement,
    ahead: Callable[[], Timeline],
    snapshot: Snapshot,
    memory: Memory,
    *,
    waiting: int,
    capacity: int,
    overdue: bool = False,
) -> tuple[Choice, Opening] | None:
    """The best alternative to the place that there is now, and where and when it opens; None where there is no better one in
    sight.

    `waiting` runs compete for `capacity` GPUs. One that is overdue takes a place that is only a little looser.
    """
    if now.busbw_predicted is None or ask.run.spec.near is not None:
        return None
    takes = typical_duration(ask.run, snapshot)
    crowd = waiting * ask.gpus / max(1, capacity)
    found: tuple[Choice, Opening] | None = None
    for level in hint_levels(memory.topology):
        if level == now.level:
            break
        there = memory.best(ask.shape, level)
        if there is None or there.busbw_predicted is None:
            continue
        slower, measured = _slowdown(ask, now, there, level, snapshot)
        must = slower >= snapshot.policy.split
        if slower < WORTH_IT or (overdue and not must):
            continue
        lost = takes * (slower - 1.0)
        request = replace(ask.request, near=level, required=True)
        opening = ahead().first(request, within=None if must else lost * (1.0 + crowd))
        if opening is None or (opening.bound.seconds is None and not must):
            continue
        wait = opening.bound.seconds
        done = None if wait is None else wait + takes
        choice = Choice(now.level, takes + lost, level, wait, done, slower, lost * crowd, measured, must)
        if found is None or (choice.must, -choice.done_s) > (found[0].must, -found[0].done_s):
            found = choice, opening
    return found


def _slowdown(ask: Ask, now: Placement, there: Placement, level: str, snapshot: Snapshot) -> tuple[float, bool]:
    speeds = snapshot.speeds.get(alike(ask.run), {})
    if now.level in speeds and level in speeds:
        return speeds[now.level] / speeds[level], True
    assert now.busbw_predicted is not None
    assert there.busbw_predicted is not None
    return slowdown(now.busbw_predicted, there.busbw_predicted, snapshot.policy.communication), False
