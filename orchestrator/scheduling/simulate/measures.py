"""What a replay amounts to: waits, completion times, utilisation, fragmentation, and what preemption cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from orchestrator.placement.tree import Topology
from orchestrator.scheduling.simulate.replay import Replayed
from orchestrator.scheduling.simulate.world import Life, Parts

SHORTEST_S = 10.0
"""A job shorter than that counts as that long in slowdowns, or one of a second that waits a minute would be all there is
to see (bounded slowdown; Feitelson and Rudolph, 1998)."""


@dataclass(frozen=True)
class Spread:
    """The mean, and what half, 95 and 99 % of the jobs stay under."""

    mean: float
    median: float
    p95: float
    p99: float


@dataclass(frozen=True)
class Measures:
    """One policy on one trace and one cluster. Times in seconds, shares between 0 and 1."""

    policy: str
    nodes: int
    gpus: int
    runs: int
    """Jobs that ran to their end."""
    never: int
    """Jobs that do not fit the empty cluster, and were left out."""
    wait: Spread
    """In the queue, also after a preemption."""
    completion: Spread
    """From submission to end."""
    slowdown: Spread
    """Completion over the time alone on the empty cluster."""
    makespan: float
    utilisation: float
    """GPU-seconds held over those there were, up to the last end."""
    utilisation_arriving: float
    """The same up to the last submission, where not all were submitted at once: a tail of a few long jobs says little of a
    policy."""
    fragmentation: float
    """While GPUs were free: the largest gang that one node could take, against the largest if they lay together; 0 is
    none."""
    cross_leaf: float
    """Of the jobs with several GPUs: the share whose last placement was on more than one leaf."""
    split: float
    """Of the jobs that fit into one node: the share that was on more than one."""
    stretched: float
    """What the placements cost: GPU-seconds of work over those at the best placements, less 1."""
    preemptions: int
    preempted_gpu_seconds: float
    """Work that was lost to preemption, with the starts of the attempts that were cut short."""


def measure(replayed: Replayed) -> Measures:
    lives, topology = replayed.lives, replayed.topology
    completions = [(life.finished_s or 0.0) - life.job.submit_s for life in lives]
    waits = [max(0.0, c - life.ran_s) for c, life in zip(completions, lives, strict=True)]
    slowdowns = [max(1.0, c / max(life.ideal_s, SHORTEST_S)) for c, life in zip(completions, lives, strict=True)]
    gpus, size = topology.empty.total[0], max((node.kind.size for node in topology.nodes), default=0)
    gangs = [life for life in lives if life.job.gpus > 1 and life.last_parts]
    fitting = [life for life in gangs if life.job.gpus <= size and not (life.job.nodes and life.job.nodes > 1)]
    ideal = sum(life.job.gpus * life.ideal_s for life in lives)
    last = sum(life.job.gpus * life.whole_s for life in lives)
    arriving = replayed.span_s or replayed.makespan_s
    return Measures(
        policy=replayed.policy,
        nodes=len(topology.nodes),
        gpus=gpus,
        runs=len(lives),
        never=len(replayed.never),
        wait=spread(waits),
        completion=spread(completions),
        slowdown=spread(slowdowns),
        makespan=replayed.makespan_s,
        utilisation=_share(replayed.integral.busy, gpus * replayed.makespan_s),
        utilisation_arriving=_share(_busy_until(replayed, arriving), gpus * arriving),
        fragmentation=_share(replayed.integral.scattered, replayed.integral.some_free_s),
        cross_leaf=_share(sum(crosses_leaves(topology, life.last_parts or ()) for life in gangs), len(gangs)),
        split=_share(sum(len(life.last_parts or ()) > 1 for life in fitting), len(fitting)),
        stretched=_share(last, ideal) - 1 if ideal else 0.0,
        preemptions=sum(life.starts - 1 for life in lives),
        preempted_gpu_seconds=sum(life.lost_gpu_s for life in lives),
    )


def spread(values: Sequence[float]) -> Spread:
    ordered = sorted(values)
    mean = sum(ordered) / len(ordered) if ordered else 0.0
    return Spread(mean, percentile(ordered, 0.5), percentile(ordered, 0.95), percentile(ordered, 0.99))


def percentile(ordered: Sequence[float], share: float) -> float:
    """Of ascending values, linear between neighbours; 0 of none."""
    if not ordered:
        return 0.0
    at = share * (len(ordered) - 1)
    low = int(at)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (at - low)


def crosses_leaves(topology: Topology, parts: Parts) -> bool:
    """Whether a placement needs more than one leaf; False on a cluster of which no leaves are known."""
    if "leaf" not in topology.levels or len(parts) < 2:
        return False
    depth = topology.levels.index("leaf")
    return len({topology.nodes[index].domains[depth] for index, _ in parts}) > 1


def waited(life: Life) -> float:
    """Seconds in the queue of a job that has ended."""
    return max(0.0, (life.finished_s or 0.0) - life.job.submit_s - life.ran_s)


def as_json(measures: Measures) -> dict[str, Any]:
    """As `orch simulate --json` prints it: the spreads as mean_wait, median_wait, p95_wait, ..."""
    flat: dict[str, Any] = {}
    for key, value in asdict(measures).items():
        if isinstance(value, dict):
            flat |= {f"{which}_{key}": round(number, 3) for which, number in value.items()}
        else:
            flat[key] = round(value, 6) if isinstance(value, float) else value
    return flat


def _busy_until(replayed: Replayed, end: float) -> float:
    series, busy = replayed.integral, 0.0
    for i, begin in enumerate(series.times):
        until = series.times[i + 1] if i + 1 < len(series.times) else replayed.makespan_s
        if begin >= end:
            break
        busy += series.held[i] * (min(until, end) - begin)
    return busy


def _share(part: float, whole: float) -> float:
    return part / whole if whole else 0.0
