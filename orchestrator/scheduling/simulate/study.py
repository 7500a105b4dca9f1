"""A trace under several policies, side by side: which there are by name, and one row of measures for each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from orchestrator.document import nearest
from orchestrator.hardware.model import Cluster
from orchestrator.placement.tree import Topology
from orchestrator.policy import Policy as Settings
from orchestrator.scheduling.simulate.jobs import Trace
from orchestrator.scheduling.simulate.measures import Measures, measure
from orchestrator.scheduling.simulate.orch_policy import Orch
from orchestrator.scheduling.simulate.placers import PLACERS, Placer
from orchestrator.scheduling.simulate.queues import Backfill, Fifo, LeastAttained
from orchestrator.scheduling.simulate.replay import Costs, Replay, Replayed
from orchestrator.scheduling.simulate.speed import Profile, Speed
from orchestrator.scheduling.simulate.world import Policy


@dataclass(frozen=True)
class Rules:
    """What holds for every policy of a study."""

    costs: Costs = field(default_factory=Costs)
    las_threshold_gpu_s: float = 16 * 3600.0
    settings: Settings = field(default_factory=Settings)
    """orch's own, as cluster.yaml says them."""
    talk: float = 0.1
    limit_factor: float = 2.0
    """A job whose trace has no time limit gets one of so many times its time at its best placement; 0: none."""


Tell = Callable[[str, int, int], None]
"""Hears the policy's name, how many jobs have ended, and of how many."""

_QUEUES: dict[str, Callable[[Placer, Rules], Policy]] = {
    "fifo": lambda placer, rules: Fifo(placer),
    "fifo-backfill": lambda placer, rules: Backfill(placer),
    "greedy": lambda placer, rules: Fifo(placer, greedy=True),
    "las": lambda placer, rules: LeastAttained(placer, rules.las_threshold_gpu_s),
}
SYNONYMS = {
    "backfill": "fifo-backfill",
    "easy": "fifo-backfill",
    "fjf": "greedy",
    "tiresias": "las",
    "one-node": "greedy:one-node",
}
NAMES = ("orch", *_QUEUES)


def policy_named(text: str, rules: Rules) -> Policy:
    """`orch`; or a queue, alone (then it places first fit) or with how it places: `fifo:pack`, `las:spread`.

    ValueError with what there is.
    """
    name = SYNONYMS.get(text, text)
    queue, _, placer = name.partition(":")
    queue = SYNONYMS.get(queue, queue)
    if name == "orch":
        return Orch(rules.settings, checkpoint_s=rules.costs.checkpoint_s)
    if queue not in _QUEUES:
        raise ValueError(f"there is no policy {text}. {nearest(queue, (*NAMES, *SYNONYMS))}")
    if placer and placer not in PLACERS:
        raise ValueError(f"{text}: there is no way of placing called {placer}. {nearest(placer, PLACERS)}")
    policy = _QUEUES[queue](PLACERS[placer or "first-fit"], rules)
    policy.name = text
    return policy


@dataclass(frozen=True)
class Row:
    """One policy on one cluster."""

    measures: Measures
    replayed: Replayed
    label: str = ""
    """What sets this cluster apart: `+4 nodes`; empty where there is one."""


def study(
    trace: Trace,
    clusters: Sequence[tuple[str, Cluster]],
    policies: Sequence[str],
    rules: Rules,
    profiles: Sequence[Profile] = (),
    tell: Tell | None = None,
) -> list[Row]:
    """Every policy on every cluster (each with what it is called): cluster by cluster, in the order asked for. Nodes without
    GPUs are left out.

    ValueError for an unknown policy, and where nothing tells how long a job takes.
    """
    for name in policies:
        policy_named(name, rules)
    rows = []
    for label, cluster in clusters:
        topology = Topology(replace(cluster, nodes=tuple(node for node in cluster.nodes if node.gpus)))
        speed = Speed(topology, profiles, rules.talk)
        limited = with_limits(trace, speed, rules.limit_factor)
        for name in policies:
            policy = policy_named(name, rules)
            replayed = Replay(limited, topology, policy, speed, rules.costs).run(
                _named(tell, f"{name} {label}".strip())
            )
            rows.append(Row(measure(replayed), replayed, label))
    return rows


def with_limits(trace: Trace, speed: Speed, factor: float) -> Trace:
    """Every job with a time limit: the trace's, else `factor` times its time at its best placement."""
    if not factor:
        return trace
    jobs = []
    for job in trace.jobs:
        ideal = speed.ideal(job) if job.limit_s is None else None
        jobs.append(job if ideal is None else replace(job, limit_s=factor * speed.seconds(job, ideal)))
    return Trace(tuple(jobs), trace.notes)


def _named(tell: Tell | None, name: str) -> Callable[[int, int], None] | None:
    if tell is None:
        return None
    return lambda ended, jobs: tell(name, ended, jobs)
