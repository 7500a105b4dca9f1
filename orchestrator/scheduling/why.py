"""Why a run waits, when it should start, and what would start it now."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from orchestrator.placement.values import Placement
from orchestrator.scheduling.decision import Choice, Reason, Sure
from orchestrator.scheduling.memory import Memory
from orchestrator.scheduling.run import Run
from orchestrator.scheduling.snapshot import Snapshot


@dataclass(frozen=True)
class Suggestion:
    """One change that starts the run in the next cycle: tried with the scheduler itself before it is given."""

    text: str
    """`with 1x8 workers it starts now, within one node at 370 GB/s`"""
    placement: Placement
    """Where it would start."""
    changes: Mapping[str, Any] = field(default_factory=dict)
    """Keys of its job file and their new values, as `JobSpec` takes them: `{"workers": "1x8"}`; what `orch set` could do."""
    ends: int | None = None
    """The running run whose end (or cancel) would start it; then nothing is changed."""


@dataclass(frozen=True)
class Explanation:
    """All that keeps a waiting run waiting."""

    run: Run
    starts: Placement | None
    """Where it starts right now; then there are no reasons."""
    reasons: tuple[Reason, ...]
    """The one that holds it back most first."""
    ahead: tuple[Run, ...]
    """The waiting runs before it in the order of the queue, first come first; at most `most_ahead` of them."""
    ahead_count: int
    start: datetime | None
    """When it should start at the latest (`sure` promised or expected) or at the earliest (rough)."""
    sure: Sure
    choice: Choice | None
    suggestions: tuple[Suggestion, ...]


@dataclass(frozen=True)
class Delay:
    """A waiting run that a new one would delay."""

    run: Run
    before: datetime | None
    """When it would start without the new one; None: nobody can say."""
    after: datetime | None
    seconds: float | None


@dataclass(frozen=True)
class Preview:
    """What would become of a run if it were submitted now: for `orch plan`."""

    explanation: Explanation
    delays: tuple[Delay, ...]
    """Whom it would delay, the longest delay first."""
    preempted: tuple[Run, ...]
    """The runs that would be told to give way to it."""


def why(run_id: int, snapshot: Snapshot, now: datetime, memory: Memory | None = None) -> Explanation:
    """Why the run of `snapshot.waiting` waits. KeyError where it does not wait."""
    raise NotImplementedError


def preview(run: Run, snapshot: Snapshot, now: datetime, memory: Memory | None = None) -> Preview:
    """What would become of `run` (any id that no other has, queued_at now) if it were submitted."""
    raise NotImplementedError


def applied(snapshot: Snapshot, run_id: int, suggestion: Suggestion) -> Snapshot:
    """The snapshot after the suggestion was followed."""
    raise NotImplementedError
