"""Whether the cluster could ever run a job, asked before it is accepted, and what its submitter should know of it."""

from __future__ import annotations

from orchestrator.control.refused import Refused
from orchestrator.control.roster import Roster
from orchestrator.control.surveys import Surveys
from orchestrator.placement import nccl_env
from orchestrator.placement.explain import at_best, hint_levels
from orchestrator.placement.search import place
from orchestrator.placement.tree import Topology
from orchestrator.placement.values import Placement, Rejection, Request
from orchestrator.placement.wishes import is_known
from orchestrator.scheduling.ask import device_of, request_of
from orchestrator.scheduling.unfit import left_out
from orchestrator.secrecy import exposed
from orchestrator.spec import JobSpec

MOST_ANSWERS = 1000


class Admission:
    """Asks the cluster as it would be with nothing on it."""

    def __init__(self, roster: Roster, surveys: Surveys, open_ray: str | None) -> None:
        """`open_ray`: why secrets are not safe on this Ray cluster, where they are not."""
        self._roster, self._surveys, self._open_ray = roster, surveys, open_ray
        self._answers_of: Topology | None = None
        self._answers: dict[Request, Placement | Rejection] = {}
        """What the empty cluster of that tree has for a request: many jobs ask for the same."""

    def check_fits(self, spec: JobSpec) -> None:
        """Raises Refused(3) for a node that is not there, Refused(5) where the job could never fit."""
        topology = self._roster.inventory.topology
        if unknown := sorted(set(spec.only) - topology.index.keys()):
            have = ", ".join(list(topology.index)[:8]) + (", ..." if len(topology.index) > 8 else "")
            raise Refused(3, f"only: no such node: {', '.join(unknown)}; the cluster has {have or 'none yet'}")
        if topology is not self._answers_of or len(self._answers) >= MOST_ANSWERS:
            self._answers_of, self._answers = topology, {}
        request = request_of(spec, topology)
        answer = self._answers.get(request)
        if answer is None:
            answer = self._answers[request] = at_best(request, topology)
        if isinstance(answer, Rejection):
            raise Refused(5, f"can never fit this cluster: {answer.reason}")

    async def check_requires(self, spec: JobSpec) -> dict[str, str]:
        """The nodes that the job cannot have, or not yet, and why. Raises Refused(5) where what is left could never hold it."""
        topology = self._roster.inventory.topology
        device = device_of(spec, topology)
        await self._surveys.settle_for(spec, device)
        fail, unknown = self._surveys.judge(spec, device)
        if fail and isinstance(place(request_of(spec, topology, exclude=fail), topology, topology.empty), Rejection):
            fit = len(topology.nodes) - len(fail)
            raise Refused(
                5,
                f"can never fit this cluster: {fit} of {len(topology.nodes)} nodes have what it requires; {left_out(fail)}",
            )
        return fail | unknown

    def notices(self, spec: JobSpec) -> list[str]:
        """What the submitter should know, though nothing is wrong with the job."""
        topology = self._roster.inventory.topology
        found = [str(notice) for notice in nccl_env.notices(spec.env)]
        for what in exposed(spec.env, spec.argv):
            found.append(f"{what}, and is kept with the run, where all can read it: name it under `secrets:` instead")
        if spec.secrets and self._open_ray is not None:
            found.append(f"secrets: {self._open_ray}")
        if spec.device == "auto" and device_of(spec, topology) == "cpu":
            found.append("device: auto takes the CPU here: no node of the cluster has a GPU")
        if spec.near is not None and not is_known(spec.near.level, topology):
            have = ", ".join(level for level in hint_levels(topology) if level != "cluster")
            # One node is inside any domain, whatever is known of the fabric.
            means = "so only one node will do" if spec.near.required else "so the wish is moot"
            found.append(f"near: this cluster has no level or label {spec.near.level!r}, {means}; it has {have}")
        return found
