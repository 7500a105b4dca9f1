"""Whether a gang gets on or stands still, from how old each rank's newest sign of progress is. Pure.

All durations are seconds by the clock of the rank's own node, between its newest sign and its newest look. So a
controller that was away, an agent that is not heard and a clock that is set make nobody look hung: the newest look
stays where it is, and what it says remains true of its own moment.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

PACES, PAUSES = 5.0, 2.0
"""A rank may take so many times its own p99 step time, or its longest pause so far, before it stands still."""

Phase = Literal["first", "steps", "save"]


@dataclass(frozen=True)
class Limits:
    """How long a gang may stand still."""

    after: float = 60.0
    """Between two steps, at least."""
    first: float = 900.0
    """Before there is a pace to go by; while a checkpoint is saved; while ranks print, but show no progress."""
    asked: bool = False
    """The job itself says so, and not only the cluster's policy."""


@dataclass(frozen=True)
class Signs:
    """What a rank's newest look says of its progress."""

    rank: int
    lived: float
    """Since it began."""
    still: float | None
    """Since the newest step, batch, report, line that a pattern found, or end of a save; None before the first."""
    quiet: float | None = None
    """Since it printed last; None where that is not known."""
    saving: bool = False
    p99: float | None = None
    """Of its steps so far."""
    pause: float | None = None
    """The longest time between two signs so far."""

    def patience(self, limits: Limits) -> float:
        """How long it may go without a sign."""
        if self.still is None or self.saving or (self.p99 is None and self.pause is None):
            return max(limits.first, limits.after)
        pace = max(limits.after, PACES * (self.p99 or 0.0), min(PAUSES * (self.pause or 0.0), limits.first))
        # It may be at something that cannot be seen, an evaluation say, and tell of that.
        printing = self.quiet is not None and self.quiet < pace
        return max(pace, limits.first) if printing else pace

    def since(self) -> float:
        """How long ago its newest sign was; what it prints is one until it has shown progress."""
        if self.still is not None:
            return self.still
        return self.lived if self.quiet is None else min(self.lived, self.quiet)


@dataclass(frozen=True)
class Standstill:
    """No rank has got on for longer than it may."""

    seconds: float
    """Since the newest sign of any rank."""
    limit: float
    """Of the rank that was given the longest."""
    phase: Phase
    seen: bool
    """Whether any rank has ever shown progress."""

    @property
    def text(self) -> str:
        """`no step for 66 s (limit 60 s)`."""
        what = {
            "first": "no step",
            "steps": "no step",
            "save": "a save of a checkpoint has been under way, without an end,",
        }[self.phase]
        when = " since it began" if self.phase == "first" and not self.seen else ""
        return f"{what} for {self.seconds:.0f} s{when} (limit {self.limit:.0f} s)"


def judge(signs: Sequence[Signs], limits: Limits) -> Standstill | None:
    """The gang's standstill; None while any rank gets on, or nothing is known of any."""
    if not signs or any(one.since() < one.patience(limits) for one in signs):
        return None
    seen = any(one.still is not None for one in signs)
    saving = any(one.saving for one in signs)
    phase: Phase = "save" if saving else "steps" if any(one.p99 or one.pause for one in signs) else "first"
    return Standstill(
        min(one.since() for one in signs), max(one.patience(limits) for one in signs), phase, seen or saving
    )
