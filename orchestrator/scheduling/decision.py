"""What was decided: which runs start and where, which give way, what is kept for whom, and why the others wait."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import TYPE_CHECKING

from orchestrator.placement.values import Placement
from orchestrator.scheduling.run import Run

if TYPE_CHECKING:
    from orchestrator.scheduling.memory import Memory


class Kind(StrEnum):
    """What keeps a run waiting."""

    NEVER = "never"  # the cluster or its quota could not hold it even when empty
    LEASE = "lease"  # an earlier attempt may still live
    BACKOFF = "backoff"  # its last attempts broke, and the next one comes later
    DEPENDENCY = "dependency"  # a run before it has not succeeded
    ARRAY = "array"  # its array runs as many as it may
    HELD = "held"  # somebody keeps it back
    QUOTA = "quota"  # its team or user holds as much as it may
    SHAPE = "shape"  # too few GPUs are free, or not in the right places
    HINT = "hint"  # there is a place, but not as near as it wants for now
    HEALTH = "health"  # nodes are left out: down, drained, unhealthy
    UNFIT = "unfit"  # nodes are left out: they lack what it requires
    RESERVED = "reserved"  # what is free is kept for a run before it
    PRIORITY = "priority"  # runs of higher priority are before it
    SHARE = "share"  # runs of users who have had less are before it
    AGE = "age"  # runs that have waited longer are before it
    CHOICE = "choice"  # it would be done sooner at a tighter place later
    PREEMPTING = "preempting"  # runs that give way to it are being stopped
    TRYING = "trying"  # the links of the nodes that it gets are tried


@dataclass(frozen=True, slots=True)
class Reason:
    """One thing that keeps a run waiting."""

    kind: Kind
    text: str
    """A sentence without a full stop, numbers in it."""
    numbers: Mapping[str, float] = field(default_factory=dict)


class Sure(StrEnum):
    """How far a time can be relied on."""

    PROMISED = "promised"  # by time limits that are enforced, and by nothing else
    EXPECTED = "expected"  # by what runs of the same names took, with a margin
    ROUGH = "rough"  # by the work that is ahead; not before
    UNKNOWN = "unknown"  # hangs on a run that nobody can say the end of


@dataclass(frozen=True)
class Choice:
    """Take a looser place now or wait for a tighter one: the two numbers, in seconds from now until the run would be done."""

    level: str
    """What there is now."""
    done_now_s: float
    tighter: str
    """The level that is waited for, or would be."""
    wait_s: float | None
    """Until the tighter place; None where nobody can say."""
    done_waiting_s: float | None
    slowdown: float
    """How much longer a step takes at the looser place."""
    burden_s: float = 0.0
    """What the longer run would cost all the others that wait, as seconds of this run's completion."""
    measured: bool = False
    """Whether the slowdown is the name's own measurement and not the bandwidth model's."""
    must: bool = False
    """Whether the looser place is so much slower that it is not taken, however long the wait (policy.split)."""

    @property
    def waits(self) -> bool:
        return self.must or (self.done_waiting_s is not None and self.done_waiting_s < self.done_now_s + self.burden_s)

    @property
    def done_s(self) -> float:
        """When it would be done with the wait; infinite where nobody can say."""
        return float("inf") if self.done_waiting_s is None else self.done_waiting_s


@dataclass(frozen=True)
class Start:
    """A run that starts now."""

    run: Run
    placement: Placement
    before: int | None = None
    """The run whose reserved place it uses until then, where it is backfilled into one."""
    choice: Choice | None = None
    """Why it takes this place though there will be a tighter one."""


@dataclass(frozen=True)
class Preemption:
    """A run that gives way to another."""

    run: Run
    beneficiary: Run
    lost_gpu_s: float
    """GPU-seconds since its last checkpoint, or since its start where none is known."""
    by_quota: bool = False
    """Whether it borrowed what the other is guaranteed; else it has lower priority, or has had more (service.py)."""

    @property
    def text(self) -> str:
        other = self.beneficiary
        higher = "has higher priority" if other.spec.priority > self.run.spec.priority else "has had fewer GPU-hours"
        why = "takes back its guaranteed quota" if self.by_quota else higher
        hours = self.lost_gpu_s / 3600
        lost = f"{hours:.1f} GPU-hours" if hours >= 0.1 else f"{self.lost_gpu_s:.0f} GPU-seconds"
        return f"gives way to run {other.id} ({other.name}), which {why}; at most {lost} of work are lost"


@dataclass(frozen=True)
class Reservation:
    """A place that is kept for a waiting run."""

    run: Run
    placement: Placement
    start: datetime | None
    """When it is free at the latest; None where nobody can say."""
    sure: Sure
    waits_for: tuple[int, ...] = ()
    """The runs that hold some of it now."""


@dataclass(frozen=True, slots=True)
class Wait:
    """A run that waits, and the foremost reason."""

    run: Run
    reason: Reason


@dataclass(frozen=True)
class Plan:
    """What to do now. Runs are in the order of the queue."""

    starts: tuple[Start, ...] = ()
    waits: tuple[Wait, ...] = ()
    preemptions: tuple[Preemption, ...] = ()
    reservations: tuple[Reservation, ...] = ()
    look_again_s: float | None = None
    """When this should be asked again though nothing happened, in seconds from now: a patience runs out, a run becomes overdue
    or may be preempted, or the plan stopped before its end (0). None: only when something happens."""
    memory: Memory | None = field(default=None, compare=False, repr=False)
    """For the next call: it makes it faster and changes nothing."""
