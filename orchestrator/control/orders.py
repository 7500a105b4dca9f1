"""What the agents of a gang's nodes are told to start: ranks, environment, network, where to meet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from orchestrator.control.backend import RankStart, StartPart
from orchestrator.control.gang import Gang
from orchestrator.control.roster import Roster
from orchestrator.control.runtime import Runtime
from orchestrator.control.trackers import run_key
from orchestrator.health.reading import Reading, reading
from orchestrator.placement.bandwidth import is_rdma
from orchestrator.placement.nccl_env import NodeFacts, rank_environment
from orchestrator.scheduling.run import Run
from orchestrator.spec import JobSpec


class Orders:
    """Made from what the nodes have told of themselves."""

    def __init__(self, runtime: Runtime, roster: Roster, secrets: Mapping[int, Mapping[str, str]]) -> None:
        self._runtime, self._roster, self._secrets = runtime, roster, secrets

    def parts(self, gang: Gang, run: Run, address: str, port: int) -> list[StartPart]:
        """What the agents of the gang's nodes are told to start, in the order of the placement."""
        facts = [self._network_of(node.node) for node in gang.placement.nodes]
        return [self._part(gang, run, facts, rank, address, port) for rank in range(len(facts))]

    def _part(
        self, gang: Gang, run: Run, facts: Sequence[NodeFacts], node_rank: int, address: str, port: int
    ) -> StartPart:
        settings, spec, source, key = self._runtime.settings, gang.spec, reading_of(gang).source, run_key(run)
        part = gang.placement.nodes[node_rank]
        communication = rank_environment(
            facts[node_rank],
            facts,
            run=gang.run,
            attempt=gang.attempt,
            # Where every node can, the bandwidth that placed the gang counts on it: NCCL must not fall back in silence.
            rdma_promised=all(any(map(is_rdma, node.nics)) for node in facts),
            nvlink_between_nodes=gang.placement.level == "nvlink",
            tell_links=source == "file",
            job=spec.env,
        )
        env = {"ORCH_BACKEND": _backend_of(spec, gang.placement.device)} | communication.variables
        # The same on every attempt, as the checkpoint's folder is: trackers continue where they were.
        env["ORCH_RUN_KEY"] = key
        env["ORCH_TENSORBOARD_DIR"] = str(settings.storage / "tensorboard" / key)
        if (folder := self.checkpoint_folder(run)) is not None:
            env["ORCH_CHECKPOINT_DIR"] = folder
        return StartPart(
            run=gang.run,
            attempt=gang.attempt,
            argv=tuple(spec.argv),
            python=spec.python,
            code=run.code.sha256 if run.code else None,
            env=env,
            secrets=dict(self._secrets.get(run.id, {})),
            device=gang.placement.device,
            ranks=tuple(RankStart(r, i, g) for i, (r, g) in enumerate(zip(part.ranks, part.gpus, strict=True))),
            world_size=gang.world_size,
            node_rank=node_rank,
            master_addr=address,
            master_port=port,
            lease_s=settings.lease_s,
            log_limit=settings.log_limit,
            max_restarts=max(gang.attempt - 1, spec.retry.infra + spec.retry.user),
            cudnn=spec.cudnn.model_dump() if spec.cudnn else None,
            nccl_log=source,
            throughput=dict(spec.throughput),
        )

    def checkpoint_folder(self, run: Run) -> str | None:
        """The same on every attempt, and no other run's. An absolute path is the user's own choice."""
        if run.spec.checkpoint is None:
            return None
        return str(self._runtime.settings.storage / "checkpoints" / str(run.id) / run.spec.checkpoint)

    def _network_of(self, node: str) -> NodeFacts:
        known = self._roster.nodes[node]
        probed = known.info.get("node")
        return NodeFacts(
            node,
            interface=known.info.get("interface"),
            nics=() if probed is None else probed.nics,
            host_id=known.info.get("boot_id"),
            cpus_pinned=bool(known.info.get("pins_cpus")),
        )


def reading_of(gang: Gang) -> Reading:
    """Where NCCL's log of the gang is read."""
    return reading(gang.placement.device, gang.spec.backend, gang.world_size, gang.spec.env)


def _backend_of(spec: JobSpec, device: str) -> str:
    if spec.backend != "auto":
        return spec.backend
    return "nccl" if device == "cuda" else "gloo"
