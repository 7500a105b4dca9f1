"""What transport NCCL took: its log as one value, however many ranks wrote it and in whatever order.

    log = read(chain.from_iterable(open(path, errors="replace") for path in paths))
    log.links        # {"P2P/NVLink": 24}
    log.worst        # "P2P"

Only lines that tell of a link say what is used: `Using network IB` names what would be. From NCCL 2.22 on links are made,
and printed, at the first collective: a log without any says nothing about transport.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from orchestrator.health.nccl_fabric import Islands
from orchestrator.health.nccl_tuning import TuningCell

_ORDER = ("NVLS", "P2P", "SHM", "COLLNET", "NET/IB", "NET/", "NET/FastSocket", "NET/Socket")
"""From the best transport to the worst; `NET/` stands for every plugin that is not named."""
_SHOWN = ("P2P", "SHM", "NET/IB", "NET/Socket", "NET/", "NVLS", "COLLNET")


@dataclass(frozen=True)
class Link:
    """What joins two ranks, counted in the channels that it serves."""

    ranks: tuple[int, int]
    """The lower first. A log of several communicators numbers the ranks in each of them from 0."""
    hosts: tuple[str | None, str | None]
    """Where the two are, as far as the log tells."""
    kind: str
    """P2P/NVLink, P2P/PCIe, P2P (one of them), SHM, NET/IB/GDRDMA, NET/IB, NET/Socket, NET/<plugin>, ..."""
    channels: int

    @property
    def transport(self) -> str:
        return self.kind.removesuffix("/GDRDMA") if self.kind.startswith("NET/") else self.kind.partition("/")[0]


@dataclass(frozen=True)
class NcclLog:
    """What the log of one job says. Fields that it does not tell are None, 0 or empty."""

    lines: int = 0
    """Messages of NCCL that were read."""
    library: str = "NCCL"
    """NCCL or RCCL."""
    version: str | None = None
    """The version that most lines give."""
    versions: tuple[str, ...] = ()
    ranks: int = 0
    """Of the largest communicator; where no line says it, as many as the links show."""
    nodes: int = 0
    """As NCCL counts them, from 2.19 on: processes that reach each other only over the network are on different nodes."""
    communicator_sizes: tuple[int, ...] = ()
    hosts: tuple[str, ...] = ()
    rank_hosts: tuple[tuple[int, str], ...] = ()
    found: tuple[Link, ...] = ()
    """The links, by rank; a plugin's collectives (COLLNET) join a rank to the switch and stand as (rank, rank)."""
    channels: int | None = None
    nvls_channels: int = 0
    nvls: bool = False
    """NCCL reduces inside NVSwitch."""
    network: tuple[str, ...] = ()
    """What `Using network` named: what would be used between nodes."""
    pxn: bool | None = None
    """Whether ranks go through another GPU's adapter."""
    connected: tuple[str, ...] = ()
    """What was connected whole: rings, trees, binomial trees, NVLS, CollNet. From 2.22 on only what a collective has used."""
    adapters: tuple[tuple[str, tuple[str, ...]], ...] = ()
    """By host: the adapters that NCCL's IB transport found, such as `mlx5_0:1/RoCE`."""
    no_adapter: tuple[str, ...] = ()
    """Hosts on which NCCL's IB transport found none."""
    interfaces: tuple[str, ...] = ()
    """Network interfaces of the socket transport and of the bootstrap."""
    gdr_refused: tuple[tuple[str, int], ...] = ()
    """Why GPUDirect RDMA is not used, with the number of lines: `module`, `distance`, `adapter`."""
    algorithms: tuple[tuple[str, int], ...] = ()
    """What collectives ran with, such as `AllReduce RING SIMPLE`, and how often."""
    environment: tuple[tuple[str, tuple[str, ...]], ...] = ()
    """Variables that NCCL says were set, with every value seen."""
    warnings: tuple[tuple[str, int], ...] = ()
    """What NCCL warned of, the most frequent first, and how often."""
    notes: tuple[str, ...] = ()
    """Telling remarks among the other lines: `p2p refused`, `ib failed`, ..."""
    tuning: tuple[TuningCell, ...] = field(default=(), compare=False)
    """NCCL's own expectation; needs lines in order, unlike everything else."""

    @property
    def links(self) -> dict[str, int]:
        """How many links there are of each kind. Two ranks that are joined on one channel are one link: either direction,
        and both ends' lines, count once."""
        counts: Counter[str] = Counter()
        for link in self.found:
            counts[link.kind] += link.channels
        return dict(sorted(counts.items(), key=lambda item: (_place(item[0], _SHOWN), item[0])))

    @property
    def transports(self) -> tuple[str, ...]:
        """Every transport that a link uses: P2P, SHM, NET/IB, NET/Socket, NET/<plugin>, NVLS, COLLNET."""
        names = {link.transport for link in self.found} | ({"NVLS"} if self.nvls else set())
        return tuple(sorted(names, key=lambda name: (_place(name, _SHOWN), name)))

    @property
    def worst(self) -> str | None:
        """The slowest of the transports; None where the log shows no link."""
        return max(self.transports, key=lambda name: (_place(name, _ORDER), name), default=None)

    @property
    def gdr(self) -> bool | None:
        """Whether every link over the network goes straight to the GPU's memory (GPUDirect RDMA): False where none goes over
        the network, None where the log shows no link."""
        if not self.transports:
            return None
        net = [link for link in self.found if link.kind.startswith(("NET/", "COLLNET"))]
        return bool(net) and all(link.kind.endswith("/GDRDMA") for link in net)

    @property
    def one_host_counted_apart(self) -> bool:
        """Whether NCCL counts more nodes than there are hosts, every rank's host being known."""
        return len(self.rank_hosts) == self.ranks > 0 and self.nodes > len({host for _, host in self.rank_hosts})

    @property
    def env(self) -> dict[str, str]:
        """The variables with one value each (the first by name where ranks differ)."""
        return {name: values[0] for name, values in self.environment}


def _place(name: str, order: tuple[str, ...]) -> int:
    name = name.removesuffix("/GDRDMA")
    if name.startswith("NET/"):
        return order.index(name if name in order else "NET/")
    return order.index(name.partition("/")[0])


def read(lines: Iterable[str], islands: Islands | None = None) -> NcclLog:
    """Reads a log, one line at a time; several ranks' files are read one after the other.

    `islands` says which GPUs of a host NVLink joins, where the log itself cannot tell P2P over NVLink from P2P over PCIe.
    Never raises for what a line holds.
    """
    from orchestrator.health.nccl_reader import Reader

    reader = Reader()
    for line in lines:
        reader.line(line)
    return reader.log(islands)


def to_json(log: NcclLog) -> dict[str, Any]:
    """What `orch doctor --nccl-log FILE --json` prints."""
    return {
        "version": log.version,
        "ranks": log.ranks,
        "nodes": log.nodes,
        "links": log.links,
        "transports": list(log.transports),
        "gdr": log.gdr,
        "worst": log.worst,
    }
