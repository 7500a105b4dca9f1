"""What bandwidth a gang would see, and which link holds it back: NCCL's cost model over the machines it would run on.

A gang is summed up by four numbers for its worst node (`Links`), how many ranks and nodes it has, and the level of the
fabric that it spans. Bus bandwidth is nccl-tests' figure for an all-reduce of 1 GiB. The constants are NCCL's own
(`nccl_cost`); where they are not what machines reach, a factor from published measurements corrects them, and what was
measured on this cluster corrects both (`Measured`). docs/bandwidth-model.md compares the result with measurements.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date
from functools import lru_cache

from orchestrator.hardware.model import Nic, Shape, nvlinks
from orchestrator.placement import nccl_cost
from orchestrator.placement.nccl_cost import Graph

REFERENCE_BYTES = 1 << 30

NVLINK_REACHED = 0.94
"""Of NVLink's rate, what a ring of large messages reaches: 228 to 235 of 240 on A100, 110 to 113 of 120 on V100."""
NET_REACHED = 0.94
"""Of the NICs' rate: 380 of 400 Gb/s, 180 of 200."""
HOST_COPY_GB_S = 28.0
"""Through host memory, shared memory or a NIC without GPUDirect, whatever PCIe allows: 25 on PCIe 4, 28 on PCIe 5."""
SOCKET_GB_S = 4.0
"""One TCP connection fed by one NCCL thread: 3.6 and 4.2 measured. NCCL opens one per channel on a NIC."""
GLOO_GB_S = 1.0
"""Gloo between CPU ranks, on one host or over a fast network: 0.5 to 0.9 with 2 to 8 ranks."""
HOP_US = 1.0
"""What each level of switches between two nodes adds to a message."""

# What a machine of an age usually has, where its description does not say.
_USUAL_PCIE = {60: 3, 70: 3, 80: 4, 86: 4, 89: 4, 90: 5, 100: 5}
_USUAL_RDMA_GBPS = {60: 100.0, 70: 100.0, 80: 200.0, 90: 400.0, 100: 400.0}
_USUAL_SM = 80
_SM_BY_NVLINKS = {18: 90, 12: 80, 6: 70, 3: 70, 2: 70, 1: 70}
_SM_BY_MODEL = (
    (r"gb300|b300", 103), (r"gb200|b200|b100", 100), (r"gh200|h200|h100|h800|h20", 90),
    (r"l40s?|l4|rtx ?(4090|6000 ada)", 89),
    (r"a100|a800|a30\b", 80), (r"a10|a40|a6000|rtx ?30", 86), (r"t4|rtx ?20", 75), (r"v100", 70), (r"p100", 60),
)  # fmt: skip
_RDMA_NAME = re.compile(r"(mlx|efa|rdmap|bnxt_re|irdma|hfi|ib|roce|nic)[0-9_]*", re.IGNORECASE)


@dataclass(frozen=True)
class Figure:
    """What links of a class were measured to carry, over what the model says of them without measurements."""

    factor: float
    on: date
    """The newest measurement that it is from."""


Measured = Mapping[str, Figure]
"""By class of link. Inside a node by GPU model, kind of link and ranks: `H100/nvlink/8`. Between nodes by GPU model,
level and ranks on each node: `H100/between/leaf/8`. `CPU` for CPU ranks."""


@dataclass(frozen=True)
class Own:
    """How far one node stays behind others like it, as fractions of theirs."""

    inside: float = 1.0
    """Of what the ring through its GPUs carries."""
    between: float = 1.0
    """Of what its NICs have towards other nodes."""
    on: date | None = None


LIKE_OTHERS = Own()


def figure_of(measured: Measured, prefix: str, count: int | None) -> tuple[float, Figure | None]:
    """The factor for `count` ranks, and the figure that it is. Figures for other counts may lower it, never raise it."""
    exact = measured.get(f"{prefix}/{count}")
    if exact is not None:
        return exact.factor, exact
    others = [figure.factor for key, figure in measured.items() if key.rpartition("/")[0] == prefix]
    return min([1.0, *others]), None


@dataclass(frozen=True, order=True)
class Links:
    """What a part of a gang on one node has, GB/s in one direction; the worst of several parts is their elementwise
    minimum."""

    intra: float
    """What a ring through its GPUs carries; infinite for a single GPU."""
    nvls: float
    """What each of its GPUs has to an NVSwitch that can reduce by itself; 0 without one; infinite for a single GPU."""
    net: float
    """What its NICs have towards other nodes."""
    sm: int
    """Compute capability times ten; 0 for CPU ranks, which use Gloo."""
    factor: float = 1.0
    """What was measured inside such a node over what the model says; only a gang of one node is bound by it."""

    def worst(self, other: Links) -> Links:
        return Links(
            min(self.intra, other.intra),
            min(self.nvls, other.nvls),
            min(self.net, other.net),
            min(self.sm, other.sm),
            min(self.factor, other.factor),
        )

    def at_least(self, other: Links) -> bool:
        return (
            self.intra >= other.intra
            and self.nvls >= other.nvls
            and self.net >= other.net
            and self.sm >= other.sm
            and self.factor >= other.factor
        )


@dataclass(frozen=True)
class Span:
    """How far a gang reaches: over how many NCCL nodes, and what of the fabric lies between them."""

    nodes: int
    height: int = 0
    """Levels of the fabric that a message may climb; 0 inside one domain of the narrowest level."""
    parts: int = 1
    """Domains of the next narrower level that it touches: a ring crosses the widest level as often."""
    oversubscription: float = 1.0
    """What the nodes of a domain could send over what its uplinks carry."""
    level: str | None = None


@dataclass(frozen=True)
class Prediction:
    """Bus bandwidth of an all-reduce in GB/s, and the link that bounds it."""

    busbw: float
    limit: str
    """`nvlink`, `pcie`, `shm`, `host`, `net`, `fabric`, `gloo` or `none`."""


def sm_of(shape: Shape) -> int:
    """The lowest compute capability (times ten) of a shape's GPUs.

    From the model's name where it is not given, and from the number of NVLinks where neither is.
    """
    return min((gpu.sm or _sm_of_unnamed(shape, gpu.model) for gpu in shape.gpus), default=0)


def _sm_of_unnamed(shape: Shape, model: str | None) -> int:
    if model is not None:
        return sm_of_model(model)
    bonded = max((nvlinks(link) for _, _, link in shape.pairs()), default=0)
    return _SM_BY_NVLINKS.get(bonded, _USUAL_SM)


@lru_cache(maxsize=256)
def sm_of_model(model: str | None) -> int:
    for pattern, sm in _SM_BY_MODEL:
        if model and re.search(pattern, model, re.IGNORECASE):
            return sm
    return _USUAL_SM


def short_model(shape: Shape) -> str:
    """A GPU model's short name, as keys of `Measured` use it: `H100` for `NVIDIA H100 80GB HBM3`. `CPU` without GPUs."""
    if not shape.gpus:
        return "CPU"
    words = re.findall(r"[A-Za-z]*[0-9]+[A-Za-z0-9]*", shape.gpus[0].model or "")
    return words[0].upper() if words else "GPU"


def _usual(table: Mapping[int, float] | Mapping[int, int], sm: int) -> float:
    return table[max(known for known in table if known <= max(sm, 60))]


def is_rdma(nic: Nic) -> bool:
    return bool(nic.link_layer or nic.near or _RDMA_NAME.fullmatch(nic.name))


class ShapeLinks:
    """The links of one shape of machine, asked for by sets of its GPUs (bit i is the i-th GPU of `shape.gpus`)."""

    def __init__(self, shape: Shape, measured: Measured | None = None, own: Own = LIKE_OTHERS) -> None:
        self.shape, self.own = shape, own
        self.sm = sm_of(shape)
        self.model = short_model(shape)
        self._measured = measured or {}
        self._pcie = nccl_cost.pcie_gb_s(int(_usual(_USUAL_PCIE, self.sm)), 16)
        self._known: dict[int, Links] = {}
        self._nics = [nic for nic in shape.nics if nic.state in (None, "ACTIVE")]
        self._position = {gpu.index: position for position, gpu in enumerate(shape.gpus)}

    def of(self, mask: int) -> Links:
        """The links of the GPUs in `mask`; all zero bits of a machine without GPUs mean CPU ranks."""
        found = self._known.get(mask)
        if found is None:
            found = self._known[mask] = self._compute(mask)
        return found

    def _compute(self, mask: int) -> Links:
        own = self.own
        factor, _ = self.figure(mask)
        if not self.shape.gpus:
            return Links(GLOO_GB_S * own.inside, 0.0, min(GLOO_GB_S, self._net(0)[0]) * own.between, 0, factor)
        single = mask & (mask - 1) == 0
        intra, kind = (math.inf, "none") if single else self._intra(mask)
        nvls = math.inf if single else self._nvls() if kind == "nvlink" and self.shape.nvswitch else 0.0
        return Links(intra * own.inside, nvls * own.inside, self._net(mask)[0] * own.between, self.sm, factor)

    def intra_kind(self, mask: int) -> str:
        """nvlink, pcie or shm; gloo between CPU ranks, none for a single one."""
        if mask & (mask - 1) == 0:
            return "none"
        return self._intra(mask)[1] if self.shape.gpus else "gloo"

    def figure(self, mask: int) -> tuple[float, Figure | None]:
        """What was measured inside such a node, over the model; and the figure, where it is for as many ranks."""
        if mask & (mask - 1) == 0:
            return 1.0, None
        return figure_of(self._measured, f"{self.model}/{self.intra_kind(mask)}", mask.bit_count())

    def nic_text(self, mask: int) -> str:
        """The NICs that a part uses, in words: `400 Gb/s x 8`."""
        return self._net(mask)[1]

    def in_clique(self, links: Links) -> Links:
        """The same links where NVLink goes on to other nodes: then a lone GPU of a node has its NVLinks too."""
        if not math.isinf(links.intra):
            return links
        count = max((nvlinks(link) for _, _, link in self.shape.pairs()), default=18)
        channels, speed = nccl_cost.search_channels(nccl_cost.nvlink_gb_s(self.sm, count), self.sm)
        return replace(links, intra=channels * speed * NVLINK_REACHED, nvls=self._nvls())

    def _nvls(self) -> float:
        links = max((nvlinks(link) for _, _, link in self.shape.pairs()), default=0)
        return nccl_cost.nvlink_gb_s(self.sm, links) if self.sm >= 90 else 0.0

    def _intra(self, mask: int) -> tuple[float, str]:
        members = [gpu.index for position, gpu in enumerate(self.shape.gpus) if mask >> position & 1]
        rings = self._nvlink_rings(members)
        if rings:
            available = nccl_cost.nvlink_gb_s(self.sm, rings)
            channels, speed = nccl_cost.search_channels(available, self.sm)
            return channels * speed * NVLINK_REACHED, "nvlink"
        return self._without_nvlink(members)

    def _nvlink_rings(self, members: Sequence[int]) -> int:
        """How many NVLinks' worth of rings go through all of `members`; 0 where NVLink does not join them in a ring."""
        first, *rest = members
        shape = self.shape
        count = {(a, b): nvlinks(shape.link(a, b)) for a in members for b in members if a != b}
        if shape.nvswitch or len(members) == 2:
            return min(count.values())
        if len(members) > 8:
            return (
                min(sum(count[a, b] for b in members if b != a) for a in members)
                if all(any(count[a, b] for b in members if b != a) for a in members)
                else 0
            )
        cycles = []
        for order in itertools.permutations(rest):
            if order[0] < order[-1]:  # each cycle once, not also backwards
                ring = (first, *order, first)
                edges = list(itertools.pairwise(ring))
                if all(count[edge] for edge in edges):
                    cycles.append(edges)
        found = 0
        while cycles:
            edges = max(cycles, key=lambda c: (-sum(1 / count[e] for e in c),))
            for a, b in edges:
                count[a, b] -= 1
                count[b, a] -= 1
            found += 2  # one ring each way round
            cycles = [c for c in cycles if all(count[e] > 0 for e in c)]
        return found

    def _without_nvlink(self, members: Sequence[int]) -> tuple[float, str]:
        """A ring over PCIe crosses the worst pair's kind of link, however it is laid."""
        words = {self.shape.link(a, b) or "PHB" for a, b in itertools.combinations(members, 2)}
        pcie_words = {word for word in words if not nvlinks(word)} or {"PHB"}
        blocked = any(self.shape.peer(a, b) not in (None, "OK") for a, b in itertools.combinations(members, 2))
        if pcie_words <= {"PIX", "PXB"} and not blocked:
            return self._pcie, "pcie"
        # NCCL's default lets GPUs talk directly only below a host bridge; everything else goes through shared memory.
        through = min(self._pcie, HOST_COPY_GB_S)
        if "SYS" in pcie_words:
            through = min(through, nccl_cost.SMP_GB_S["amd"])
        return through, "shm"

    def _net(self, mask: int) -> tuple[float, str]:
        """GB/s towards other nodes, with the words for it: the NICs next to the chosen GPUs, all of them where none
        is."""
        members = {gpu.index for position, gpu in enumerate(self.shape.gpus) if mask >> position & 1}
        rdma = [nic for nic in self._nics if is_rdma(nic)]
        near = [nic for nic in rdma if members & set(nic.near)]
        used = near or rdma or self._nics
        usual = _usual(_USUAL_RDMA_GBPS, self.sm) if rdma else nccl_cost.UNKNOWN_NIC_GBPS
        rates = [nic.rate_gbps or usual for nic in used] or [nccl_cost.UNKNOWN_NIC_GBPS]
        total = sum(rates) / 8 * NET_REACHED
        if not rdma:
            total = sum(min(rate / 8 * NET_REACHED, SOCKET_GB_S) for rate in rates)
        elif not near:
            total = min(total, HOST_COPY_GB_S)
        text = f"{rates[0]:g} Gb/s x {len(rates)}" if len(set(rates)) == 1 else f"{sum(rates):g} Gb/s in all"
        if not used or any(nic.rate_gbps is None for nic in used):
            text += " (rate not known)"
        return total, text if rdma else f"TCP over {text}"


@lru_cache(maxsize=65536)
def allreduce_time_us(size_bytes: int, links: Links, ranks: int, span: Span) -> float:
    """Microseconds for an all-reduce of `size_bytes` by the best of NCCL's algorithms. 0 for a single rank."""
    if ranks < 2:
        return 0.0
    net = links.net / span.oversubscription if span.nodes > 1 else math.inf
    hops_us = 2 * HOP_US * (span.height + (span.parts if span.parts > 1 else 0)) if span.nodes > 1 else 0.0
    if not links.sm:
        bus = min(links.intra, net)
        return hops_us + 500.0 + size_bytes * nccl_cost.busbw_factor(ranks) / (bus * 1000)
    if math.isinf(links.intra):
        # One GPU a node: the ring is all network.
        ring = tree = Graph(nccl_cost.search_channels(net, links.sm)[0], net, net)
        ring = tree = replace(ring, bw_intra=net / ring.channels, bw_inter=net / ring.channels)
    else:
        channels, _ = nccl_cost.search_channels(links.intra / NVLINK_REACHED, links.sm)
        # A ring over PCIe or shared memory pays PCIe's latencies; NVLink is what is faster than either.
        nvlink = links.intra > 48.0
        ring = Graph(channels, links.intra / channels, net / channels, nvlink)
        gpus = max(2, ranks // span.nodes)
        tree = replace(ring, bw_intra=ring.bw_intra * gpus / (gpus - 1))
    nvls = None
    if links.nvls and not math.isinf(links.nvls) and ranks // span.nodes > 2:
        nvls = nccl_cost.nvls_graph(links.nvls, net, links.sm)
    cells = nccl_cost.table(ring, tree, nvls, ranks=ranks, nodes=span.nodes, capability=links.sm)
    return min(hops_us + c.latency_us + size_bytes / (c.algbw * 1000) for c in cells.values() if c.algbw > 0)


@lru_cache(maxsize=65536)
def predict(links: Links, ranks: int, span: Span, between: float | None = None) -> Prediction:
    """Bus bandwidth of the gang whose worst node has `links`. A single rank reduces with nobody: infinite, limit
    `none`.

    `between` is what was measured between such nodes, over the model; None for a gang of one node.
    """
    if ranks < 2:
        return Prediction(math.inf, "none")
    time_us = allreduce_time_us(REFERENCE_BYTES, links, ranks, span)
    busbw = REFERENCE_BYTES * nccl_cost.busbw_factor(ranks) / (time_us * 1000)
    factor = links.factor if between is None else between
    return Prediction(busbw * factor, _limit(links, ranks, span, time_us))


def _limit(links: Links, ranks: int, span: Span, time_us: float) -> str:
    """The kind of link whose doubling would help: the network, the fabric above it, or the node's inside."""
    if not links.sm:
        return "gloo"
    if span.nodes > 1:
        faster = allreduce_time_us(REFERENCE_BYTES, replace(links, net=links.net * 2), ranks, span)
        if faster < time_us * 0.98:
            return "fabric" if span.oversubscription > 1 else "net"
    return "intra"
