"""How long a job takes at a placement: from measured profiles where there are any of its model, else from the bandwidth
model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from orchestrator.placement.gang import predict_parts
from orchestrator.placement.search import find
from orchestrator.placement.tree import Topology
from orchestrator.placement.values import Request
from orchestrator.scheduling.simulate.jobs import Job
from orchestrator.scheduling.simulate.world import Parts
from orchestrator.spec_values import Workers


def request(job: Job) -> Request:
    """What placement is asked for: a total whose shape is free, or equal parts where the trace says so."""
    nodes = job.nodes if job.nodes and job.gpus % job.nodes == 0 else None
    return Request(Workers(total=job.gpus, nodes=nodes), "cuda")


class Profile(Protocol):
    """Measurements of some models."""

    def knows(self, job: Job) -> bool: ...

    def seconds(self, job: Job, counts: Sequence[int], ideal: Sequence[int]) -> float:
        """How long the whole job takes on that many GPUs of each node (in the order of the tree), where `ideal` are the
        GPUs of its best placement on an empty cluster."""
        ...


@dataclass
class Speed:
    """The speed of jobs on one cluster.

    The bandwidth model divides a job's time into computing and talking: `talk` is the share of its time that a gang
    spends in exposed communication at its best placement, and at another placement that share grows as the predicted
    bus bandwidth shrinks. A measured profile needs no such guess, and wins where it knows the job.
    """

    topology: Topology
    profiles: Sequence[Profile] = ()
    talk: float = 0.1
    _ideal: dict[tuple[int, int | None], tuple[Parts, float] | None] = field(default_factory=dict)
    _busbw: dict[Parts, float] = field(default_factory=dict)

    def ideal(self, job: Job) -> Parts | None:
        """Its best placement on the empty cluster; None where there is none."""
        found = self._best(job)
        return None if found is None else found[0]

    def seconds(self, job: Job, parts: Parts) -> float:
        """How long the whole of the job takes at this placement. ValueError where nothing tells."""
        best = self._best(job)
        assert best is not None, "a job that fits no empty cluster is not placed"
        for profile in self.profiles:
            if profile.knows(job):
                return profile.seconds(job, _counts(parts), _counts(best[0]))
        if job.duration_s is None:
            known = f"no profile knows {job.model}" if job.model else "the trace does not tell its model"
            raise ValueError(f"job {job.id} has no duration, and {known}: --profiles DIR names measured speeds")
        if job.gpus < 2 or not self.talk or parts == best[0]:
            return job.duration_s
        return job.duration_s * (1 - self.talk + self.talk * max(1.0, best[1] / self._bandwidth(parts)))

    def _best(self, job: Job) -> tuple[Parts, float] | None:
        key = (job.gpus, job.nodes)
        if key not in self._ideal:
            parts = find(request(job), self.topology, self.topology.empty)
            self._ideal[key] = None if parts is None else (tuple(parts), predict_parts(self.topology, parts).busbw)
        return self._ideal[key]

    def _bandwidth(self, parts: Parts) -> float:
        if parts not in self._busbw:
            if len(self._busbw) > 100_000:
                self._busbw.clear()
            self._busbw[parts] = predict_parts(self.topology, parts).busbw
        return self._busbw[parts]


def _counts(parts: Parts) -> tuple[int, ...]:
    return tuple(mask.bit_count() for _, mask in parts)
