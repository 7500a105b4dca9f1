"""In what order waiting runs are looked at: guaranteed part, priority, what must not wait longer, fair share, age.

Fair share is Slurm's Fair Tree (Cox and Morrison, Brigham Young University, since Slurm 14.11) without its ranks: at each level of
the tree siblings are compared by usage over share, teams first, then the users of the team that has had least. So no user of a
team that has had its part passes one of a team that has not. Usage decays (fairness.py), and what is held now counts as if it were
held an hour longer: otherwise whoever has used a second less would get all that is free at once.

A run of a user who has had much could wait for ever while others keep coming. So one that has waited for `overdue` goes before
all younger ones of its priority, and so does a gang that lost its place to a failing machine.
"""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Callable, Iterator
from datetime import datetime
from functools import cached_property
from operator import attrgetter

from orchestrator.policy import Policy
from orchestrator.scheduling.ask import Ask
from orchestrator.scheduling.fairness import Account, worth_so_far
from orchestrator.scheduling.quota import Held, account_of
from orchestrator.scheduling.snapshot import Snapshot

_AGE = attrgetter("age")
_MOST = 1 << 30
AHEAD_S = 3600.0
"""What is held counts as if it were held so much longer."""


class Usage:
    """What each account has had, followed while a decision is made; worked out when it is first asked for."""

    def __init__(self, snapshot: Snapshot, now: datetime) -> None:
        self._snapshot, self._now, self._policy = snapshot, now, snapshot.policy
        self._started: list[tuple[Account, int]] = []
        """Not counted yet."""

    def start(self, account: Account, gpus: int) -> None:
        self._started.append((account, gpus))

    def of_team(self, team: str) -> float:
        """Usage over share."""
        _, by_team = self._counted()
        return by_team.get(team, 0.0) / self._policy.team(team).quota.share

    def of_user(self, account: Account) -> float:
        by_user, _ = self._counted()
        return by_user.get(account, 0.0) / self._policy.team(account[0]).of(account[1]).share

    def _counted(self) -> tuple[dict[Account, float], dict[str, float]]:
        by_user, by_team = self._before
        for account, gpus in self._started:
            by_user[account] += gpus * AHEAD_S
            by_team[account[0]] += gpus * AHEAD_S
        self._started.clear()
        return by_user, by_team

    @cached_property
    def _before(self) -> tuple[dict[Account, float], dict[str, float]]:
        """By user and by team, with what runs."""
        policy, now = self._policy, self._now
        by_user: dict[Account, float] = defaultdict(float, self._snapshot.usage.decayed(policy.half_life, now))
        for run in self._snapshot.running:
            account, gpus = account_of(run, policy), run.spec.workers.total
            if (attempt := run.attempt) is not None:
                by_user[account] += worth_so_far(gpus, attempt.started_at, policy.half_life, now)
            by_user[account] += gpus * AHEAD_S
        by_team: dict[str, float] = defaultdict(float)
        for (team, _), used in by_user.items():
            by_team[team] += used
        return by_user, by_team


class Order:
    """The asks, one after another. Say `started` of one that starts, before the next is taken.

    `able`: whether a run could start if there were room for it.
    """

    def __init__(
        self, asks: list[Ask], policy: Policy, usage: Usage, held: Held, now: datetime, able: Callable[[Ask], bool]
    ) -> None:
        self._asks, self._policy, self._usage, self._held, self._able = asks, policy, usage, held, able
        self._overdue = now.timestamp() - policy.overdue
        self._moved = False
        self._before: dict[str | Account, float] = {}
        """By team and by user: the highest priority among its runs that ask for more than is left of its guaranteed part."""

    def __iter__(self) -> Iterator[Ask]:
        rest = self._asks
        if self._policy.guarantees:
            left = {account: self._held.left_of_guaranteed(account) for account in {ask.account for ask in rest}}
            within = []
            rest = []
            for ask in self._asks:
                if ask.gpus <= max(left[ask.account]):
                    within.append(ask)
                else:
                    self._defer(ask, rest)
            for ask in self._by_priority(within):
                # What has started meanwhile may have used it up.
                if self.entitled(ask):
                    yield ask
                else:
                    self._defer(ask, rest)
        yield from self._by_priority(rest)

    def entitled(self, ask: Ask) -> bool:
        """Whether it lies within the guaranteed part of its team or user, and none of the same that asks for more has higher
        priority.

        Among a team's own runs priority comes first: otherwise one that gave way to another would at once be before it again.
        """
        of_team, of_user = self._held.left_of_guaranteed(ask.account)
        before = self._before
        return (ask.gpus <= of_team and ask.priority >= before.get(ask.account[0], ask.priority)) or (
            ask.gpus <= of_user and ask.priority >= before.get(ask.account, ask.priority)
        )

    def _defer(self, ask: Ask, rest: list[Ask]) -> None:
        rest.append(ask)
        before = self._before
        team = ask.account[0]
        if ask.priority > min(before.get(team, -_MOST), before.get(ask.account, -_MOST)) and self._able(ask):
            before[team] = max(ask.priority, before.get(team, -_MOST))
            before[ask.account] = max(ask.priority, before.get(ask.account, -_MOST))

    def started(self, ask: Ask) -> None:
        self._usage.start(ask.account, ask.gpus)
        self._held.add(ask.account, ask.gpus)
        self._moved = True

    def _by_priority(self, asks: list[Ask]) -> Iterator[Ask]:
        levels: dict[float, list[Ask]] = {}
        for ask in asks:
            # What it has had counts no more for one that is overdue.
            level = ask.run.spec.priority if ask.queued <= self._overdue else ask.priority
            levels.setdefault(level, []).append(ask)
        for priority in sorted(levels, reverse=True):
            first: list[Ask] = []
            rest: list[Ask] = []
            for ask in levels[priority]:
                (first if ask.recovering or ask.queued <= self._overdue else rest).append(ask)
            yield from sorted(first, key=lambda ask: (not ask.recovering, ask.age))
            yield from self._by_share(rest)

    def _by_share(self, asks: list[Ask]) -> Iterator[Ask]:
        asks.sort(key=_AGE, reverse=True)
        queues: dict[Account, list[Ask]] = {}
        for ask in asks:
            queue = queues.get(ask.account)
            if queue is None:
                queue = queues[ask.account] = []
            queue.append(ask)
        if len(queues) <= 1:
            yield from reversed(asks)
            return
        teams: dict[str, dict[Account, list[Ask]]] = {}
        for account, queue in queues.items():
            teams.setdefault(account[0], {})[account] = queue
        usage = self._usage
        users = {
            team: [(usage.of_user(account), queue[-1].age, account) for account, queue in accounts.items()]
            for team, accounts in teams.items()
        }
        for heap in users.values():
            heapq.heapify(heap)
        order = [(usage.of_team(team), min(age for _, age, _ in heap), team) for team, heap in users.items()]
        heapq.heapify(order)
        while order:
            *_, team = heapq.heappop(order)
            self._moved = False
            while users[team] and not self._moved:
                *_, account = heapq.heappop(users[team])
                queue = teams[team][account]
                while queue and not self._moved:
                    yield queue.pop()
                if queue:
                    heapq.heappush(users[team], (usage.of_user(account), queue[-1].age, account))
            if users[team]:
                heapq.heappush(order, (usage.of_team(team), min(age for _, age, _ in users[team]), team))
