"""Which variables of NCCL and of torch's NCCL backend a rank is started with: few, exact, and failing closed.

NCCL's documentation says of its debugging switches that they should not be used in production; so only what discovery
knows better than NCCL's defaults is set. What the job sets itself wins, with a Notice where that is known to slow,
break or hide things.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from orchestrator.hardware.model import Nic
from orchestrator.health.reading import SUBSYSTEMS
from orchestrator.placement.bandwidth import is_rdma

RAS_FIRST_PORT, RAS_PORTS = 28100, 1900
"""Where per-job RAS ports are taken from; NCCL's own default, 28028, is shared by all jobs of a node and clashes."""
_MAX_HCAS = 32


@dataclass(frozen=True)
class NodeFacts:
    """What one node of the gang says of its network."""

    name: str
    interface: str | None = None
    """The interface that the other nodes reach it by, exactly: `eth0`."""
    nics: tuple[Nic, ...] = ()
    """The adapters that training may use: none for storage or management."""
    distinct_hostname: bool = True
    """False where ranks of one host see different host names (one container each): then NCCL must be told they are one
    host."""
    host_id: str | None = None
    """What tells this host from all others: its boot id."""
    cpus_pinned: bool = True
    """Whether ranks are started on the CPUs of their GPU, so that NCCL need not look for them among others."""


@dataclass(frozen=True)
class Notice:
    """What the user should know of a variable that the job sets itself."""

    variable: str
    text: str

    def __str__(self) -> str:
        return f"{self.variable}: {self.text}"


@dataclass(frozen=True)
class RankEnvironment:
    """The variables of the ranks on one node, and what to say of them."""

    variables: dict[str, str]
    notices: tuple[Notice, ...] = ()


def ras_port(run: int, attempt: int) -> int:
    """A port for this attempt's RAS: neighbours in number never share one."""
    return RAS_FIRST_PORT + (run * 7 + attempt) % RAS_PORTS


def rank_environment(
    node: NodeFacts,
    gang: Sequence[NodeFacts],
    *,
    run: int,
    attempt: int,
    rdma_promised: bool,
    nvlink_between_nodes: bool = False,
    tell_links: bool = False,
    job: Mapping[str, str] | None = None,
) -> RankEnvironment:
    """The variables for the ranks on `node` of `gang`.

    `rdma_promised` says that the placement's bandwidth counts on RDMA: then NCCL must fail rather than fall back to
    TCP. `tell_links`: NCCL says what links it makes, in a log whose place the node's agent chooses. `job` is what the job sets
    itself.
    """
    several = len(gang) > 1
    found: dict[str, str] = {
        "NCCL_DEBUG": "INFO" if tell_links else "WARN",
        "NCCL_RAS_ADDR": f"localhost:{ras_port(run, attempt)}",
        "TORCH_NCCL_ASYNC_ERROR_HANDLING": "3",
        "TORCH_NCCL_DUMP_ON_TIMEOUT": "1",
        "TORCH_NCCL_ENABLE_MONITORING": "1",
    }
    if tell_links:
        found["NCCL_DEBUG_SUBSYS"] = SUBSYSTEMS
    if node.cpus_pinned:
        found["NCCL_IGNORE_CPU_AFFINITY"] = "1"
    if node.interface is not None:
        # Without `=` the value is a prefix, and eth1 would bring eth10 along.
        found["NCCL_SOCKET_IFNAME"] = f"={node.interface}"
        found["GLOO_SOCKET_IFNAME"] = node.interface
    if not node.distinct_hostname and node.host_id is not None:
        found["NCCL_HOSTID"] = node.host_id
    if several:
        found |= _network(node, gang, rdma_promised)
        if nvlink_between_nodes:
            found["NCCL_MNNVL_ENABLE"] = "1"
    own = dict(job or {})
    return RankEnvironment(found | own, notices(own, found))


def _network(node: NodeFacts, gang: Sequence[NodeFacts], rdma_promised: bool) -> dict[str, str]:
    rdma = [nic for nic in node.nics if is_rdma(nic) and nic.state in (None, "ACTIVE")]
    found = {}
    if rdma:
        # Without `=` mlx5_1 would also match mlx5_10 to mlx5_19.
        found["NCCL_IB_HCA"] = "=" + ",".join(f"{nic.name}:{nic.port}" for nic in rdma[:_MAX_HCAS])
        if len({_hcas(facts) for facts in gang}) == 1:
            # Nodes with different adapters initialise and then spin for ever; where they are alike, a difference is a
            # fault.
            found["NCCL_IGNORE_NET_MISMATCH"] = "0"
        if rdma_promised and all(nic.link_layer for nic in rdma):
            found["NCCL_NET"] = "IB"
    return found


def _hcas(facts: NodeFacts) -> tuple[tuple[str, int, float | None], ...]:
    return tuple((nic.name, nic.port, nic.rate_gbps) for nic in facts.nics if is_rdma(nic))


def _is(*values: str) -> Callable[[str], bool]:
    return lambda value: value.strip().upper() in values


def _always(_: str) -> bool:
    return True


_HAZARDS: tuple[tuple[str, Callable[[str], bool], str], ...] = (
    ("NCCL_P2P_DISABLE", _is("1"), "keeps GPUs off NVLink and PCIe: 12 times slower on two H200; for diagnosis only"),
    ("NCCL_SHM_DISABLE", _is("1"), "sends ranks of a node over the network without need; for diagnosis only"),
    ("NCCL_IB_DISABLE", _is("1"), "makes nodes talk over TCP, ten or more times slower than RDMA; for diagnosis only"),
    ("NCCL_NVLS_ENABLE", _is("0"), "stops NVSwitch from reducing: a fifth slower; right only without multicast"),
    ("NCCL_ALGO", _always, "forces an algorithm on every size and collective; a collective that lacks it fails"),
    ("NCCL_PROTO", _always, "forces a protocol; LL128 on hardware that it does not suit corrupts data"),
    ("NCCL_NET_GDR_LEVEL", _is("SYS", "5"), "makes NICs read GPUs across sockets, slower than through host memory"),
    ("NCCL_P2P_LEVEL", _always, "replaces NCCL's own limit for direct access between GPUs"),
    ("NCCL_IB_GID_INDEX", _always, "breaks where GID tables differ; since 2.21 NCCL finds the right one by itself"),
    ("NCCL_GRAPH_FILE", _always, "makes NCCL use rings recorded elsewhere, on whatever GPUs the run gets"),
    ("NCCL_TOPO_FILE", _always, "makes NCCL believe a file about the machine; right only with a cloud's own in its VM"),
    ("NCCL_HOSTID", _always, "makes two hosts that share it one, and ranks of one host that differ in it two"),
    ("NCCL_IGNORE_NET_MISMATCH", _is("1"), "lets nodes with different adapters wait for each other for ever"),
    ("NCCL_LAUNCH_MODE", _always, "is a debugging switch of NCCL"),
    ("NCCL_IB_TIMEOUT", _always, "changes how long a broken link stays unnoticed: each step doubles it"),
    ("TORCH_NCCL_BLOCKING_WAIT", _is("1", "TRUE"), "makes every collective wait on the CPU"),
    ("TORCH_NCCL_ASYNC_ERROR_HANDLING", _is("0"), "lets a rank whose peer died hang instead of ending"),
    ("TORCH_NCCL_ENABLE_TIMING", _is("1"), "raises the chance that torch's watchdog hangs"),
    ("TORCH_NCCL_ENABLE_MONITORING", _is("0"), "lets a hung watchdog go unnoticed"),
    ("TORCH_FR_BUFFER_SIZE", _is("0"), "switches the flight recorder off: a hang cannot be explained"),
    ("CUDA_LAUNCH_BLOCKING", _is("1"), "makes every kernel wait for the one before"),
    ("CUDA_VISIBLE_DEVICES", _always, "is what gives each rank its GPU; the job's value may name GPUs of another run"),
)  # fmt: skip


def notices(job: Mapping[str, str], ours: Mapping[str, str] | None = None) -> tuple[Notice, ...]:
    """What to say of the variables that a job sets itself: hazards first in the order of the table, then overridden
    facts."""
    found = [Notice(name, text) for name, bad, text in _HAZARDS if name in job and bad(job[name])]
    named = {notice.variable for notice in found}
    for name, value in _inexact(job):
        found.append(Notice(name, f"without a leading `=` {value!r} is a prefix, and also matches longer names"))
        named.add(name)
    for name, value in (ours or {}).items():
        if name in job and name not in named and job[name] != value and not name.startswith("NCCL_DEBUG"):
            found.append(Notice(name, f"the job's {job[name]!r} replaces {value!r}, which discovery found"))
    return tuple(found)


def _inexact(job: Mapping[str, str]) -> Iterable[tuple[str, str]]:
    for name in ("NCCL_SOCKET_IFNAME", "NCCL_IB_HCA"):
        if name in job and job[name] and not job[name].startswith(("=", "^=")):
            yield name, job[name]
