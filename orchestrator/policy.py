"""What an operator declares about who gets how much, and when: teams with their users, and the scheduler's settings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from types import MappingProxyType
from typing import Literal

NO_TEAM = "-"
"""The team of the runs that name none, or one that is not declared."""
OTHERS = "*"
"""In a team's users: each user that is not named."""

Preempt = Literal["priority", "quota", "off"]


@dataclass(frozen=True)
class Quota:
    """What a team or a user gets. GPUs are counted as ranks: a GPU each, or a CPU slot where the run computes on CPUs."""

    share: float = 1.0
    """Weight among siblings: a team of share 2 gets twice what one of share 1 gets when both want all they can get."""
    guaranteed: int = 0
    """So many GPUs it gets whenever it asks: what others borrowed of them is taken back."""
    limit: int | None = None
    """More than that it never holds; None: no limit."""


@dataclass(frozen=True)
class Team:
    """A team's quota and its users'."""

    quota: Quota = Quota()
    users: Mapping[str, Quota] = field(default_factory=dict)

    def of(self, user: str) -> Quota:
        return self.users.get(user) or self.users.get(OTHERS) or Quota()


@dataclass(frozen=True)
class Policy:
    """The scheduler's settings; durations in seconds."""

    teams: Mapping[str, Team] = field(default_factory=lambda: MappingProxyType({}))
    half_life: float = 7 * 86400.0
    """A GPU-second that was used so long ago counts half."""
    preemption: Preempt = "priority"
    """`priority`: runs of lower priority give way, and borrowers of a guaranteed quota; `quota`: only those; `off`: nobody."""
    min_runtime: float = 300.0
    """No attempt is preempted before it has had so long undisturbed."""
    overdue: float = 86400.0
    """A run that has waited so long goes before all younger ones of its priority, whatever the shares say."""
    reservations: int = 4
    """For so many of the first waiting runs a place is kept."""
    margin: float = 1.5
    """A run without a time limit is expected to take the longest time of its name's history, times this."""
    communication: float = 0.1
    """The part of a step at the best place that is communication nobody hides, where nothing was measured."""
    split: float = 1.1
    """A gang that would fit a tighter level of the empty cluster is not put on a looser place where its steps take so many times
    as long, however long it waits; below that, predicted completion decides."""
    service: float = 0.0
    """GPU-hours after which a run gives way to runs of its priority that have had fewer; 0: never."""
    hang: float | None = 60.0
    """How long no rank of a run may get on between steps before its attempt is ended, where its job says nothing; None: never."""
    first_step: float = 900.0
    """The same before the first step."""
    quarantine: float = 0.1
    """So large a part of the nodes may be left out at once for failing often, one at least; 0: orch only proposes it."""
    assumed_duration: float = 3600.0
    """How long a run takes of which nothing is known: to choose between a tighter place later and a looser one now, for nothing
    else."""

    @cached_property
    def guarantees(self) -> bool:
        """Whether anybody is guaranteed anything."""
        return any(t.quota.guaranteed or any(q.guaranteed for q in t.users.values()) for t in self.teams.values())

    def team_of(self, team: str | None) -> str:
        """The name under which a run of `team` is counted."""
        return NO_TEAM if team is None or (self.teams and team not in self.teams) else team

    def team(self, name: str) -> Team:
        return self.teams.get(name) or Team()
