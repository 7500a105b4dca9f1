"""What the bandwidth model learns from results: how far each class of link is from the model, and which nodes from their class.

Only the all-reduce of the backend that the ranks would use counts, at a size that tells. One good result never makes a link
look better than the model; docs/bench.md gives the rules with their reasons.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from statistics import median_low

from orchestrator.bench.compare import behind
from orchestrator.bench.results import Bench, Link
from orchestrator.placement.bandwidth import Figure, Own

LEAST_BYTES = 32 << 20
"""A smaller all-reduce tells of latencies and not of links."""
REMEMBERED = 5
"""How many results of a link are looked at, newest first."""


@dataclass(frozen=True)
class Calibration:
    """What Topology takes as `measured` and `own`."""

    measured: dict[str, Figure] = field(default_factory=dict)
    own: dict[str, Own] = field(default_factory=dict)


@dataclass(frozen=True)
class _LinkFigure:
    efficiency: float
    at: datetime
    software: tuple[str, ...]


def calibrate(benches: Iterable[Bench], drivers: Mapping[str, str] | None = None) -> Calibration:
    """`drivers` are those that the nodes run now, by node: a result of another driver than a node's own is left out."""
    by_class: dict[str, dict[Link, list[Bench]]] = defaultdict(lambda: defaultdict(list))
    for bench in _that_count(benches, drivers or {}):
        by_class[_class_of(bench.link)][bench.link].append(bench)
    measured: dict[str, Figure] = {}
    inside: dict[str, tuple[float, datetime]] = {}
    between: dict[str, tuple[float, datetime]] = {}
    for name, links in by_class.items():
        figures = _of_newest_software({link: _figure(results) for link, results in links.items()})
        nodes = _by_node(figures)
        slow = behind({node: efficiency for node, (efficiency, _) in nodes.items()})
        good = {link: f for link, f in figures.items() if not slow.keys() & set(link.nodes)} or figures
        factor = median_low(f.efficiency for f in good.values())
        measured[name] = Figure(factor, max(f.at for f in good.values()).date())
        for node in slow:
            efficiency, at = nodes[node]
            kept = between if "/between/" in name else inside
            if node not in kept or efficiency / factor < kept[node][0]:
                kept[node] = efficiency / factor, at
    own = {
        node: Own(
            min(1.0, inside.get(node, (1.0,))[0]),
            min(1.0, between.get(node, (1.0,))[0]),
            max(one[node][1] for one in (inside, between) if node in one).date(),
        )
        for node in inside.keys() | between.keys()
    }
    return Calibration(measured, own)


def _class_of(link: Link) -> str:
    """The key of the link's class in bandwidth.Measured."""
    if link.between_nodes:
        return f"{link.model}/between/{link.level}/{link.per_node}"
    return f"{link.model}/{link.kind}/{link.per_node}"


def _that_count(benches: Iterable[Bench], drivers: Mapping[str, str]) -> list[Bench]:
    """Of each run the largest all-reduce of the native backend, where it was large enough and on today's drivers."""
    largest: dict[tuple[int, int], Bench] = {}
    for bench in benches:
        native = "gloo" if bench.link.model == "CPU" else "nccl"
        if bench.row.collective != "all_reduce" or bench.row.backend != native or bench.row.bytes < LEAST_BYTES:
            continue
        if not bench.link.per_node or not bench.modelled or bench.modelled <= 0:
            continue
        driver = bench.versions.get("driver")
        if any(drivers.get(node, driver) != driver for node in bench.link.nodes):
            continue
        known = largest.get((bench.run, bench.attempt))
        if known is None or bench.row.bytes > known.row.bytes:
            largest[bench.run, bench.attempt] = bench
    return list(largest.values())


def _figure(results: list[Bench]) -> _LinkFigure:
    """A link's efficiency: the lower median of its newest results with the same software; above the model only if two say so."""
    newest_first = sorted(results, key=lambda b: (b.at, b.run), reverse=True)
    software = newest_first[0].software
    same = [bench for bench in newest_first if bench.software == software][:REMEMBERED]
    efficiency = median_low(bench.row.busbw / (bench.modelled or 1.0) for bench in same)
    return _LinkFigure(efficiency if len(same) > 1 else min(1.0, efficiency), same[0].at, software)


def _of_newest_software(figures: dict[Link, _LinkFigure]) -> dict[Link, _LinkFigure]:
    """Links are held against each other only where they were measured with the same versions: the newest ones."""
    newest = max(figures.values(), key=lambda f: f.at).software
    return {link: figure for link, figure in figures.items() if figure.software == newest}


def _by_node(figures: Mapping[Link, _LinkFigure]) -> dict[str, tuple[float, datetime]]:
    """A node is as good as the best link that it was measured on: a bad neighbour is not its fault. Of links of one node
    and of two; a ring over more does not say which of them holds it back."""
    found: dict[str, tuple[float, datetime]] = {}
    for link, figure in figures.items():
        if len(link.nodes) <= 2:
            for node in link.nodes:
                found[node] = max(found.get(node, (0.0, figure.at)), (figure.efficiency, figure.at))
    return found
