"""What each waiting run waits for, and has waited for: kept while it waits, written down when the wait is over."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from orchestrator.history.render import time_json
from orchestrator.scheduling.decision import Reason, Wait
from orchestrator.scheduling.run import Run

MOST_REASONS = 8


@dataclass
class _Waiting:
    """One run's wait so far."""

    since: datetime
    reason: Reason
    at: datetime
    """Since when `reason` is of its kind."""
    past: dict[str, tuple[Reason, float]] = field(default_factory=dict)
    """By kind: the last reason of that kind, and for how many seconds there was one."""


class Waits:
    """Follows the plans."""

    def __init__(self) -> None:
        self._of: dict[int, _Waiting] = {}

    def take_in(self, waits: Iterable[Wait], now: datetime) -> list[int]:
        """The reasons of a new plan; gives the runs whose reason is another one now."""
        before, self._of = self._of, {}
        changed = []
        for wait in waits:
            run, reason = wait.run, wait.reason
            known = before.get(run.id)
            if known is None:
                known = _Waiting(since_when(run), reason, now)
                changed.append(run.id)
            elif known.reason.text != reason.text:
                if known.reason.kind is not reason.kind:
                    _close(known, now)
                known.reason = reason
                changed.append(run.id)
            self._of[run.id] = known
        return changed

    def reason(self, run: int) -> Reason | None:
        """Why it waits, as the last plan said."""
        return None if (known := self._of.get(run)) is None else known.reason

    def over(self, run: Run, now: datetime) -> dict[str, Any] | None:
        """The wait as it is written down when it ends; None where it was none. It is forgotten with the next plan."""
        known = self._of.get(run.id)
        return None if known is None else {"since": known.since, "summary": summary(known, now)}


def since_when(run: Run) -> datetime:
    """When it last entered the queue: its age may be older than that."""
    ended = run.attempt.ended_at if run.attempt is not None else None
    return run.queued_at if ended is None else max(ended, run.queued_at)


def _close(known: _Waiting, now: datetime) -> None:
    kind = known.reason.kind.value
    before = known.past.get(kind, (known.reason, 0.0))[1]
    known.past[kind] = (known.reason, before + (now - known.at).total_seconds())
    known.at = now


def summary(known: _Waiting, now: datetime) -> dict[str, Any]:
    """The reasons, the longest first: `{"reasons": [{"kind", "text", "numbers", "seconds"}], "seconds", "since"}`."""
    _close(known, now)
    longest = sorted(known.past.values(), key=lambda one: -one[1])
    return {
        "since": time_json(known.since),
        "seconds": round((now - known.since).total_seconds(), 3),
        "reasons": [reason_json(reason) | {"seconds": round(seconds, 3)} for reason, seconds in longest[:MOST_REASONS]],
    }


def reason_json(reason: Reason) -> dict[str, Any]:
    return {"kind": reason.kind.value, "text": reason.text, "numbers": dict(reason.numbers)}
