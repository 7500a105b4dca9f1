"""Which nodes break runs more often than their like: a score from the history, and how many of them may be left out at once.

After Meta's "lemon nodes" (Kokolis et al., Revisiting Reliability in Large-Scale Machine Learning Research Clusters, 2024,
arXiv:2410.21680): a few nodes cause a large part of all failures, and are found by what they do and not by what they report.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass

WINDOW_S = 7 * 86400.0
"""So long an attempt that ended counts."""
CHANCE = 0.01
"""A node is flagged where one like the others would fail so often with less than this probability."""
LEAST = 2.0
"""Failures below which nobody is flagged, however few attempts there were."""
_PRIOR_ATTEMPTS, _PRIOR_FAILURES = 20.0, 0.2
"""A fleet of which little is known fails once in a hundred attempts."""


@dataclass(frozen=True)
class Tally:
    """What became of the attempts that had a part on one node."""

    attempts: int = 0
    """That ended."""
    failures: float = 0.0
    """Of them broken by infrastructure, with the blame on this node; where several are under suspicion, each has its part."""


@dataclass(frozen=True)
class Score:
    """How a node stands beside the others."""

    node: str
    attempts: int
    failures: float
    expected: float
    """Failures that as many attempts meet on the other nodes."""
    chance: float
    """Probability that a node like the others has at least as many."""

    @property
    def bad(self) -> bool:
        return self.failures >= LEAST and self.chance < CHANCE

    @property
    def text(self) -> str:
        """`it broke 3 of 5 attempts, where 0.2 are expected (chance 0.1 %)`."""
        return (
            f"it broke {self.failures:.3g} of {self.attempts} attempts, where {self.expected:.2g} are expected "
            f"(chance {max(self.chance, 1e-6) * 100:.2g} %)"
        )


def scores(tallies: Mapping[str, Tally]) -> dict[str, Score]:
    """Each node against the mean of the others: its excess, as the tail of a Poisson distribution."""
    attempts = sum(tally.attempts for tally in tallies.values())
    failures = sum(tally.failures for tally in tallies.values())
    found = {}
    for node, tally in tallies.items():
        others = attempts - tally.attempts + _PRIOR_ATTEMPTS
        rate = (failures - tally.failures + _PRIOR_FAILURES) / others
        expected = tally.attempts * rate
        found[node] = Score(node, tally.attempts, tally.failures, expected, poisson_tail(tally.failures, expected))
    return found


def blame(suspects: Collection[str]) -> dict[str, float]:
    """Which nodes are to blame for one failure, in parts of it."""
    named = set(suspects)
    return {name: 1 / len(named) for name in named}


def room(share: float, nodes: int, out: int) -> int:
    """How many more nodes may be quarantined where `out` of `nodes` are: a share of all, one at least, and never the last one.

    A share of 0: none ever.
    """
    most = max(1, math.floor(share * nodes)) if share > 0 else 0
    return max(0, min(most, nodes - 1) - out)


def poisson_tail(least: float, mean: float) -> float:
    """P(X >= least) for a Poisson X of that mean; between whole numbers as the regularized gamma function goes on (DLMF 8.4.10).

    Its series (DLMF 8.7.1) converges quickly where `least` is above the mean, which is where it is asked.
    """
    if least <= 0:
        return 1.0
    if mean <= 0:
        return 0.0
    term = total = 1.0 / least
    n = least
    while term > total * 1e-12:
        n += 1
        term *= mean / n
        total += term
    return min(1.0, math.exp(least * math.log(mean) - mean - math.lgamma(least)) * total)
