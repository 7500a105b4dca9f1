"""Whether a gang's links do what they promise, by a short collective before it starts: which pairs are tried, who is to blame."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from itertools import pairwise

from orchestrator.bench.results import Bench
from orchestrator.placement.preflight import Problem

FRACTION = 0.5
"""Of what was promised: below this a link is slow. The model and other jobs' traffic account for some tens of percent; what is
broken (traffic that fell off RDMA onto TCP, an adapter at half its rate, one of two rails lost) costs a factor of two or more."""
ENOUGH, MOST = 2, 3
"""With how many others a node must fail to be at fault by itself: more where none of them did well with anybody."""
HOLDS = timedelta(days=30)
"""How long a result stands: as long as what orch bench holds links against (history/benches.py, LIKES)."""

Pair = tuple[str, str]
"""Two nodes in rank order, or one node twice: its own ranks alone."""


@dataclass(frozen=True)
class Kept:
    """What is known of a pair of nodes, by a trial or by orch bench."""

    nodes: tuple[str, str]
    """Sorted."""
    at: datetime
    run: int
    model: str
    """The GPUs' short name."""
    ranks: int
    busbw: float | None
    """GB/s; None where nothing came of it."""
    promised: float | None
    failure: str | None = None
    versions: Mapping[str, object] = field(default_factory=dict)
    """driver, nccl, torch, as far as they are known."""

    @property
    def reached(self) -> float | None:
        """Of what was promised; None where there is no figure or no promise."""
        return self.busbw / self.promised if self.busbw is not None and self.promised else None

    @property
    def well(self) -> bool:
        return self.failure is None and (self.reached is None or self.reached >= FRACTION)


@dataclass(frozen=True)
class Shape:
    """What a result must be of to stand for a pair of a gang that is about to start. None is what is not known yet."""

    model: str
    ranks: int
    driver: str | None = None
    nccl: str | None = None


def kept_of(bench: Bench) -> Kept | None:
    """What a result of orch bench says of a pair; None where it is of another number of nodes, or not of NCCL."""
    link = bench.link
    if len(link.nodes) != 2 or bench.row.backend != "nccl":
        return None
    # It holds as measured: a slow link that orch bench has found is in the bandwidth model, and so in the promise.
    return Kept(
        (link.nodes[0], link.nodes[1]), bench.at, bench.run, link.model, link.ranks, bench.row.busbw, None,
        versions=bench.versions,
    )  # fmt: skip


def stands(kept: Kept, shape: Shape, run: int, now: datetime) -> bool:
    """Whether the pair need not be tried again for the run.

    A pair that failed is tried each time; one that was slow again for every other run, which may have another place.
    """
    if kept.failure is not None or not (kept.well or kept.run == run):
        return False
    if kept.at < now - HOLDS or kept.model != shape.model or kept.ranks < shape.ranks:
        return False
    wanted = {"driver": shape.driver, "nccl": shape.nccl}
    return all(value is None or kept.versions.get(name, value) == value for name, value in wanted.items())


# -- which pairs -------------------------------------------------------------------------------------------------------


def neighbours(nodes: Sequence[str]) -> list[Pair]:
    """The pairs of a gang that are tried: neighbours in rank order, which is the order of NCCL's rings; n - 1 pairs and not all.

    The ring is closed where that costs no further round, with an even number of nodes.
    """
    chain = list(pairwise(nodes))
    closes = len(nodes) > 2 and len(nodes) % 2 == 0
    return [*chain, (nodes[0], nodes[-1])] if closes else chain


def rounds(pairs: Iterable[Pair]) -> list[list[Pair]]:
    """The pairs in rounds in which every node is at most once; two rounds for neighbours."""
    found: list[tuple[set[str], list[Pair]]] = []
    for pair in pairs:
        free = next((one for one in found if not one[0] & set(pair)), None)
        if free is None:
            free = (set(), [])
            found.append(free)
        free[0].update(pair)
        free[1].append(pair)
    return [round_ for _, round_ in found]


# -- what came of them -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Tried:
    """What came of one short collective."""

    pair: Pair
    busbw: float | None = None
    """GB/s."""
    promised: float | None = None
    failure: str | None = None
    """What became of it instead, as words that follow the pair's names: `hung`."""
    culprits: frozenset[str] = frozenset()
    """Nodes whose ranks ended, or could not be started, before they met the others."""

    @property
    def alone(self) -> bool:
        return self.pair[0] == self.pair[1]

    @property
    def reached(self) -> float | None:
        return self.busbw / self.promised if self.busbw is not None and self.promised else None

    @property
    def short(self) -> bool:
        """Below FRACTION of the promise, which may be the model's fault."""
        return self.reached is not None and self.reached < FRACTION

    def how(self) -> str:
        """What was wrong, in words that follow `all-reduce with b`."""
        if self.failure is not None:
            return self.failure
        return f"reaches {self.busbw:.3g} GB/s of {self.promised:.3g} promised"


@dataclass(frozen=True)
class Verdict:
    """What follows from a trial: nodes that the run must not get, or that it starts, with something to be told of it."""

    bad: tuple[Problem, ...] = ()
    note: str | None = None


class Evidence:
    """What a trial of these nodes has shown so far.

    `past`: the best that links like these reached before, as a fraction of their promise; None where that is not known.
    `worse`: by node, with how many others it failed before.
    """

    def __init__(
        self,
        nodes: Sequence[str],
        tried: Iterable[Tried],
        past: float | None = None,
        worse: Mapping[str, int] | None = None,
    ) -> None:
        self.nodes, self.tried, self.worse = tuple(nodes), tuple(tried), worse or {}
        reached = [r for one in self.tried if (r := one.reached) is not None] + ([] if past is None else [past])
        # Where nobody reaches what was promised, the promise is wrong and no node is.
        self._due = FRACTION * min(1.0, max(reached, default=0.0))
        self.culprits = frozenset(node for one in self.tried for node in one.culprits)
        self.good = frozenset(node for one in self.tried if not one.alone and self._well(one) for node in one.pair)
        self.well_alone = frozenset(one.pair[0] for one in self.tried if one.alone and one.failure is None)
        self.bad_alone = frozenset(one.pair[0] for one in self.tried if one.alone and one.failure is not None)
        self.unwell = tuple(
            one for one in self.tried if not (one.alone or self._well(one) or self.culprits.intersection(one.pair))
        )

        # Before others were tried too, it is not known that they do no better.
        hoped = FRACTION * min(1.0, 1.0 if past is None else past)
        self._doubted = tuple(
            one
            for one in self.tried
            if one in self.unwell
            or (one.reached is not None and one.reached < hoped and not self.culprits.intersection(one.pair))
        )
        self._cleared = frozenset(
            node
            for one in self.tried
            if not one.alone and self._well(one) and one not in self._doubted
            for node in one.pair
        )

    def _well(self, one: Tried) -> bool:
        return one.failure is None and (one.reached is None or one.reached >= self._due)

    def open_pairs(self) -> list[Pair]:
        """What to try next, in one round: suspects with others, best with nodes that did well; where no pair did, by themselves."""
        if self.culprits.issuperset(self.nodes):
            return []
        asked = [node for node in self.nodes if self._undecided(node)]
        done = {frozenset(one.pair) for one in self.tried}
        found: list[Pair] = []
        taken: set[str] = set(self.culprits)
        for node in asked:
            others = [o for o in self.nodes if o != node and o not in taken and frozenset((node, o)) not in done]
            if node not in taken and others:
                other = min(others, key=lambda o: (o not in self._cleared, o in asked, self.nodes.index(o)))
                first, second = sorted((node, other), key=self.nodes.index)
                found.append((first, second))
                taken.update((first, second))
        if found or self._cleared:
            return found
        failed = {node for one in self.unwell if one.failure is not None for node in one.pair}
        return [(node, node) for node in self.nodes if node in failed and frozenset((node,)) not in done]

    def _undecided(self, node: str) -> bool:
        """Whether it did well with nobody, and was not tried with enough others for that to be its own fault."""
        if node in self._cleared or not any(node in one.pair for one in self._doubted):
            return False
        others = {
            other for one in self.tried if node in one.pair and not one.alone for other in one.pair if other != node
        }
        return len(others) < (ENOUGH if others & self._cleared else MOST)

    def verdict(self, in_time: bool = True) -> Verdict:
        """Who is left out. Nobody where nothing worked anywhere: then it is not for a node that the gang cannot talk."""
        if self.culprits.issuperset(self.nodes):
            return Verdict(note=f"its links were not tried: {self._first(self.culprits)}")
        bad = [Problem(node, self._first({node})) for node in self.nodes if node in self.culprits]
        if self._has_contrast():
            bad += [one for one in self._blamed() if one.node not in self.culprits]
        if bad:
            return Verdict(tuple(bad))
        wrong = [*self.unwell, *(one for one in self.tried if one.short and one not in self.unwell)]
        told = [f"all-reduce between {one.pair[0]} and {one.pair[1]} {one.how()}" for one in wrong[:2]]
        if len(wrong) > 2:
            told.append(f"{len(wrong) - 2} more pairs do no better")
        if told and len(wrong) == len([one for one in self.tried if not one.alone]):
            told.append("no pair does better, so no node is left out")
        if not in_time:
            told.append("not every pair could be tried in time")
        return Verdict(note="; ".join(told) or None)

    def _first(self, nodes: Iterable[str]) -> str:
        wanted = set(nodes)
        return next(one.failure or "" for one in self.tried if wanted & one.culprits)

    def _has_contrast(self) -> bool:
        """Whether something did work, so that what did not says something of a node."""
        return (
            bool(self.good) or bool(self.well_alone) or (bool(self.unwell) and not any(o.failure for o in self.unwell))
        )

    def _blamed(self) -> list[Problem]:
        alone = [
            Problem(node, f"its own ranks alone: all-reduce {one.how()}")
            for one in self.tried
            if one.alone and (node := one.pair[0]) in self.bad_alone
        ]
        if not self.good and alone:
            return alone
        if not self.good and len(self.nodes) > 2:
            return []  # each by itself is well, and no two are together: what lies between them all
        left, found = list(self.unwell), []
        while left:
            counts = Counter(node for one in left for node in one.pair)

            def guilt(node: str, counts: Counter[str] = counts) -> tuple[bool, int, int, int]:
                return node not in self.good, counts[node], self.worse.get(node, 0), self.nodes.index(node)

            worst = max(counts, key=guilt)
            mine = [one for one in left if worst in one.pair]
            left = [one for one in left if worst not in one.pair]
            found.append(Problem(worst, self._text(worst, mine)))
        return found

    def _text(self, node: str, mine: Sequence[Tried]) -> str:
        others = [other for one in mine for other in one.pair if other != node]
        text = f"all-reduce with {' and '.join(others[:3])}{' and others' if len(others) > 3 else ''} {mine[0].how()}"
        (first, *more) = others
        if more or (node in self.good) != (first in self.good):
            return text
        before, its = self.worse.get(node, 0), self.worse.get(first, 0)
        if before > its:
            return f"{text}; it failed with {before} others before, {first} with {its}"
        return f"{text}; which of the two is at fault cannot be told"


def best(kept: Iterable[Kept], shape: Shape, now: datetime) -> float | None:
    """The best that links like these reached, as a fraction of their promise."""
    reached = [
        r
        for one in kept
        if one.failure is None and one.model == shape.model and one.ranks == shape.ranks and one.at >= now - HOLDS
        if (r := one.reached) is not None
    ]
    return max(reached, default=None)


def failures(kept: Iterable[Kept], nodes: Iterable[str], now: datetime) -> dict[str, int]:
    """By node, with how many other nodes its last trial did not go well."""
    wanted = set(nodes)
    counts: Counter[str] = Counter()
    for one in kept:
        if not one.well and one.at >= now - HOLDS:
            counts.update(wanted.intersection(one.nodes))
    return dict(counts)
