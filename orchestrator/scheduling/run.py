"""Runs and attempts as values: what the store gives, the scheduler reads and the API shows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal

from orchestrator.health.failure import Failure
from orchestrator.placement.values import Placement
from orchestrator.progress.gpu_time import NodeTime
from orchestrator.progress.values import Progress
from orchestrator.scheduling.lifecycle import LIVE, TERMINAL, Event, Outcome, State
from orchestrator.spec import JobSpec


@dataclass(frozen=True)
class Code:
    """The snapshot that runs: where it is by content, and what git said of the tree it was taken from."""

    sha256: str
    git: str | None = None
    dirty: bool | None = None


@dataclass(frozen=True)
class NewRun:
    """A submission, checked, before it has an id."""

    spec: JobSpec
    user: str
    code: Code | None
    workdir: str
    """The absolute folder that the snapshot was taken from, on the submitter's machine."""
    key: str | None = None
    """The submitter's idempotency key: a second submission by the same user with it is the first one."""


@dataclass(frozen=True)
class Stop:
    """Why a live attempt is told to end: recorded before it is told, so that the next controller goes on with it."""

    kind: Literal["cancelled", "preempted", "drained", "time_limit", "hang"]
    reason: str | None = None
    """In the user's terms."""
    for_run: int | None = None
    """Which run takes the place, where one does."""
    rank: int | None = None
    """Whose fault it is, where a rank stands out; and its node."""
    node: str | None = None


@dataclass(frozen=True)
class Attempt:
    """One launch of a run's gang."""

    number: int
    placement: Placement
    started_at: datetime
    ranks_started_at: datetime | None = None
    """When every rank was up; None before."""
    ended_at: datetime | None = None
    outcome: Outcome | None = None
    failure: Failure | None = None
    exit_codes: dict[int, int] = field(default_factory=dict)
    """By rank: the exit status, or minus the signal."""
    environment: dict[str, dict[str, Any]] | None = None
    """By node: the versions that the ranks were started with (health/recorded.py); None where they were never told."""
    transport: dict[str, Any] | None = None
    """What NCCL's log showed, as health/transport.py makes it; None before it is known and where no log tells it."""
    stop: Stop | None = None
    progress: Progress | None = None
    """How far it got and how fast; None where nothing could be seen of it."""
    used: tuple[NodeTime, ...] = ()
    """What its GPUs were used for, by node, as last counted."""


@dataclass(frozen=True)
class RunEvent:
    """One row of the append-only history of a run."""

    sequence: int
    at: datetime
    event: Event
    state: State
    """The state after the event."""
    reason: str | None = None
    attempt: int | None = None
    by: str | None = None
    """Who asked, where somebody did."""


@dataclass(frozen=True)
class Wait:
    """One wait in the queue that is over."""

    number: int
    """Of the attempt that followed, or would have."""
    since: datetime
    until: datetime
    summary: dict[str, Any]
    """What it was for: the JSON of `orch why` at its end."""


@dataclass(frozen=True)
class Dependency:
    """Runs that must have succeeded before: those with the ids from `first` to `last`."""

    first: int
    last: int
    word: str
    """What the submitter called them."""


@dataclass(frozen=True)
class Array:
    """One submission of many runs, which have the ids from `id` on, without a gap."""

    id: int
    spec: JobSpec
    """As it was submitted, with its placeholders."""
    user: str
    size: int
    limit: int | None = None
    """How many may hold a place at once."""

    @property
    def name(self) -> str:
        return self.spec.name

    @property
    def ref(self) -> str:
        """What commands call it by."""
        return f"{self.id}[]"

    @property
    def runs(self) -> range:
        """The ids of its runs."""
        return range(self.id, self.id + self.size)


@dataclass(frozen=True)
class Element:
    """A run's place in its array."""

    array: int
    index: int
    values: Mapping[str, str] = field(default_factory=dict)
    """What its placeholders became."""


@dataclass(frozen=True)
class Run:
    """One submission, or one run of an array, and its whole life."""

    id: int
    spec: JobSpec
    user: str
    code: Code | None
    workdir: str
    state: State
    reason: str | None
    submitted_at: datetime
    queued_at: datetime
    """Its age in the queue counts from here: the submission, or the last retry that somebody asked for. An attempt that
    was preempted, or that ended by no fault of the run, leaves it as it is."""
    started_at: datetime | None = None
    finished_at: datetime | None = None
    attempts: tuple[Attempt, ...] = ()
    element: Element | None = None
    after: tuple[Dependency, ...] = ()
    """Of an array's run: the array's."""
    events: tuple[RunEvent, ...] = ()
    """Filled only where one run is asked for whole; `waits` too."""
    waits: tuple[Wait, ...] = ()

    @property
    def name(self) -> str:
        return self.spec.name

    @property
    def label(self) -> str:
        """The name, with the place in the array: `sweep[3]`."""
        return self.name if self.element is None else f"{self.name}[{self.element.index}]"

    @property
    def attempt(self) -> Attempt | None:
        return self.attempts[-1] if self.attempts else None

    @property
    def ended(self) -> bool:
        return self.state in TERMINAL

    @property
    def live(self) -> bool:
        return self.state in LIVE


@dataclass(frozen=True)
class NodeRecord:
    """What history knows of a node."""

    name: str
    address: str
    state: str
    """up or down."""
    first_seen: datetime
    last_seen: datetime
    hardware: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, Any] = field(default_factory=dict)
