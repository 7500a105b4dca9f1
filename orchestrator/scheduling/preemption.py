"""Who gives way: the runs whose end makes the right place for a waiting one at the least loss.

What is lost is GPU time since a victim's last checkpoint. What a looser place would cost the waiting run is counted in the same
GPU-seconds, so that a tight place may be worth a dearer victim.

Few candidates are tried in every combination, cheapest first; of many, the cheapest nodes of each domain are put together, and
what turns out not to be needed is left alone.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from orchestrator.placement.explain import hint_levels
from orchestrator.placement.gang import Part, placement_of
from orchestrator.placement.search import find
from orchestrator.placement.tree import NODE, Free
from orchestrator.placement.values import Request
from orchestrator.scheduling.ask import STOP_S, Ask
from orchestrator.scheduling.choice import WORTH_IT, slowdown
from orchestrator.scheduling.estimates import typical_duration
from orchestrator.scheduling.lifecycle import State
from orchestrator.scheduling.memory import Memory
from orchestrator.scheduling.quota import account_of
from orchestrator.scheduling.run import Run
from orchestrator.scheduling.snapshot import Snapshot
from orchestrator.scheduling.timeline import give

EVERY_COMBINATION = 8
"""Up to so many candidates, all their combinations are tried."""
MOST_DOMAINS = 4
"""So many of the domains that look cheapest are tried."""


@dataclass(frozen=True, slots=True)
class Victim:
    """A run that may be told to give way."""

    run: Run
    parts: tuple[Part, ...]
    lost_gpu_s: float
    by_quota: bool

    @property
    def gone_in(self) -> float:
        """Seconds until its GPUs are free."""
        return self.run.spec.grace + STOP_S


@dataclass(frozen=True)
class Clearing:
    """Which victims make which place."""

    victims: tuple[Victim, ...]
    parts: tuple[Part, ...]
    cost_gpu_s: float
    """What the victims lose and what the place costs the run, compared with the best there could be."""


def candidates(
    ask: Ask,
    entitled: bool,
    guarded: Mapping[int, str],
    standings: Mapping[int, float],
    snapshot: Snapshot,
    memory: Memory,
    now: datetime,
) -> tuple[list[Victim], float | None]:
    """The runs that may be told to give way to `ask`, and in how many seconds there will be one more.

    Those of lower priority, unless they lie within another's guaranteed part; and where `ask` is entitled to its part,
    those that borrow, of whatever priority. Never one that has not had `min_runtime`, or that is being stopped. `standings`: by
    run, what is compared as its priority.
    """
    policy = snapshot.policy
    if policy.preemption == "off":
        return [], None
    found, later = [], []
    for run in snapshot.running:
        attempt = run.attempt
        if attempt is None or run.id in snapshot.ending or run.state is State.STOPPING:
            continue
        whose = guarded.get(run.id)
        account = account_of(run, policy)
        same = account == ask.account if whose == "user" else account[0] == ask.account[0]
        lower = policy.preemption == "priority" and standings[run.id] < ask.priority and (whose is None or same)
        borrows = entitled and whose is None
        if not lower and not borrows:
            continue
        undisturbed = (now - attempt.started_at).total_seconds()
        if undisturbed < policy.min_runtime:
            later.append(policy.min_runtime - undisturbed)
            continue
        saved = max(attempt.started_at, snapshot.checkpoints.get(run.id, attempt.started_at))
        lost = run.spec.workers.total * max(0.0, (now - saved).total_seconds())
        found.append(Victim(run, memory.parts(run), lost, not lower))
    return found, min(later, default=None)


def clearing(
    ask: Ask, victims: Sequence[Victim], free: Free, kept: Mapping[int, int], snapshot: Snapshot, memory: Memory
) -> Clearing | None:
    """The cheapest way to make a place for `ask`; None where all of them together make none.

    `free` without what is kept for others; `kept`: by node, the bits that stay so when they become free.
    """
    topology = free.topology
    takes = typical_duration(ask.run, snapshot)
    bests = [(level, memory.best(ask.shape, level)) for level in hint_levels(topology)]
    fastest = max((best.busbw_predicted or 0.0 for _, best in bests if best is not None), default=0.0)

    def clear(request: Request) -> Clearing | None:
        found = _Search(request, victims, free, kept).cheapest()
        if found is None:
            return None
        chosen, parts = found
        busbw = placement_of(topology, parts).busbw_predicted
        slower = slowdown(busbw, fastest, snapshot.policy.communication) if busbw and fastest else 1.0
        lost = sum(victim.lost_gpu_s for victim in chosen)
        return Clearing(tuple(chosen), parts, lost + takes * ask.gpus * max(0.0, slower - 1.0))

    best = clear(ask.request)
    if best is None or ask.request.required:
        return best
    for level, there in bests:
        busbw = placement_of(topology, best.parts).busbw_predicted
        if there is None or not there.busbw_predicted or not busbw:
            continue
        if slowdown(busbw, there.busbw_predicted, snapshot.policy.communication) >= WORTH_IT:
            tighter = clear(replace(ask.request, near=level, required=True))
            if tighter is not None and tighter.cost_gpu_s < best.cost_gpu_s:
                best = tighter
    return best


class _Search:
    """The victims with the least loss that make one request fit."""

    def __init__(self, request: Request, victims: Sequence[Victim], free: Free, kept: Mapping[int, int]) -> None:
        self._request, self._free, self._kept = request, free, kept
        self._topology = free.topology
        self._victims = sorted(victims, key=lambda victim: (victim.lost_gpu_s, victim.run.id))

    def cheapest(self) -> tuple[list[Victim], tuple[Part, ...]] | None:
        everybody = self._try(self._victims)
        if everybody is None:
            return None
        if len(self._victims) <= EVERY_COMBINATION:
            return self._every_combination()
        # By what they lose before anything of it turns out not to be needed.
        looks_cheapest = next((chosen for chosen in self._promising() if self._try(chosen) is not None), None)
        chosen = self._pruned(self._fewest_cheapest() if looks_cheapest is None else looks_cheapest)
        parts = self._try(chosen)
        assert parts is not None
        return chosen, parts

    def _try(self, chosen: Iterable[Victim]) -> tuple[Part, ...] | None:
        view = self._free.copy()
        for victim in chosen:
            give(view, victim.parts, self._kept)
        return find(self._request, self._topology, view)

    def _every_combination(self) -> tuple[list[Victim], tuple[Part, ...]] | None:
        every = itertools.chain.from_iterable(
            itertools.combinations(self._victims, size) for size in range(1, len(self._victims) + 1)
        )
        for chosen in sorted(map(list, every), key=_loss):
            if (parts := self._try(chosen)) is not None:
                return chosen, parts
        return None

    def _fewest_cheapest(self) -> list[Victim]:
        """As many of the cheapest as it takes, wherever they are: found by halving, because more of them never fit worse."""
        low, high = 0, len(self._victims)
        while high - low > 1:
            middle = (low + high) // 2
            if self._try(self._victims[:middle]) is None:
                low = middle
            else:
                high = middle
        return self._victims[:high]

    def _pruned(self, chosen: list[Victim]) -> list[Victim]:
        """Without those that are not needed, the dearest looked at first."""
        needed = list(chosen)
        for victim in sorted(chosen, key=lambda victim: -victim.lost_gpu_s):
            fewer = [other for other in needed if other is not victim]
            if fewer and self._try(fewer) is not None:
                needed = fewer
        return needed

    # -- many candidates: the cheapest nodes of each domain --------------------------------------------------------

    def _promising(self) -> list[list[Victim]]:
        """Sets of victims that look cheap, one for each of the domains that look cheapest."""
        workers = self._request.workers
        single = self._request.near == NODE and self._request.required
        nodes, each = (1, workers.total) if single else (workers.nodes, workers.per_node)
        by_node: dict[int, list[Victim]] = {}
        for victim in self._victims:
            for index, _ in victim.parts:
                by_node.setdefault(index, []).append(victim)
        domains: dict[int, list[int]] = {}
        for node in self._topology.nodes:
            if node.kind.device == self._request.device and node.name not in self._request.exclude:
                domains.setdefault(node.index if single else node.domains[self._depth], []).append(node.index)
        found = []
        for indices in domains.values():
            if nodes is not None and each is not None:
                chosen = self._nodes(indices, by_node, nodes, each)
            else:
                chosen = self._total(indices, by_node, workers.total)
            if chosen:
                found.append(chosen)
        return sorted(found, key=_loss)[:MOST_DOMAINS]

    @property
    def _depth(self) -> int:
        near, levels = self._request.near, self._topology.levels
        return levels.index(near) if self._request.required and near in levels else 0

    def _gain(self, victim: Victim, index: int) -> int:
        mask = next((mask for at, mask in victim.parts if at == index), 0)
        return (mask & self._free.usable[index] & ~self._kept.get(index, 0)).bit_count()

    def _nodes(
        self, indices: Sequence[int], by_node: Mapping[int, list[Victim]], nodes: int, each: int
    ) -> list[Victim] | None:
        """`nodes` nodes with `each` GPUs, the cheapest first; a victim that was chosen already costs nothing more."""
        chosen: dict[int, Victim] = {}
        prices = {index: self._price(index, by_node.get(index, []), each, chosen) for index in indices}
        open_nodes = {index: price for index, price in prices.items() if price is not None}
        # Freed already, in part or whole, by what was bought for another node: never dearer than before.
        if len(open_nodes) < nodes:
            return None
        for _ in range(nodes):
            index = min(open_nodes, key=lambda i: (_loss(open_nodes[i]), i))
            bought = open_nodes.pop(index)
            for victim in bought:
                chosen[victim.run.id] = victim
            for touched in {at for victim in bought for at, _ in victim.parts} & open_nodes.keys():
                open_nodes[touched] = self._price(touched, by_node.get(touched, []), each, chosen) or []
        return list(chosen.values())

    def _price(
        self, index: int, there: Sequence[Victim], each: int, chosen: Mapping[int, Victim]
    ) -> list[Victim] | None:
        """The victims besides the chosen ones that free `each` GPUs of a node; None where they cannot."""
        need = each - self._free.mask(index).bit_count()
        need -= sum(self._gain(victim, index) for victim in there if victim.run.id in chosen)
        bought: list[Victim] = []
        for victim in sorted(
            (victim for victim in there if victim.run.id not in chosen),
            key=lambda victim: victim.lost_gpu_s / max(1, self._gain(victim, index)),
        ):
            if need <= 0:
                break
            bought.append(victim)
            need -= self._gain(victim, index)
        return bought if need <= 0 else None

    def _total(self, indices: Sequence[int], by_node: Mapping[int, list[Victim]], total: int) -> list[Victim] | None:
        need = total - sum(self._free.mask(index).bit_count() for index in indices)
        gains: dict[int, int] = {}
        there: dict[int, Victim] = {}
        for index in indices:
            for victim in by_node.get(index, []):
                there[victim.run.id] = victim
                gains[victim.run.id] = gains.get(victim.run.id, 0) + self._gain(victim, index)
        chosen = []
        for victim in sorted(there.values(), key=lambda victim: victim.lost_gpu_s / max(1, gains[victim.run.id])):
            if need <= 0:
                break
            chosen.append(victim)
            need -= gains[victim.run.id]
        return chosen if need <= 0 else None


def _loss(victims: Iterable[Victim]) -> float:
    return sum(victim.lost_gpu_s for victim in victims)
