"""How a result compares: with earlier ones of the same link, and with those of links like it; and which link falls behind."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median, median_low
from typing import TypeVar

from orchestrator.bench.results import Bench, Link

FALLS_BEHIND = 0.95
"""Of its like: below this a link is suspect. What operators accept (superbench's rules, OCI, Azure) is a loss of 5 %."""
TELLS_BYTES = 16 << 20
"""Below this size latency decides, and two good links differ by more than that from one minute to the next."""

K = TypeVar("K", bound=Hashable)


@dataclass(frozen=True)
class Comparison:
    """One result beside what it is to be held against; None where there is nothing."""

    earlier_median: float | None = None
    """GB/s: the median of the earlier results of the same link."""
    earlier: int = 0
    """How many those are."""
    change: float | None = None
    """Its busbw over that median, less 1."""
    like_median: float | None = None
    """GB/s: the lower median of the newest results of the other links like it."""
    likes: int = 0
    """How many other links that is."""
    suspect: bool = False
    """It is below FALLS_BEHIND of `like_median`, at a size that tells."""


def behind(figures: Mapping[K, float]) -> dict[K, float]:
    """The ones that are below FALLS_BEHIND of the lower median of the others, each with that median.

    The lower median: where only one of the others is good, a single high figure does not make all of them suspect.
    """
    found = {}
    ordered = sorted(figures.values())
    for key, figure in figures.items():
        others = _without(ordered, figure)
        if others and figure < FALLS_BEHIND * (due := median_low(others)):
            found[key] = due
    return found


def _without(ordered: list[float], figure: float) -> list[float]:
    at = ordered.index(figure)
    return ordered[:at] + ordered[at + 1 :]


def compare(shown: Sequence[Bench], known: Iterable[Bench]) -> list[Comparison]:
    """Each of `shown` beside `known`, which may hold them too, and results of any links and sizes."""
    by_question: dict[tuple[object, ...], list[Bench]] = defaultdict(list)
    for bench in sorted({_identity(b): b for b in [*known, *shown]}.values(), key=lambda b: (b.at, b.run)):
        by_question[(*bench.what, *bench.link.like)].append(bench)
    return [_compared(bench, by_question[(*bench.what, *bench.link.like)]) for bench in shown]


def _identity(bench: Bench) -> tuple[object, ...]:
    return bench.run, bench.attempt, bench.what


def _compared(bench: Bench, alike: Sequence[Bench]) -> Comparison:
    earlier = [b.row.busbw for b in alike if b.link == bench.link and (b.at, b.run) < (bench.at, bench.run)]
    newest: dict[Link, float] = {}
    for other in alike:
        if other.link != bench.link:
            newest[other.link] = other.row.busbw
    before = median(earlier) if earlier else None
    like = median_low(newest.values()) if newest else None
    return Comparison(
        earlier_median=before,
        earlier=len(earlier),
        change=None if before is None else bench.row.busbw / before - 1,
        like_median=like,
        likes=len(newest),
        suspect=like is not None and bench.row.bytes >= TELLS_BYTES and bench.row.busbw < FALLS_BEHIND * like,
    )
