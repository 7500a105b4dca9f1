"""What the controller needs of a cluster, as protocols: nodes that come and go, holds, and an agent on each node."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from orchestrator.control.gpu_usage import GpuUse
from orchestrator.control.rank_progress import RankProgress
from orchestrator.control.shared_folder import FolderLook, Tokens
from orchestrator.control.survey import Surveyed
from orchestrator.health.evidence import RankEnd, Xid
from orchestrator.health.nccl_log import NcclLog
from orchestrator.health.stacks import RankStack
from orchestrator.health.vitals import Vitals
from orchestrator.placement.values import Device


@dataclass(frozen=True)
class NodeFacts:
    """A node as the cluster shows it."""

    name: str
    id: str
    """Changes when the node joins anew; the name does not."""
    address: str
    device: Device
    total: int
    """GPUs, or CPU slots on a node without GPU."""
    head: bool = False
    labels: dict[str, str] = field(default_factory=dict)
    foreign: int = 0
    """How many of `total` other work of the cluster holds at this moment."""


@dataclass(frozen=True)
class RankStart:
    """One rank as an agent is told to start it. `env` holds what is the same for no two ranks."""

    rank: int
    local_rank: int
    gpu: int


@dataclass(frozen=True)
class StartPart:
    """A gang's part on one node: everything the agent needs to start it. Idempotent by (run, attempt)."""

    run: int
    attempt: int
    argv: tuple[str, ...]
    python: str | None
    code: str | None
    """sha256 of the snapshot."""
    env: dict[str, str]
    secrets: dict[str, str] = field(repr=False)
    device: Device
    ranks: tuple[RankStart, ...]
    world_size: int
    node_rank: int
    master_addr: str
    master_port: int
    """0: the agent picks a free one and holds it; allowed where the gang is on one node."""
    lease_s: float
    log_limit: int
    max_restarts: int = 0
    """How many attempts may follow the first."""
    cudnn: dict[str, bool | None] | None = None
    """benchmark and deterministic, to be set before the script's first line."""
    nccl_log: Literal["file", "output"] | None = None
    """Where NCCL tells of its links: in a file for each process, which the agent chooses, or in what the ranks print."""
    throughput: dict[str, str] = field(default_factory=dict)
    """Patterns by name that rank 0's log is read with."""

    @property
    def key(self) -> str:
        return f"{self.run}.{self.attempt}"


@dataclass(frozen=True)
class LogChunk:
    """Bytes [offset, offset+len(data)) of one rank's log; `tail` once the log is over its limit and only its end is sent."""

    run: int
    attempt: int
    rank: int
    offset: int
    data: bytes
    at: float
    """Unix seconds by the node's clock when the bytes were read."""
    tail: bool = False
    file: str | None = None
    """Another file than the rank's own log: `nccl-3.4711.log`, what NCCL said in process 4711 of rank 3."""


@dataclass(frozen=True)
class PartStatus:
    """What an agent knows of its part of an attempt."""

    run: int
    attempt: int
    ranks: dict[int, int | None]
    """By rank: None while it lives, else its exit status, or minus the signal."""
    ended: bool
    """Every rank is reaped, nothing of the attempt is left on the node, and its log is shipped."""
    master_port: int = 0
    lease_expired: bool = False
    launcher_lost: bool = False
    """The launcher ended and its ranks with it; how they ended is not known."""
    at: float = 0.0
    """When this was so: seconds since the node's boot, as all times of `ends` and `xids`."""
    ends: dict[int, RankEnd] = field(default_factory=dict)
    """By rank: what was seen of its end."""
    xids: tuple[Xid, ...] = ()
    """What the part's GPUs told the kernel's log since it began."""
    nccl: NcclLog | None = None
    """What NCCL told of the links of this node's ranks, once the first collective has connected or no more will come. Said
    until a report with it was acknowledged."""


@dataclass(frozen=True)
class GpuLook:
    """What a GPU was doing at one moment, while a run had it."""

    run: int
    attempt: int
    gpu: int
    use: GpuUse


@dataclass(frozen=True)
class Report:
    """An agent's answer to sync."""

    sequence: int
    parts: tuple[PartStatus, ...]
    logs: tuple[LogChunk, ...] = ()
    info: dict[str, Any] | None = None
    """Hardware and versions, `host` (NodeFacts) and `interpreters` among them; sent when they are new to the controller."""
    gpus: tuple[GpuLook, ...] = ()
    """Looks at GPUs since the report before."""
    progress: tuple[RankProgress, ...] = ()
    """The newest look at each rank: counters from its beginning on, so that nothing is lost with a report."""
    vitals: Vitals | None = None
    """How the node is, after each look at it."""
    clock: tuple[float, float] | None = None
    """Unix seconds by the node's clock when it heard the question and when it gave this answer."""


class StaleController(Exception):
    """An agent has heard of a newer controller than the caller."""


class HoldRefused(Exception):
    """The cluster did not give the node's GPUs: other work holds some of them."""


class AgentGone(Exception):
    """The agent, or its whole node, could not be reached: not known yet which, nor whether its ranks live."""


class ClusterLost(AgentGone):
    """The cluster's head does not answer: which nodes there are is not known, and no new one can be reached."""


class Agent(Protocol):
    """The calls that the controller makes to a node's agent. Any may raise AgentGone or StaleController."""

    async def sync(self, epoch: int, ack: int, lease_s: float, wait_s: float) -> Report: ...
    async def check(self, epoch: int, gpus: tuple[int, ...]) -> tuple[str, ...]:
        """What keeps the node from starting ranks on these GPUs at this moment, in sentences; milliseconds."""

    async def reserve_port(self, epoch: int, run: int, attempt: int) -> int: ...
    async def start(self, epoch: int, part: StartPart) -> PartStatus: ...
    async def stop(self, epoch: int, run: int, attempt: int, grace_s: float) -> None: ...
    async def forget(self, epoch: int, run: int, attempt: int) -> None: ...
    async def stacks(self, epoch: int, run: int, attempt: int, whole: bool) -> tuple[RankStack, ...]:
        """Where the node's ranks of the attempt stand; within 20 s. `whole`: with native frames, and torch's flight recorder."""

    async def survey(self, epoch: int, python: str | None, look: bool) -> Surveyed:
        """What the node is, and what the interpreter brings; where that was not asked yet, its answer comes with a later sync.

        `look`: looks at the machine now, which takes a moment; else what the last look saw will do.
        """

    async def checkpoint_folder(self, epoch: int, folder: str, tokens: Tokens) -> FolderLook:
        """What the node finds in the folder, which is made; a few seconds where it waits for a token."""

    async def close(self, epoch: int) -> None: ...


class Backend(Protocol):
    """The cluster. Any call may raise ClusterLost, and none waits long for a head that is away."""

    async def nodes(self) -> list[NodeFacts]: ...
    def is_dead(self, node: NodeFacts) -> bool:
        """Whether the cluster, when it was asked for its nodes last, said that this one is dead: it comes back under no such id."""

    async def agent(self, node: NodeFacts) -> Agent: ...
    async def hold(self, node: NodeFacts) -> None:
        """Takes all of the node's GPUs (or CPU slots) from the cluster; idempotent. Raises HoldRefused."""

    async def release(self, node_name: str) -> None: ...


class StartFailed(Exception):
    """An agent could not start its part, says why, and has left nothing running."""
