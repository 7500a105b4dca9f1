"""What a decision is made from: everything that waits, runs and is free, in one frozen value."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal

from orchestrator.placement.tree import Free
from orchestrator.policy import Policy
from orchestrator.scheduling.fairness import Ledger
from orchestrator.scheduling.run import Attempt, Run

BlockKind = Literal["lease", "backoff", "dependency", "array", "held"]


@dataclass(frozen=True)
class Block:
    """Why a waiting run may not start yet, for a reason that the scheduler does not see by itself."""

    kind: BlockKind
    """`lease`: an earlier attempt may still live on a node that is cut off; `backoff`: its last attempt broke,
    and the next one comes later; `dependency`: a run of `after:` has not succeeded;
    `array`: as many of its array as may run at once do; `held`: somebody or something else keeps it back."""
    text: str
    """A sentence without a full stop, as `orch ps` prints it."""
    until: datetime | None = None
    """When it ends at the latest, where that is known: the end of a lease, or of a pause."""


Alike = tuple[str, str, int, tuple[str, ...]]
"""User, name, ranks and kinds of GPU: only runs that have these in common have steps that mean the same."""


def alike(run: Run) -> Alike:
    return run.user, run.name, run.spec.workers.total, run.spec.gpu


LEAST_STEPS = 20
"""Of an attempt whose pace counts: the first ones compile and fill caches."""


@dataclass(frozen=True)
class Pace:
    """How fast an attempt that has ended was where it was."""

    of: Alike
    level: str
    """Of its placement."""
    step_s: float
    """Its median step, in seconds."""


def pace_of(run: Run, attempt: Attempt) -> Pace | None:
    """None where too little of it was seen."""
    progress = attempt.progress
    if progress is None or progress.steps < LEAST_STEPS or not progress.step_time_p50:
        return None
    return Pace(alike(run), attempt.placement.level, progress.step_time_p50)


@dataclass(frozen=True)
class Snapshot:
    """What there is, at one moment. Nothing in it is changed by a decision."""

    waiting: tuple[Run, ...]
    """The runs that wait, in any order."""
    free: Free
    """What nobody holds. GPUs of attempts whose lease has not run out are held."""
    running: tuple[Run, ...] = ()
    """The runs that hold a place: their last attempt is live (starting, running or stopping)."""
    blocked: Mapping[int, Block] = field(default_factory=dict)
    """By run: why it may not start yet."""
    unfit: Mapping[int, Mapping[str, str]] = field(default_factory=dict)
    """By run: the nodes that it must not get because of `requires:`, and why."""
    ending: Mapping[int, datetime] = field(default_factory=dict)
    """By run: one that was told to stop, and when the last of it is gone at the latest (now + grace, when it was told)."""
    checkpoints: Mapping[int, datetime] = field(default_factory=dict)
    """By run: when its live attempt last wrote a checkpoint, where that is known."""
    history: Mapping[tuple[str, str], Sequence[float]] = field(default_factory=dict)
    """By (user, name): seconds that succeeded runs took from start of ranks to end, any order; twenty are plenty."""
    speeds: Mapping[Alike, Mapping[str, float]] = field(default_factory=dict)
    """By runs that are alike: measured seconds per step by the level of the placement (`node`, `leaf`, ...)."""
    usage: Ledger = field(default_factory=Ledger)
    """What attempts that have ended used; that of the running ones is added to it."""
    policy: Policy = field(default_factory=Policy)
