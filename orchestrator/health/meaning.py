"""What a log of NCCL means for whoever has no plan to compare it with: what is wrong, why perhaps, and how to mend it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from orchestrator.health.causes import APART, FAR, NO_GDR, NO_P2P, NO_RDMA, Cause, Row, Scene, likely
from orchestrator.health.nccl_log import NcclLog
from orchestrator.health.node_rules import VARIABLES
from orchestrator.health.verdict import Promise, kept_by, nothing_seen

PER_RANK = ("NCCL_HOSTID", "NCCL_TOPO_DUMP_FILE", "NCCL_GRAPH_DUMP_FILE", "NCCL_DEBUG_FILE")
"""Variables that may differ from rank to rank."""


@dataclass(frozen=True)
class Meaning:
    """One thing that is wrong, in a sentence, and what likely causes it."""

    text: str
    causes: tuple[Cause, ...] = ()


def meaning(seen: NcclLog) -> tuple[Meaning, ...]:
    """The worst first; empty where nothing is wrong with what the log shows."""
    found = [one for rule in _RULES for one in rule(seen)]
    said = " ".join(cause.text for one in found for cause in one.causes)
    return (*found, *_switches(seen, said))


def _causes(rows: tuple[Row, ...], seen: NcclLog) -> tuple[Cause, ...]:
    return likely(rows, Scene(seen, {}, ()))


def _share(seen: NcclLog, level: Promise) -> str:
    """`3 of 24 links`, or nothing where none is of the level."""
    count = sum(n for kind, n in seen.links.items() if kept_by(kind) == level and not kind.startswith("COLLNET"))
    return f"{count} of {sum(seen.links.values())} links" if count else ""


def _no_links(seen: NcclLog) -> Iterator[Meaning]:
    if not seen.transports:
        yield Meaning(f"No link is seen: {nothing_seen(seen)}.")


def _sockets(seen: NcclLog) -> Iterator[Meaning]:
    if share := _share(seen, "Socket"):
        # Between ranks of one host sockets are the third choice, and the lack of adapters is not what is wrong.
        rows = APART[:3] if seen.one_host_counted_apart else NO_RDMA
        yield Meaning(f"{share} go over TCP sockets, the slowest that there is.", _causes(rows, seen))


def _copied(seen: NcclLog) -> Iterator[Meaning]:
    if share := _share(seen, "RDMA"):
        yield Meaning(f"{share} use RDMA through the host's memory, without GPUDirect.", _causes(NO_GDR, seen))


def _shared_memory(seen: NcclLog) -> Iterator[Meaning]:
    if share := _share(seen, "SHM"):
        yield Meaning(f"{share} go through the host's memory (SHM).", _causes((FAR, *NO_P2P), seen))


def _counted_apart(seen: NcclLog) -> Iterator[Meaning]:
    if seen.one_host_counted_apart:
        yield Meaning(f"NCCL counts {seen.nodes} nodes, but all {seen.ranks} ranks are on {', '.join(seen.hosts)}.")


def _versions_differ(seen: NcclLog) -> Iterator[Meaning]:
    if len(seen.versions) > 1:
        yield Meaning(f"Ranks have different versions of NCCL: {', '.join(seen.versions)}.")


def _adapters_differ(seen: NcclLog) -> Iterator[Meaning]:
    if len({names for _, names in seen.adapters}) > 1:
        lists = "; ".join(f"{host}: {', '.join(names)}" for host, names in seen.adapters)
        yield Meaning(f"Hosts have different adapters, over which NCCL may spin for ever: {lists}.")


def _variables_differ(seen: NcclLog) -> Iterator[Meaning]:
    differ = [f"{name} ({' / '.join(v)})" for name, v in seen.environment if len(v) > 1 and name not in PER_RANK]
    if differ:
        yield Meaning(f"Ranks have different settings: {', '.join(differ)}.")


def _part_of_the_ranks(seen: NcclLog) -> Iterator[Meaning]:
    if seen.transports and (heard := len(seen.rank_hosts)) < seen.ranks:
        yield Meaning(f"The lines are of {heard} of {seen.ranks} ranks: links of the others are not seen.")


def _switches(seen: NcclLog, said: str) -> Iterator[Meaning]:
    """Debug switches that are set, but for those that are a cause already."""
    for name, holds, _, breaks, mend in VARIABLES:
        value = seen.env.get(name)
        if value is not None and holds(value) and name not in said:
            yield Meaning(f"{name}={value}: {breaks}; {mend}.")


_RULES: tuple[Callable[[NcclLog], Iterator[Meaning]], ...] = (
    _no_links,
    _sockets,
    _copied,
    _shared_memory,
    _counted_apart,
    _versions_differ,
    _adapters_differ,
    _variables_differ,
    _part_of_the_ranks,
)
