"""What NCCL itself expects an all-reduce to cost: the constants of its tuning model, and its table of algorithms.

NCCL chooses between ring, tree and NVLS by a table that it computes when a communicator is made, one latency and one
bandwidth for each algorithm and protocol (NCCL_DEBUG_SUBSYS=TUNING prints it). This is that computation, with the
constants of NCCL 2.27 to 2.30 (src/graph/topo.h, search.cc, tuning.cc), in its units: GB/s and microseconds, bandwidths
in one direction.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

Algorithm = Literal["ring", "tree", "nvls"]
Protocol = Literal["LL", "LL128", "Simple"]

NVLINK_GB_S = {60: 18.0, 70: 20.0, 80: 20.0, 86: 12.0, 90: 20.6, 100: 40.1}
"""One NVLink, one direction, by the compute capability it came with."""

_PCIE_MBPS = {1: 15, 2: 30, 3: 60, 4: 120, 5: 240, 6: 480}
SMP_GB_S = {"bdw": 6.0, "skl": 10.0, "spr": 22.0, "erp": 40.0, "amd": 16.0, "arm": 6.0, "p9": 32.0, "unknown": 10.0}
"""Between the two sockets of a host, by processor."""
UNKNOWN_NIC_GBPS = 10.0
"""What NCCL assumes of a network interface whose speed it cannot read."""

_PROTOCOLS: tuple[Protocol, ...] = ("LL", "LL128", "Simple")
_BASE_US = {"tree": (6.8, 14.0, 8.4), "ring": (6.6, 14.0, 8.4)}
_NVLINK_US = {"tree": (0.6, 1.25, 4.0), "ring": (0.6, 1.9, 3.4)}
_PCI_US = {"tree": (1.0, 1.9, 4.0), "ring": (1.0, 2.5, 5.7)}
_NET_US = {"tree": (5.0, 8.5, 14.0), "ring": (2.7, 4.0, 14.0)}
_NVLS_US, _NVLS_TREE_NET_US = 25.0, 14.0
_RING_PLATEAU = 1.4

# Rows: Volta, Ampere, Hopper, Blackwell; columns: one node, two, more.
_LL_MAX = ((39.0, 39.0, 20.4), (87.7, 22.5, 19.0), (141.0, 45.0, 35.0), (282.0, 90.0, 70.0))
_TREE_MAX = ((26.5, 18.5, 10.0), (24.0, 23.6, 17.8), (38.7, 41.4, 36.0), (70.0, 42.8, 24.0))
_TREE_LL128_MAX = ((20.0, 20.0, 20.0), (20.0, 20.0, 20.0), (36.7, 36.7, 29.0), (72.0, 72.0, 51.2))
_RING_LL128_MAX = (20.0, 20.0, 36.7, 40.0)
_NVLS_EFFICIENCY = (0.0, 0.0, 0.85, 0.74)
_NVLS_CHANNELS = (0, 0, 16, 24)

_SPEEDS = {
    70: (40.0, 30.0, 20.0, 18.0, 15.0, 12.0, 10.0, 9.0, 7.0, 6.0, 5.0, 4.0, 3.0),
    90: (60.0, 50.0, 40.0, 30.0, 24.0, 20.0, 15.0, 12.0, 11.0, 6.0, 3.0),
    100: (90.0, 80.0, 70.0, 60.0, 50.0, 45.0, 40.0, 30.0, 24.0, 20.0, 19.0, 18.0),
}
_SLOW_SPEEDS = (24.0, 20.0, 18.0, 15.0, 12.0, 10.0, 9.0, 7.0, 6.0, 5.0, 4.0, 3.0, 2.4, 1.2, 0.24, 0.12)
_MAX_CHANNELS = 16


def generation(capability: int) -> int:
    """The row of NCCL's tables: 0 Volta and older, 1 Ampere and Ada, 2 Hopper, 3 Blackwell and newer."""
    return 3 if capability >= 100 else 2 if capability >= 90 else 1 if capability >= 80 else 0


def nvlink_gb_s(capability: int, links: int) -> float:
    """GB/s that `links` NVLinks of a GPU of this compute capability carry in one direction."""
    per_link = (
        NVLINK_GB_S[86]
        if capability in (86, 89)
        else NVLINK_GB_S[max(c for c in NVLINK_GB_S if c <= max(capability, 60))]
    )
    return per_link * links


def pcie_gb_s(gen: int, width: int) -> float:
    """GB/s of a PCIe link as NCCL counts it (an x16 link of generation 4 is 24). Unknown generations count as 3."""
    return width * _PCIE_MBPS.get(gen, 60) / 80


@dataclass(frozen=True)
class Graph:
    """What NCCL's search finds for one algorithm: so many channels, each at these GB/s within a node and between
    nodes."""

    channels: int
    bw_intra: float
    bw_inter: float
    nvlink: bool = True

    @property
    def intra(self) -> float:
        return self.channels * self.bw_intra


@lru_cache(maxsize=4096)
def search_channels(available: float, capability: int) -> tuple[int, float]:
    """The channels, and GB/s for each, that NCCL cuts `available` GB/s into.

    Its speeds come from fixed lists; it takes the fastest that wastes least, then halves fast channels into twice as
    many, so that 370.8 GB/s of NVLink become 12 channels of 30, and 40 of PCIe 2 of 20.
    """
    speeds = _SPEEDS[100 if capability >= 100 else 90 if capability >= 90 else 70]
    if available < speeds[-1]:
        speeds = _SLOW_SPEEDS
    choices = [(speed * min(_MAX_CHANNELS, int(available / speed + 1e-6)), speed) for speed in speeds]
    total, speed = max(choices)
    if not total:
        return 1, available
    channels = round(total / speed)
    if speed >= 25 and not (capability > 80 and speed < 50 and channels > 4):
        doubled = min(channels * 2, _MAX_CHANNELS)
        channels, speed = doubled, speed * channels / doubled
    return channels, speed


@dataclass(frozen=True)
class Cell:
    """One cell of NCCL's table."""

    latency_us: float
    algbw: float
    """GB/s of the buffer that is reduced; 0 where NCCL would not use this way."""


def _ring(graph: Graph, ranks: int, nodes: int, capability: int) -> dict[tuple[Algorithm, Protocol], Cell]:
    row, column = generation(capability), min(nodes, 3) - 1
    bus = graph.channels * (graph.bw_intra if nodes <= 2 else min(graph.bw_intra, graph.bw_inter))
    if nodes == 2:
        bus = min(bus, graph.channels * graph.bw_inter)
    bandwidth = {
        "LL": min(_LL_MAX[row][column], bus * 0.5),
        "LL128": min(bus * (0.7 if ranks / nodes < 2 and nodes > 1 else 0.92), graph.channels * _RING_LL128_MAX[row]),
        "Simple": bus,
    }
    steps, inter_steps = 2 * (ranks - 1), 2 * (nodes - 1)
    intra_us = _NVLINK_US["ring"] if graph.nvlink else _PCI_US["ring"]
    cells: dict[tuple[Algorithm, Protocol], Cell] = {}
    for i, protocol in enumerate(_PROTOCOLS):
        latency = _BASE_US["ring"][i] + (steps - inter_steps) * intra_us[i] + inter_steps * _NET_US["ring"][i]
        if protocol == "Simple" and nodes > 1:
            latency *= _RING_PLATEAU
        cells["ring", protocol] = Cell(latency, bandwidth[protocol] * ranks / steps)
    return cells


def _tree(graph: Graph, ranks: int, nodes: int, capability: int) -> dict[tuple[Algorithm, Protocol], Cell]:
    row, column = generation(capability), min(nodes, 3) - 1
    # Between two nodes each of the two trees carries half the data one way: the network counts twice.
    inter = graph.bw_inter * (2 if nodes == 2 else 1) if nodes > 1 else math.inf
    bus = min(graph.channels * min(graph.bw_intra, inter) * 0.92, graph.channels * _TREE_MAX[row][column])
    bandwidth = {
        "LL": min(bus / 3.8, _LL_MAX[row][column]),
        "LL128": min(bus * (7 / 9 if nodes == 1 else 120 / 128), graph.channels * _TREE_LL128_MAX[row][column]),
        "Simple": bus,
    }
    intra_us = _NVLINK_US["tree"] if graph.nvlink else _PCI_US["tree"]
    hops, depth = ranks // nodes - 1, int(math.log2(nodes))
    return {
        ("tree", protocol): Cell(
            _BASE_US["tree"][i] + 2 * (hops * intra_us[i] + depth * _NET_US["tree"][i]), bandwidth[protocol] / 2
        )
        for i, protocol in enumerate(_PROTOCOLS)
    }


def _nvls(graph: Graph, nodes: int, capability: int) -> dict[tuple[Algorithm, Protocol], Cell]:
    within = graph.bw_intra * _NVLS_EFFICIENCY[generation(capability)] * (graph.channels - 1) / graph.channels * 2
    between = graph.bw_inter * (2 if nodes <= 2 else 1) if nodes > 1 else math.inf
    latency = _NVLS_US + (2 * int(math.log2(nodes)) * _NVLS_TREE_NET_US if nodes > 1 else 0.0)
    return {("nvls", "Simple"): Cell(latency, graph.channels * min(within, between) / 2)}


def nvls_graph(available: float, inter: float, capability: int) -> Graph | None:
    """The NVLS graph where each GPU has `available` GB/s to the switch, None before Hopper."""
    channels = _NVLS_CHANNELS[generation(capability)]
    if not channels:
        return None
    speeds = [s for s in _SPEEDS[100 if capability >= 100 else 90] if s * channels <= available + 1e-6]
    return Graph(channels, speeds[0], inter / channels) if speeds else None


def table(
    ring: Graph, tree: Graph, nvls: Graph | None, *, ranks: int, nodes: int, capability: int
) -> dict[tuple[Algorithm, Protocol], Cell]:
    """NCCL's AllReduce row: latency and algorithm bandwidth of every way it could take. `ranks` is at least 2."""
    cells = _ring(ring, ranks, nodes, capability) | _tree(tree, ranks, nodes, capability)
    return cells | _nvls(nvls, nodes, capability) if nvls else cells


def busbw_factor(ranks: int) -> float:
    """What turns S/t into nccl-tests' bus bandwidth for an all-reduce."""
    return 2 * (ranks - 1) / ranks
