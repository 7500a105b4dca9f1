"""Why a run is slower than its like: from past runs, with what was different of each and how fast it was. Pure.

A run is compared with the newest runs of its like before it (the *baseline*). What differs between it and them is a
*suspect*: two leaves instead of one, another NCCL, a node that they were not on. Whether the past supports a suspect is
asked of all earlier runs:

- a run that had it and was about as slow **supports** it; one that had it and was as fast as the baseline **contradicts**
  it;
- its *effect* is the drop of the median speed with it. Medians, because a single run that a stranger's traffic slowed
  down must not decide. The effect is also looked at among runs that are equal in each other factor, one at a time, and
  the weakest of these is what is claimed: what rides along with the true cause has no effect of its own there (matching
  on one covariate at a time);
- where no run had the one without the other, nothing can tell them apart, and it is said.

The order is by the share of the slowdown that the effect explains, times how sure the past is of it: the lower end of
Wilson's interval for the share of supporting runs (Wilson, JASA 1927), so that three of three say more than one of one.
What only the run itself has is called untested, and is never placed before what the past supports.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from statistics import median
from typing import TypeAlias

BASELINE = 5
"""So many runs before it are what a run is measured against."""
LEAST_DROP = 0.05
"""A run that is less than this much slower is not called slow, however steady the past was."""
SIGMAS = 3.0
"""Nor one whose speed is within so many robust standard deviations of the past."""
MAD_TO_SIGMA = 1.4826
"""The standard deviation of a normal distribution over its median absolute deviation."""
Z = 1.0
"""Of Wilson's interval: about two in three. Histories are short; a stricter one would call everything unsure."""

Value: TypeAlias = str
Factors: TypeAlias = Mapping[str, Value]
"""By name: `leaves`: `2`, `nccl`: `2.27.3`, `node gpu-17`: `yes`. What is not known is not there."""


class Kind(StrEnum):
    """What a factor is about, the likeliest first: the order of suspects that the past says nothing of."""

    TRANSPORT = "transport"
    PLACEMENT = "placement"
    VERSION = "version"
    CODE = "code"
    SPEC = "spec"
    NEIGHBOURS = "neighbours"
    NODE = "node"


@dataclass(frozen=True)
class Past:
    """A run with a known speed: one of the past, or the one that is asked about."""

    run: int
    speed: float
    """Samples per second, above 0. Runs of one history are of one size, so no division by GPUs is needed."""
    factors: Factors


class Standing(StrEnum):
    """What the past says of a suspect."""

    SUPPORTED = "supported"
    UNTESTED = "untested"  # no earlier run had it
    CONTRADICTED = "contradicted"


@dataclass(frozen=True)
class Suspect:
    """Something that differs between the run and its baseline, and what the past says of it."""

    factor: str
    kind: Kind
    value: Value
    usual: Value
    """What the baseline had (most of it)."""
    standing: Standing
    effect: float | None
    """The drop that it alone makes, as the past has it: 0.18 for 18 % slower; None where no comparison can be made."""
    supports: int
    contradicts: int
    with_it: int
    """Earlier runs that had it."""
    inseparable: tuple[str, ...] = ()
    """Other factors that changed with it in every earlier run (for an untested one: suspects that are new too): any of
    them may be the cause."""
    score: float = 0.0


@dataclass(frozen=True)
class Explanation:
    """How a run's speed compares with its like, and what may be why."""

    run: int
    speed: float
    usual_speed: float
    """The baseline's median."""
    baseline: tuple[int, ...]
    drop: float
    """0.18: 18 % slower; negative where it is faster."""
    noise: float | None
    """The robust relative standard deviation of earlier speeds; None with fewer than three."""
    slower: bool
    """Whether the drop is more than the past's own unsteadiness."""
    suspects: tuple[Suspect, ...] = ()
    """Best supported first."""
    earlier: int = 0
    """How many earlier runs were looked at."""


def explain(
    run: Past,
    earlier: Sequence[Past],
    kinds: Mapping[str, Kind] | None = None,
    baseline: Iterable[int] | None = None,
) -> Explanation | None:
    """Compares `run` with `earlier` runs of its like, oldest first; None where there is none.

    `baseline` names the runs to measure it against (default: the newest BASELINE of them). `kinds` says what each factor
    is about (default: kind_of).
    """
    if not earlier:
        return None
    wanted = None if baseline is None else set(baseline)
    base = [one for one in earlier if one.run in wanted] if wanted is not None else list(earlier[-BASELINE:])
    if not base:
        return None
    usual = median(one.speed for one in base)
    drop = 1 - run.speed / usual
    noise = _noise([one.speed for one in earlier])
    slower = drop >= max(LEAST_DROP, SIGMAS * (noise or 0.0))
    found = Explanation(
        run.run, run.speed, usual, tuple(one.run for one in base), drop, noise, slower, earlier=len(earlier)
    )
    if drop <= 0:
        return found
    differs = _differing(run, base)
    known = kinds or {}
    suspects = [
        _suspect(run, earlier, factor, value, differs, usual, known.get(factor) or kind_of(factor))
        for factor, value in differs.items()
    ]
    return replace(found, suspects=tuple(sorted(suspects, key=_order)))


def kind_of(factor: str) -> Kind:
    """What a factor is about, by the first word of its name; a version where nothing else fits."""
    first = factor.split(" ")[0].split(".")[0]
    kinds = {
        "transport": Kind.TRANSPORT,
        "level": Kind.PLACEMENT,
        "leaves": Kind.PLACEMENT,
        "nodes": Kind.PLACEMENT,
        "node": Kind.NODE,
        "neighbours": Kind.NEIGHBOURS,
        "spec": Kind.SPEC,
        "code": Kind.CODE,
    }
    return kinds.get(first, Kind.VERSION)


def _noise(speeds: Sequence[float]) -> float | None:
    """How unsteady speeds are, relative to their median; None where there are fewer than three.

    From one run to the next, or around the median, whichever is less: a change that stayed is one step and not an
    unsteadiness, and neither are a few slow runs among steady ones.
    """
    if len(speeds) < 3:
        return None
    middle = median(speeds)
    steps = median(abs(math.log(b / a)) for a, b in itertools.pairwise(speeds)) / math.sqrt(2)
    return MAD_TO_SIGMA * min(steps, median(abs(math.log(speed / middle)) for speed in speeds))


def _differing(run: Past, base: Sequence[Past]) -> dict[str, tuple[Value, Value]]:
    """By factor: the run's value, and the baseline's usual one where that is another and most of the baseline has it."""
    found = {}
    for factor, value in run.factors.items():
        known = [one.factors[factor] for one in base if factor in one.factors]
        if not known or known.count(value) * 2 >= len(known):
            continue
        usual = max(sorted(set(known)), key=known.count)
        if usual != value:
            found[factor] = (value, usual)
    return found


def _suspect(
    run: Past,
    earlier: Sequence[Past],
    factor: str,
    values: tuple[Value, Value],
    differs: Mapping[str, tuple[Value, Value]],
    usual_speed: float,
    kind: Kind,
) -> Suspect:
    value, usual = values
    had = [one for one in earlier if one.factors.get(factor) == value]
    lacked = [one for one in earlier if factor in one.factors and one.factors[factor] != value]
    # In the middle, by ratio, of the usual speed and the run's.
    line = math.sqrt(usual_speed * run.speed)
    supports = sum(one.speed <= line for one in had)
    contradicts = len(had) - supports
    if not had:
        alone = [other for other in differs if other != factor and _never(earlier, other, differs[other][0])]
        return Suspect(factor, kind, value, usual, Standing.UNTESTED, None, 0, 0, 0, tuple(sorted(alone)))
    effects = [_drop(had, lacked)]
    inseparable = []
    for other, there in run.factors.items():
        if other == factor:
            continue
        within = _matched(had, lacked, other, there)
        if within is not None:
            effects.append(within)
        elif _always_together(earlier, factor, value, other, there):
            inseparable.append(other)
    known = [effect for effect in effects if effect is not None]
    effect = min(known) if known else None
    drop = 1 - run.speed / usual_speed
    share = 0.0 if effect is None else max(0.0, min(1.0, effect / drop))
    sure = _wilson(supports, supports + contradicts)
    standing = (
        Standing.SUPPORTED if supports > contradicts and (effect is None or share >= 0.2) else Standing.CONTRADICTED
    )
    return Suspect(
        factor, kind, value, usual, standing, effect, supports, contradicts, len(had), tuple(sorted(inseparable)),
        share * sure,
    )  # fmt: skip


def _never(earlier: Sequence[Past], factor: str, value: Value) -> bool:
    return all(one.factors.get(factor) != value for one in earlier)


def _drop(had: Sequence[Past], lacked: Sequence[Past]) -> float | None:
    """How much slower the median of those that had it is."""
    if not had or not lacked:
        return None
    return 1 - median(one.speed for one in had) / median(one.speed for one in lacked)


def _matched(had: Sequence[Past], lacked: Sequence[Past], other: str, there: Value) -> float | None:
    """The drop among runs that are equal in another suspect, weighted by the pairs that each side allows; None without
    any."""
    drops, weights = [], []
    for equal in (True, False):
        one = [run for run in had if other in run.factors and (run.factors[other] == there) is equal]
        two = [run for run in lacked if other in run.factors and (run.factors[other] == there) is equal]
        drop = _drop(one, two)
        if drop is not None:
            drops.append(drop)
            weights.append(min(len(one), len(two)))
    return sum(drop * weight for drop, weight in zip(drops, weights, strict=True)) / sum(weights) if drops else None


def _always_together(earlier: Sequence[Past], factor: str, value: Value, other: str, there: Value) -> bool:
    """Whether the one changed whenever the other did: no run tells them apart."""
    same = [
        (one.factors[factor] == value) == (one.factors[other] == there)
        for one in earlier
        if factor in one.factors and other in one.factors
    ]
    return all(same) or not any(same)


def _wilson(hits: int, of: int) -> float:
    """The lower end of Wilson's interval for a share."""
    if not of:
        return 0.0
    share, square = hits / of, Z * Z
    middle = share + square / (2 * of)
    spread = Z * math.sqrt(share * (1 - share) / of + square / (4 * of * of))
    return max(0.0, (middle - spread) / (1 + square / of))


_STANDINGS = tuple(Standing)
_KINDS = tuple(Kind)


def _order(suspect: Suspect) -> tuple[int, float, int, str]:
    return _STANDINGS.index(suspect.standing), -suspect.score, _KINDS.index(suspect.kind), suspect.factor


# In words ---------------------------------------------------------------------------------------------------------------


def sentence(found: Explanation, most: int = 4) -> str:
    """`18 % slower than the last five (1010 for 1234 samples/s); differs: ...`, the best supported first.

    Suspects that the past contradicts are left out while there are others.
    """
    count = len(found.baseline)
    than = "the run before it" if count == 1 else f"the last {_WORDS.get(count, count)}"
    figures = f"({found.speed:,.4g} for {found.usual_speed:,.4g} samples/s)"
    if found.drop <= 0:
        return f"{-found.drop:.0%} faster than {than} {figures}".replace("%", " %")
    said = f"{found.drop:.0%} slower than {than} {figures}".replace("%", " %")
    if found.noise is None:
        said += f", which are too few to tell it from chance ({found.earlier})"
    elif not found.slower:
        said += f", within what its runs vary by ({found.noise:.1%})".replace("%", " %")
    kept = [one for one in found.suspects if one.standing is not Standing.CONTRADICTED]
    new = [one for one in kept if one.kind is Kind.NODE and one.standing is Standing.UNTESTED]
    if len(new) > 1:
        kept = [one for one in kept if one not in new]
    parts = [f"{name(one)} ({evidence(one)})" for one in kept[:most]]
    if len(new) > 1 and len(parts) < most:
        names = [one.factor.removeprefix("node ") for one in new]
        shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
        parts.append(f"nodes that no earlier run was on ({shown})")
    if parts:
        return f"{said}; differs: {', '.join(parts)}"
    ruled_out = ", ".join(name(one) for one in found.suspects[:most])
    if ruled_out:
        return f"{said}; differs: {ruled_out}, none of which slowed earlier runs"
    return f"{said}; nothing that is recorded differs"


_WORDS = {2: "two", 3: "three", 4: "four", 5: "five"}


def name(suspect: Suspect) -> str:
    """`2 leaves instead of 1`, `NCCL 2.27 for 2.29`, `node gpu-17`."""
    factor, value, usual = suspect.factor, suspect.value, suspect.usual
    if suspect.kind is Kind.NODE and factor.startswith("node "):
        return factor if value == "yes" else f"without {factor}"
    if factor in ("leaves", "nodes"):
        return f"{value} {_singular(factor) if value == '1' else factor} instead of {usual}"
    if factor == "neighbours":
        return f"{value} other runs on its leaves instead of {usual}"
    if suspect.kind is Kind.VERSION:
        return f"{_TITLES.get(factor, factor)} {value} for {usual}"
    return f"{factor} {value} instead of {usual}"


_TITLES = {"nccl": "NCCL", "cuda": "CUDA", "cudnn": "cuDNN", "torch": "torch", "driver": "driver"}


def _singular(word: str) -> str:
    return {"leaves": "leaf", "nodes": "node"}[word]


def evidence(suspect: Suspect) -> str:
    """What the past says of it, in words that claim no more than it does."""
    if suspect.standing is Standing.UNTESTED:
        return "only this run has it"
    runs = "run" if suspect.with_it == 1 else "runs"
    said = f"{suspect.supports} of {suspect.with_it} earlier {runs} with it {'was' if suspect.supports == 1 else 'were'} slow too"
    if suspect.effect is not None:
        said += f", by {suspect.effect:.0%}".replace("%", " %")
    if suspect.inseparable:
        said += f"; {', '.join(suspect.inseparable)} always changed with it"
    return said
