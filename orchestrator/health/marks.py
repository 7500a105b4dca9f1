"""What keeps a node out by decision and not by its state: somebody drained it, or it failed too often."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Literal

FIRST_S, MOST_S = 3600.0, 86400.0
"""How long a first quarantine lasts, and the longest: each one after a failed probation lasts twice as long."""
CLEAN_ATTEMPTS = 10
CLEAN_S = 86400.0
"""A probation is over after so many attempts that broke through no fault of the node, or after this time with at least one."""

Stage = Literal["quarantined", "probation", "cleared"]


@dataclass(frozen=True)
class Drain:
    """Somebody took the node out of use."""

    at: datetime
    by: str | None = None
    reason: str | None = None
    when_idle: bool = False
    """What runs there may end by itself."""

    @property
    def text(self) -> str:
        """`drained by ana: new cables`."""
        return "drained" + (f" by {self.by}" if self.by else "") + (f": {self.reason}" if self.reason else "")


@dataclass(frozen=True)
class Quarantine:
    """A node that fails more often than its like, and its way back."""

    stage: Stage
    since: datetime
    """When the stage began. Attempts that ended before a probation, or before it was cleared, count against the node no more."""
    until: datetime | None
    """When the node is tried again; None but in quarantine."""
    times: int
    """Quarantines in a row, none of which was followed by a clean probation."""
    why: str
    """With its numbers."""

    @property
    def seconds(self) -> float:
        """How long this one lasts."""
        return min(MOST_S, FIRST_S * 2.0 ** min(self.times - 1, 16))

    @property
    def text(self) -> str:
        if self.stage == "quarantined" and self.until is not None:
            return f"quarantined until {self.until:%Y-%m-%d %H:%M} UTC: {self.why}"
        if self.stage == "probation":
            return f"on probation since {self.since:%Y-%m-%d %H:%M} UTC, after {self.why}"
        return ""


@dataclass(frozen=True)
class Mark:
    """What was decided about one node."""

    drain: Drain | None = None
    quarantine: Quarantine | None = None
    forgiven_at: datetime | None = None
    """When somebody last said that the node is well: what was seen of its health before counts no more."""

    @property
    def out(self) -> str | None:
        """Why nothing new is placed on the node; None where it may be used."""
        return None if self.drain is None else self.drain.text

    @property
    def shunned(self) -> str | None:
        """Why nothing is placed on the node that other nodes will do for; None where it is as good as any."""
        found = self.quarantine
        return None if found is None or found.stage != "quarantined" else found.text

    @property
    def counts_from(self) -> datetime | None:
        """Attempts that ended earlier say nothing more about the node; None: all do."""
        found = self.quarantine
        return None if found is None or found.stage == "quarantined" else found.since


def quarantined(before: Quarantine | None, why: str, now: datetime) -> Quarantine:
    """The node goes out; for twice as long where it fails its probation."""
    times = before.times + 1 if before is not None and before.stage != "cleared" else 1
    new = Quarantine("quarantined", now, None, times, why)
    return replace(new, until=now + timedelta(seconds=new.seconds))


def lapsed(one: Quarantine, now: datetime) -> Quarantine:
    """The same, or its probation once its time is over."""
    if one.stage == "quarantined" and one.until is not None and one.until <= now:
        return replace(one, stage="probation", since=one.until, until=None)
    return one


def proven(one: Quarantine, clean: int, now: datetime) -> Quarantine:
    """The same, or cleared where it has proven itself: `clean` attempts ended there since, none broken by it."""
    if one.stage != "probation":
        return one
    long_enough = clean and (now - one.since).total_seconds() >= CLEAN_S
    return cleared(one, now) if clean >= CLEAN_ATTEMPTS or long_enough else one


def cleared(one: Quarantine, now: datetime) -> Quarantine:
    """Nothing is held against the node any more."""
    return replace(one, stage="cleared", since=now, until=None, times=0)
