"""Who may hold how much: limits that are never exceeded, guaranteed parts, and what is borrowed of them.

A team's guaranteed part is used by its runs in the order in which they started, those within their user's own guaranteed part
first. A run that lies wholly within it is *protected*; every other run borrows what is idle. A waiting run is *entitled* while it
and what its team (or user) holds fit into the guaranteed part. An entitled run goes before all that are not, and may take GPUs
back from borrowers of other teams whatever their priority. A protected run gives way to nobody but a run of its own team that
has higher priority. So a reclaim never makes another entitled, and the two cannot take from each other in turns.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from orchestrator.policy import NO_TEAM, Policy
from orchestrator.scheduling.estimates import Bound, gone_in_time
from orchestrator.scheduling.fairness import Account
from orchestrator.scheduling.run import Run


def account_of(run: Run, policy: Policy) -> Account:
    """The team and user under which a run is counted."""
    return policy.team_of(run.spec.team), run.user


class Held:
    """How many GPUs each team and user holds, followed while a decision is made."""

    def __init__(self, policy: Policy, running: Iterable[Run]) -> None:
        self._policy = policy
        self.by_team: dict[str, int] = defaultdict(int)
        self.by_user: dict[Account, int] = defaultdict(int)
        self._limits: dict[Account, tuple[int | None, int | None]] = {}
        for run in running:
            self.add(account_of(run, policy), run.spec.workers.total)

    def add(self, account: Account, gpus: int) -> None:
        self.by_team[account[0]] += gpus
        self.by_user[account] += gpus

    def left_of_guaranteed(self, account: Account) -> tuple[int, int]:
        """How many more lie within the guaranteed part of the team, and of the user."""
        team = self._policy.team(account[0])
        of_user = team.of(account[1]).guaranteed - self.by_user.get(account, 0)
        return team.quota.guaranteed - self.by_team.get(account[0], 0), of_user

    def excess(self, account: Account, gpus: int) -> Excess | None:
        """What limit so many more would exceed, if any: one that they would even alone, else the team's before the user's."""
        of_team, of_user = self.limits(account)
        if of_user is not None and gpus > of_user:
            return Excess("user", account[1], self.by_user.get(account, 0), of_user, gpus)
        if of_team is not None and (held := self.by_team.get(account[0], 0)) + gpus > of_team:
            return Excess("team", account[0], held, of_team, gpus)
        if of_user is not None and (held := self.by_user.get(account, 0)) + gpus > of_user:
            return Excess("user", account[1], held, of_user, gpus)
        return None

    def limits(self, account: Account) -> tuple[int | None, int | None]:
        """The team's and the user's."""
        found = self._limits.get(account)
        if found is None:
            team = self._policy.team(account[0])
            found = self._limits[account] = (team.quota.limit, team.of(account[1]).limit)
        return found


@dataclass(frozen=True)
class Excess:
    """A limit that a run would exceed."""

    owner: str
    """`team` or `user`."""
    name: str
    held: int
    limit: int
    gpus: int

    @property
    def never(self) -> bool:
        return self.gpus > self.limit

    @property
    def text(self) -> str:
        who = "runs without a team" if self.owner == "team" and self.name == NO_TEAM else f"{self.owner} {self.name}"
        if self.never:
            return f"{who} may hold {self.limit} GPUs, and the run asks for {self.gpus}"
        return f"{who} holds {self.held} of the {self.limit} GPUs that it may hold; the run asks for {self.gpus} more"


@dataclass(frozen=True)
class Claim:
    """What a waiting run needs of a limit, and when it can have it."""

    run: Run
    gpus: int
    start: Bound
    strict: bool


class Claims:
    """The parts of limits that are spoken for: the first waiting run under each limit has one.

    Without them small runs would use up a limit for ever in front of a gang of the same team.
    """

    def __init__(self, held: Held) -> None:
        self._held = held
        self._by_owner: dict[str | Account, Claim] = {}

    def taken(self, account: Account, owner: str) -> bool:
        """Whether a run before has a claim to what the team (or the user) may hold."""
        return (account[0] if owner == "team" else account) in self._by_owner

    def add(self, account: Account, claim: Claim, owner: str | None = None) -> None:
        """Of all limits that the run is under, or of its team's or its user's alone."""
        for name, _, _ in self._limits(account):
            if owner is None or (owner == "team") == isinstance(name, str):
                self._by_owner.setdefault(name, claim)

    def against(self, account: Account, gpus: int, stay: Bound) -> Claim | None:
        """The claim that would have to wait if so many GPUs were taken for so long."""
        if account[0] not in self._by_owner and account not in self._by_owner:
            return None
        for owner, held, limit in self._limits(account):
            claim = self._by_owner.get(owner)
            late = claim is not None and not gone_in_time(stay, claim.start, strict=claim.strict)
            if claim is not None and late and held + gpus + claim.gpus > limit:
                return claim
        return None

    def _limits(self, account: Account) -> list[tuple[str | Account, int, int]]:
        of_team, of_user = self._held.limits(account)
        limits = (
            (account[0], self._held.by_team.get(account[0], 0), of_team),
            (account, self._held.by_user.get(account, 0), of_user),
        )
        return [(owner, held, limit) for owner, held, limit in limits if limit is not None]


def protected(running: Iterable[Run], policy: Policy) -> dict[int, str]:
    """The runs that lie within a guaranteed part, and whose it is: `user` or `team`."""
    if not policy.guarantees:
        return {}

    def since(run: Run) -> tuple[object, int]:
        return (run.attempt.started_at if run.attempt else run.queued_at, run.id)

    found: dict[int, str] = {}
    by_user: dict[Account, int] = defaultdict(int)
    by_team: dict[str, int] = defaultdict(int)
    ordered = sorted(running, key=since)
    for run in ordered:
        team, user = account = account_of(run, policy)
        if by_user[account] + run.spec.workers.total <= policy.team(team).of(user).guaranteed:
            by_user[account] += run.spec.workers.total
            by_team[team] += run.spec.workers.total
            found[run.id] = "user"
    for run in ordered:
        team, _ = account_of(run, policy)
        if run.id not in found and by_team[team] + run.spec.workers.total <= policy.team(team).quota.guaranteed:
            by_team[team] += run.spec.workers.total
            found[run.id] = "team"
    return found
