"""Did NCCL take the links that the placement promised? If not: which, what that costs, and why it is likely so."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from orchestrator.health.causes import APART, NO_GDR, NO_P2P, NO_RDMA, Cause, Row, Scene, likely
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
    """What joins ranks of different islands: P2P where their PCIe distance is within NCCL's P2P level, else SHM."""


@dataclass(frozen=True)
class PlannedLinks:
    """What a placement promised."""

    nodes: tuple[PlannedNode, ...]
    across: Promise = "Socket"
    """What joins ranks of different nodes."""

    def between(self, one: int, other: int) -> Promise | None:
        """The promise for two ranks, None where the plan has not both."""
        homes = [node for rank in (one, other) for node in self.nodes if rank in node.ranks]
        if len(homes) != 2:
            return None
        if homes[0] is not homes[1]:
            return self.across
        return "P2P/NVLink" if any({one, other} <= {*island} for island in homes[0].islands) else homes[0].beyond


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
        (low, high), took = self.ranks, _WORDS.get(_of_kind(self.seen), self.seen)
        text = f"{self.links} of {self.of} links promised {_WORDS[self.promised]} go over {took} (such as rank {low} and rank {high})"
        return f"{text}: {self.cost}" if self.cost else text


@dataclass(frozen=True)
class Verdict:
    """What became of the promise."""

    word: Literal["as planned", "worse than planned", "unknown"]
    reason: str
    """One sentence with numbers."""
    links: tuple[tuple[str, int], ...]
    shortfalls: tuple[Shortfall, ...] = ()

    @property
    def as_planned(self) -> bool:
        return self.word == "as planned"


def verdict(planned: PlannedLinks, seen: NcclLog, env: Mapping[str, str], facts: Mapping[str, NodeFacts]) -> Verdict:
    """Compares every link seen with its promise; better than promised is as planned.

    `env` is NCCL's part of the ranks' environment, `facts` what is known of the plan's nodes, by name.
    """
    links = tuple(seen.links.items())
    if not seen.found:
        return Verdict("unknown", _nothing_seen(seen), links)
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
    shortfalls.sort(key=lambda s: (-_LEVEL[_of_kind(s.seen)], _LEVEL[s.promised]))
    total = sum(promised.values())
    if shortfalls:
        return Verdict("worse than planned", f"{shortfalls[0]}", links, tuple(shortfalls))
    return Verdict("as planned", f"all {total} links are as good as promised", links)


def _nothing_seen(seen: NcclLog) -> str:
    if not seen.lines:
        return "the log has no line of NCCL: it says what it does with NCCL_DEBUG=INFO"
    return f"none of {seen.lines} lines of NCCL tells of a link: from 2.22 on links are made at the first collective"


def _of_kind(kind: str) -> Promise:
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
    return _LEVEL[_of_kind(kind)] > _LEVEL[promise]


def _by_host(planned: PlannedLinks, link: Link) -> Promise | None:
    # With several communicators in one log a rank's number says nothing: judge by the hosts, by the loosest promise.
    one, other = link.hosts
    if one is None or other is None:
        return None
    if one != other:
        return planned.across
    inside = [
        planned.between(low, high) for node in planned.nodes for low in node.ranks for high in node.ranks if low < high
    ]
    return max((promise for promise in inside if promise), key=_LEVEL.__getitem__, default=None)


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
    causes = likely(_rows(promise, kind), Scene(seen, env, nodes))
    links = sum(link.channels for link in found)
    return Shortfall(promise, kind, links, of, found[0].ranks, _cost(promise, kind, nodes), causes)


def _rows(promise: Promise, kind: str) -> tuple[Row, ...]:
    took = _of_kind(kind)
    if promise in ("P2P/NVLink", "P2P", "SHM"):
        return NO_P2P if took in ("P2P", "SHM") else (*APART, *NO_P2P)
    return NO_RDMA if took == "Socket" else NO_GDR


def _cost(promise: Promise, kind: str, nodes: tuple[NodeFacts, ...]) -> str | None:
    models = {model for facts in nodes for model in facts.gpus}
    took = _of_kind(kind)
    for (model, better), expected in _MEASURED.items():
        typical = _MEASURED.get((model, took))
        if better == promise and typical and models and all(model in name for name in models):
            return (
                f"between two {model}, all-reduce reaches about {typical:g} GB/s over {_WORDS[took]} where it reaches "
                f"{expected:g} over {_WORDS[promise]}, {expected / typical:.0f} times less"
            )
    return None


# Without a plan -------------------------------------------------------------------------------------------------------


def meaning(seen: NcclLog) -> tuple[str, ...]:
    """What a log means for whoever has no plan to compare it with: sentences, the worst first."""
    return tuple(sentence for rule in _MEANINGS for sentence in rule(seen))


def _says(rows: tuple[Row, ...], seen: NcclLog) -> str:
    causes = likely(rows, Scene(seen, {}, ()))
    return ". ".join([("" if cause.shown else "Perhaps ") + f"{cause.text}: {cause.mend}" for cause in causes[:2]])


def _no_links(seen: NcclLog) -> list[str]:
    return [] if seen.transports else [f"{_nothing_seen(seen)[0].upper()}{_nothing_seen(seen)[1:]}"]


def _count(seen: NcclLog, level: Promise) -> tuple[int, int]:
    total = sum(seen.links.values())
    return sum(n for kind, n in seen.links.items() if _of_kind(kind) == level and not kind.startswith("COLLNET")), total


def _sockets(seen: NcclLog) -> list[str]:
    count, total = _count(seen, "Socket")
    rows = (*APART[:2], *NO_RDMA) if _inside_one_host(seen) else NO_RDMA
    return (
        [f"{count} of {total} links go over TCP sockets, the slowest that there is. {_says(rows, seen)}"]
        if count
        else []
    )


def _inside_one_host(seen: NcclLog) -> bool:
    return bool(seen.hosts) and seen.nodes > len(seen.hosts)


def _copied(seen: NcclLog) -> list[str]:
    count, total = _count(seen, "RDMA")
    if not count:
        return []
    return [f"{count} of {total} links use RDMA through the host's memory, without GPUDirect. {_says(NO_GDR, seen)}"]


def _shared_memory(seen: NcclLog) -> list[str]:
    count, total = _count(seen, "SHM")
    return [f"{count} of {total} links go through the host's memory (SHM). {_says(NO_P2P, seen)}"] if count else []


def _counted_apart(seen: NcclLog) -> list[str]:
    if not _inside_one_host(seen):
        return []
    hosts = ", ".join(seen.hosts)
    return [f"NCCL counts {seen.nodes} nodes, but all lines come from {len(seen.hosts)}: {hosts}"]


def _adapters_differ(seen: NcclLog) -> list[str]:
    sets = {names for _, names in seen.adapters}
    if len(sets) < 2:
        return []
    lists = "; ".join(f"{host}: {', '.join(names)}" for host, names in seen.adapters)
    return [f"Hosts have different adapters, over which NCCL may spin for ever: {lists}"]


def _versions_differ(seen: NcclLog) -> list[str]:
    return [f"Ranks have different NCCL versions: {', '.join(seen.versions)}"] if len(seen.versions) > 1 else []


def _variables_differ(seen: NcclLog) -> list[str]:
    differ = [f"{name} ({' / '.join(values)})" for name, values in seen.environment if len(values) > 1]
    differ = [text for text in differ if not text.startswith(("NCCL_HOSTID", "NCCL_TOPO_DUMP_FILE"))]
    return [f"Ranks have different settings: {', '.join(differ)}"] if differ else []


_MEANINGS = (
    _no_links,
    _sockets,
    _copied,
    _shared_memory,
    _counted_apart,
    _versions_differ,
    _adapters_differ,
    _variables_differ,
)
