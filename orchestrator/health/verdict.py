"""Did NCCL take the links that the placement promised? If not: which, what that costs, and why it is likely so."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from typing import Literal

from orchestrator.health.causes import (
    APART,
    NO_GDR,
    NO_NVLINK_BETWEEN_NODES,
    NO_P2P,
    NO_RDMA,
    Cause,
    Row,
    Scene,
    likely,
)
from orchestrator.health.facts import NodeFacts
from orchestrator.health.nccl_log import Link, NcclLog

Promise = Literal["P2P/NVLink", "P2P", "SHM", "RDMA+GDR", "RDMA", "Socket"]
"""What joins two ranks at least, from the best to the worst. `P2P` is over PCIe; SHM is what NCCL takes beyond its P2P level."""

_LEVEL: dict[str, int] = {"P2P/NVLink": 0, "P2P": 1, "SHM": 2, "RDMA+GDR": 3, "RDMA": 4, "Socket": 5}
_WORDS: dict[str, str] = {
    "P2P/NVLink": "NVLink",
    "P2P": "P2P over PCIe",
    "SHM": "shared memory",
    "RDMA+GDR": "RDMA straight to the GPU",
    "RDMA": "RDMA",
    "Socket": "TCP sockets",
}

_MEASURED = {("H200", "P2P/NVLink"): 332.0, ("H200", "SHM"): 28.0, ("H200", "Socket"): 3.6}
"""All-reduce bus bandwidth in GB/s at 1 GB between two GPUs of one host, by model: quoted only for hardware of the same kind."""


@dataclass(frozen=True)
class PlannedNode:
    """A node's part of the plan."""

    name: str
    ranks: tuple[int, ...]
    islands: tuple[tuple[int, ...], ...] = ()
    """Ranks that NVLink joins; a rank that is in none has only PCIe."""
    beyond: Promise = "SHM"
    """What joins ranks of different islands that are not close either."""
    close: tuple[tuple[int, ...], ...] = ()
    """Ranks whose PCIe distance is within NCCL's P2P level."""

    def between(self, one: int, other: int) -> Promise:
        """The promise for two ranks of this node."""
        pair = {one, other}
        if any(pair <= {*island} for island in self.islands):
            return "P2P/NVLink"
        return "P2P" if any(pair <= {*group} for group in self.close) else self.beyond

    @cached_property
    def loosest(self) -> Promise | None:
        """The least that was promised to any two ranks of this node; None where it has only one."""
        inside = [self.between(low, high) for low, high in combinations(self.ranks, 2)]
        return max(inside, key=_LEVEL.__getitem__, default=None)


@dataclass(frozen=True)
class PlannedLinks:
    """What a placement promised."""

    nodes: tuple[PlannedNode, ...]
    across: Promise = "Socket"
    """What joins ranks of different nodes."""

    def between(self, one: int, other: int) -> Promise | None:
        """The promise for two ranks, None where the plan has not both.

        A rank with itself stands for a link whose other end the log does not tell: it leaves the node where there are several.
        """
        home, other_home = self._homes.get(one), self._homes.get(other)
        if home is None or other_home is None:
            return None
        if home is not other_home or (one == other and len(self.nodes) > 1):
            return self.across
        return home.loosest if one == other else home.between(one, other)

    @cached_property
    def _homes(self) -> dict[int, PlannedNode]:
        return {rank: node for node in self.nodes for rank in node.ranks}

    @cached_property
    def loosest(self) -> Promise | None:
        """The least that was promised to any two ranks of one node."""
        found = [node.loosest for node in self.nodes]
        return max((one for one in found if one), key=_LEVEL.__getitem__, default=None)


@dataclass(frozen=True)
class Shortfall:
    """Links of one kind that are worse than promised."""

    promised: Promise
    seen: str
    """The kind of link that the log shows."""
    links: int
    of: int
    """How many links that promise was given for."""
    ranks: tuple[int, int]
    """Two ranks for which it is so."""
    cost: str | None
    """What that costs, where it was measured on hardware of this kind."""
    causes: tuple[Cause, ...]
    """The likeliest first."""

    def __str__(self) -> str:
        (low, high), took = self.ranks, _WORDS.get(kept_by(self.seen), self.seen)
        counts, such = f"{self.links} of {self.of} links", f"such as rank {low} and rank {high}"
        text = f"{counts} promised {_WORDS[self.promised]} go over {took} ({such})"
        return f"{text}: {self.cost}" if self.cost else text


@dataclass(frozen=True)
class Verdict:
    """What became of the promise."""

    word: Literal["as planned", "worse than planned", "unknown"]
    reason: str
    """One sentence with numbers."""
    links: tuple[tuple[str, int], ...]
    shortfalls: tuple[Shortfall, ...] = ()


def verdict(planned: PlannedLinks, seen: NcclLog, env: Mapping[str, str], facts: Mapping[str, NodeFacts]) -> Verdict:
    """Compares every link seen with its promise; better than promised is as planned.

    `env` is NCCL's part of the ranks' environment, `facts` what is known of the plan's nodes, by name.
    """
    links = tuple(seen.links.items())
    if not seen.found:
        return Verdict("unknown", nothing_seen(seen), links)
    ranked = seen.communicator_sizes[-1:] == seen.communicator_sizes
    short: dict[tuple[Promise, str], list[Link]] = {}
    promised: dict[Promise, int] = {}
    for link in seen.found:
        promise = planned.between(*link.ranks) if ranked else _by_host(planned, link)
        if promise is None:
            continue
        promised[promise] = promised.get(promise, 0) + link.channels
        if _worse(link.kind, promise):
            short.setdefault((promise, link.kind), []).append(link)
    if not promised:
        return Verdict("unknown", "no link in the log joins two ranks of the plan", links)
    shortfalls = [
        _shortfall(planned, promise, kind, found, promised[promise], seen, env, facts)
        for (promise, kind), found in short.items()
    ]
    shortfalls.sort(key=lambda s: (-_LEVEL[kept_by(s.seen)], _LEVEL[s.promised]))
    total = sum(promised.values())
    if shortfalls:
        return Verdict("worse than planned", f"{shortfalls[0]}", links, tuple(shortfalls))
    return Verdict("as planned", f"all {total} links are as good as promised", links)


def nothing_seen(seen: NcclLog) -> str:
    """Why a log shows no link."""
    if not seen.lines:
        return "the log has no line of NCCL: it says what it does with NCCL_DEBUG=INFO"
    return f"none of {seen.lines} lines of NCCL tells of a link: from 2.22 on links are made at the first collective"


def kept_by(kind: str) -> Promise:
    """The promise that a kind of link would just keep."""
    if kind.startswith("P2P"):
        return "P2P" if kind == "P2P/PCIe" else "P2P/NVLink"
    if kind == "SHM":
        return "SHM"
    if kind in ("NET/Socket", "NET/FastSocket"):
        return "Socket"
    return "RDMA+GDR" if kind.endswith("/GDRDMA") else "RDMA"


def _worse(kind: str, promise: Promise) -> bool:
    # A `P2P` whose fabric the log does not tell is given the benefit of the doubt.
    return _LEVEL[kept_by(kind)] > _LEVEL[promise]


def _by_host(planned: PlannedLinks, link: Link) -> Promise | None:
    # With several communicators in one log a rank's number says nothing: judge by the hosts, by the loosest promise.
    one, other = link.hosts
    if one is None or other is None:
        return None
    if one != other:
        return planned.across
    return planned.loosest


def _shortfall(
    planned: PlannedLinks,
    promise: Promise,
    kind: str,
    found: list[Link],
    of: int,
    seen: NcclLog,
    env: Mapping[str, str],
    facts: Mapping[str, NodeFacts],
) -> Shortfall:
    ranks = {rank for link in found for rank in link.ranks}
    names = [node.name for node in planned.nodes if ranks & {*node.ranks}]
    nodes = tuple(facts[name] for name in names if name in facts)
    causes = likely(_rows(promise, kind, len(names) > 1 and planned.across == promise), Scene(seen, env, nodes))
    links = sum(link.channels for link in found)
    return Shortfall(promise, kind, links, of, found[0].ranks, _cost(promise, kind, nodes), causes)


def _rows(promise: Promise, kind: str, across: bool) -> tuple[Row, ...]:
    took = kept_by(kind)
    if promise == "P2P/NVLink" and across:
        return NO_NVLINK_BETWEEN_NODES
    if promise in ("P2P/NVLink", "P2P", "SHM"):
        return NO_P2P if took in ("P2P", "SHM") else (*APART, *NO_P2P)
    return NO_RDMA if took == "Socket" else NO_GDR


def _cost(promise: Promise, kind: str, nodes: tuple[NodeFacts, ...]) -> str | None:
    models = {model for facts in nodes for model in facts.gpus}
    took = kept_by(kind)
    for (model, better), expected in _MEASURED.items():
        typical = _MEASURED.get((model, took))
        if better == promise and typical and models and all(model in name for name in models):
            return (
                f"between two {model}, all-reduce reaches about {typical:g} GB/s over {_WORDS[took]} where it reaches "
                f"{expected:g} over {_WORDS[promise]}, {expected / typical:.0f} times less"
            )
    return None
