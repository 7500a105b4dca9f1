"""A run's transport as it is recorded and shown: the nodes' logs put together, the verdict as JSON, and a sentence of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from orchestrator.health.nccl_log import Link, NcclLog
from orchestrator.health.verdict import Shortfall, Verdict

SHORTFALLS_KEPT = 8
CAUSES_KEPT = 4
WARNINGS_KEPT = 10


def combine(parts: Iterable[NcclLog]) -> NcclLog:
    """The log of a run from its nodes' (health/node_log.py): each tells of its own ranks, and of the near end of links that
    leave it."""
    logs = list(parts)
    versions = Counter(log.version for log in logs if log.version)
    warnings: Counter[str] = Counter()
    refused: Counter[str] = Counter()
    algorithms: Counter[str] = Counter()
    environment: dict[str, set[str]] = {}
    for log in logs:
        warnings.update(dict(log.warnings))
        refused.update(dict(log.gdr_refused))
        algorithms.update(dict(log.algorithms))
        for name, values in log.environment:
            environment.setdefault(name, set()).update(values)
    ranks = max((log.ranks for log in logs), default=0)
    places = sorted({pair for log in logs for pair in log.rank_hosts})
    return NcclLog(
        lines=sum(log.lines for log in logs),
        library=next((log.library for log in logs), "NCCL"),
        version=min(versions, key=lambda name: (-versions[name], name), default=None),
        versions=_union(log.versions for log in logs),
        ranks=ranks,
        # Before 2.19 no line says how many there are.
        nodes=max([len({host for _, host in places}), *(log.nodes for log in logs)]),
        communicator_sizes=(ranks,) if ranks else (),
        hosts=_union(log.hosts for log in logs),
        rank_hosts=tuple(places),
        found=_links(logs),
        channels=max((log.channels for log in logs if log.channels is not None), default=None),
        nvls_channels=max((log.nvls_channels for log in logs), default=0),
        nvls=any(log.nvls for log in logs),
        network=_union(log.network for log in logs),
        pxn=None if all(log.pxn is None for log in logs) else any(log.pxn for log in logs),
        connected=_union(log.connected for log in logs),
        adapters=tuple(sorted({pair for log in logs for pair in log.adapters})),
        no_adapter=_union(log.no_adapter for log in logs),
        interfaces=_union(log.interfaces for log in logs),
        gdr_refused=tuple(sorted(refused.items())),
        algorithms=tuple(sorted(algorithms.items())),
        environment=tuple(sorted((name, tuple(sorted(values))) for name, values in environment.items())),
        warnings=tuple(warnings.most_common(50)),
        notes=_union(log.notes for log in logs),
    )


def _union(names: Iterable[Iterable[str]]) -> tuple[str, ...]:
    return tuple(sorted({name for some in names for name in some}))


def _links(logs: list[NcclLog]) -> tuple[Link, ...]:
    """A link that leaves a node is told by both of its ends, and GPUDirect RDMA at one of them is enough."""
    counts: dict[tuple[tuple[int, int], str], list[tuple[int, int]]] = {}
    hosts: dict[int, str] = {rank: host for log in logs for rank, host in log.rank_hosts}
    for log in logs:
        mine: dict[tuple[tuple[int, int], str], list[int]] = {}
        for link in log.found:
            held = mine.setdefault((link.ranks, link.kind.removesuffix("/GDRDMA")), [0, 0])
            held[0] += link.channels
            held[1] += link.channels if link.kind.endswith("/GDRDMA") else 0
        for key, (all_of_it, direct) in mine.items():
            counts.setdefault(key, []).append((all_of_it, direct))
    found = []
    for (ranks, kind), told in counts.items():
        channels, direct = max(total for total, _ in told), max(direct for _, direct in told)
        where = hosts.get(ranks[0]), hosts.get(ranks[1])
        if direct:
            found.append(Link(ranks, where, f"{kind}/GDRDMA", direct))
        if channels > direct:
            found.append(Link(ranks, where, kind, channels - direct))
    return tuple(sorted(found, key=lambda link: (link.ranks, link.kind)))


def to_json(verdict: Verdict, seen: NcclLog) -> dict[str, Any]:
    """What an attempt's `transport` holds."""
    return {
        "verdict": verdict.word,
        "links": dict(verdict.links),
        "reason": verdict.reason,
        "shortfalls": [_shortfall(one) for one in verdict.shortfalls[:SHORTFALLS_KEPT]],
        "nccl": seen.version,
        "nodes": seen.nodes,
        "gdr": seen.gdr,
        "nvls": seen.nvls,
        "channels": seen.channels,
        "algorithms": list(seen.connected),
        "warnings": [text for text, _ in seen.warnings[:WARNINGS_KEPT]],
    }


def _shortfall(one: Shortfall) -> dict[str, Any]:
    return {
        "promised": one.promised,
        "seen": one.seen,
        "links": one.links,
        "of": one.of,
        "ranks": list(one.ranks),
        "cost": one.cost,
        "text": str(one),
        "causes": [{"text": c.text, "mend": c.mend, "shown": c.shown} for c in one.causes[:CAUSES_KEPT]],
    }


def sentence(transport: Mapping[str, Any]) -> str:
    """A verdict that is worse than planned, for an event: the likely cause first, then what is so, then the remedy."""
    shortfalls = transport.get("shortfalls") or []
    if not shortfalls or not shortfalls[0]["causes"]:
        return f"transport {transport['verdict']}: {transport['reason']}"
    cause = shortfalls[0]["causes"][0]
    so = "because" if cause["shown"] else "perhaps because"
    return (
        f"transport {transport['verdict']}, {so} {cause['text']}: {shortfalls[0]['text']}. To mend it: {cause['mend']}"
    )


def set_by(verdict: Verdict, env: Mapping[str, str]) -> bool:
    """Whether the first cause is shown to be a variable that the job sets itself."""
    causes = verdict.shortfalls[0].causes if verdict.shortfalls else ()
    return bool(causes) and causes[0].shown and any(name in causes[0].text for name in env)
