"""What the ranks of one node say of their links while they say it, and when that is enough for a verdict.

    log = NodeLog({0: 0, 1: 1}, world=2)      # rank: its place among the node's
    log.take({0: [line, ...], 1: [...]})      # as the files grow
    log.settled                               # the first collective of all ranks has connected
    log.value()                               # an NcclLog of bounded size, whatever the number of ranks and channels

A line names ranks by their numbers in its communicator, and not which communicator that is. What a process says before it
makes a second one is of the first; if that holds all ranks, its numbers are the run's. Of later ones (subgroups, FSDP's) a
local link is known by its GPUs, and a link over the network by its near end alone. A verdict is of the first communicator of
all ranks: once that has connected nothing more is read, so that later ones change nothing.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from orchestrator.health.nccl_fabric import Islands
from orchestrator.health.nccl_lines import Via
from orchestrator.health.nccl_log import Link, NcclLog
from orchestrator.health.nccl_reader import Reader

FAR_ENDS = 16
"""Links over the network that are told one by one, for each rank; what is more is told with the last of its kind."""
VALUES_KEPT = 8

_MADE = re.compile(r"comm (0x[0-9a-f]+) rank (\d+) n[rR]anks (\d+) .*?- Init (START|COMPLETE)")
_GPU = re.compile(r"cudaDev \d+(?: nvmlDev (\d+))?(?: busId ([0-9a-f]+))?")
_CONNECTED = re.compile(r"NCCL INFO Connected (?:all|NVLS|binomial|[Cc]oll[Nn]et)")


@dataclass
class _Rank:
    """One rank's process as far as its log goes."""

    rank: int
    started: dict[str, int] = field(default_factory=dict)
    """By communicator: how many ranks it has."""
    completed: set[str] = field(default_factory=set)
    connected: bool = False
    """The first communicator has connected what its first collective needs."""
    any_connected: bool = False
    linked: bool = False
    """Some link was told; before 2.8 that is all that is."""

    def first_is(self, world: int) -> bool:
        """Whether what is said now is of a communicator of all ranks; before 2.18 its size is told only at its end."""
        if not self.started:
            return not self.completed
        return len(self.started) == 1 and next(iter(self.started.values())) == world


class NodeLog(Reader):
    """Takes the lines of a node's ranks, each rank's in order."""

    def __init__(self, ranks: Iterable[int], world: int) -> None:
        super().__init__()
        self._world = world
        self._of = {rank: _Rank(rank) for rank in ranks}
        self._now: _Rank | None = None
        self._by_gpu: dict[str, int] = {}

    def take(self, lines: Mapping[int, Sequence[str]]) -> None:
        """More lines, by rank."""
        for rank, new in lines.items():
            for line in new:
                if " busId " in line or " nvmlDev " in line:
                    self._place(rank, line)
        for rank, new in lines.items():
            self._now = self._of[rank]
            for line in new:
                if self._now.connected:
                    break  # what follows may be of another communicator
                self.line(line)
                if "NCCL" in line:
                    self._follow(self._now, line)

    @property
    def settled(self) -> bool:
        """Every rank's communicator of all ranks has connected: what its first collective uses is known."""
        return all(one.connected for one in self._of.values())

    @property
    def begun(self) -> bool:
        """Some communicator of some rank has connected."""
        return any(one.any_connected for one in self._of.values())

    @property
    def all_begun(self) -> bool:
        """Some communicator of every rank has connected."""
        return all(one.any_connected for one in self._of.values())

    def value(self, islands: Islands | None = None) -> NcclLog:
        """What has been said so far, its links in the run's ranks."""
        seen = self.log(islands)
        hosts = {rank: host for link in seen.found for rank, host in zip(link.ranks, link.hosts, strict=True) if host}
        places = {rank: hosts.get(rank) or (seen.hosts[0] if len(seen.hosts) == 1 else None) for rank in self._of}
        return replace(
            seen,
            ranks=self._world,
            communicator_sizes=(self._world,),
            rank_hosts=tuple(sorted((rank, host) for rank, host in places.items() if host is not None)),
            found=_bounded(seen.found, set(self._of)),
            environment=tuple((name, values[:VALUES_KEPT]) for name, values in seen.environment),
            tuning=(),
        )

    def _place(self, rank: int, line: str) -> None:
        if "Init " in line and (found := _GPU.search(line)):
            for name in filter(None, (found[1], found[2])):
                self._by_gpu.setdefault(name, rank)

    def _follow(self, rank: _Rank, line: str) -> None:
        if "- Init " in line and (made := _MADE.search(line)):
            if made[4] == "START":
                rank.started[made[1]] = int(made[3])
            else:
                # Before 2.22 links are made within the initialisation, and it says so when it is over.
                rank.completed.add(made[1])
                rank.connected |= (rank.any_connected or rank.linked) and int(made[3]) == self._world
        elif _CONNECTED.search(line):
            rank.any_connected = True
            # Where links are made at the first collective the initialisation is over by then.
            if rank.first_is(self._world) and rank.completed:
                rank.connected = True

    def _own(self, rank: int) -> int:
        return rank if self._now is None else self._now.rank

    def _meant(self, link: Via) -> Via:
        assert self._now is not None
        near, sends = self._now, link.end != "receive"
        near.linked = True
        own, far = (link.sender, link.receiver) if sends else (link.receiver, link.sender)
        if own == near.rank and far < self._world and near.first_is(self._world):
            return link
        local = not link.transport.startswith("NET/") and not link.nvlink
        gpu = link.receiver_gpu if sends else link.sender_gpu
        known = self._by_gpu.get(gpu, near.rank) if local and gpu is not None else near.rank
        sender, receiver = (near.rank, known) if sends else (known, near.rank)
        return link._replace(sender=sender, receiver=receiver)


def _bounded(found: Sequence[Link], near: set[int]) -> tuple[Link, ...]:
    """The links with at most FAR_ENDS over the network for each rank and kind."""
    kept: list[Link] = []
    last: dict[tuple[int, str], int] = {}
    ends: Counter[tuple[int, str]] = Counter()
    for link in found:
        if not link.kind.startswith("NET/") and set(link.ranks) <= near:
            kept.append(link)
            continue
        key = (link.ranks[0] if link.ranks[0] in near else link.ranks[1], link.kind)
        ends[key] += 1
        if ends[key] <= FAR_ENDS:
            last[key] = len(kept)
            kept.append(link)
        else:
            held = kept[last[key]]
            kept[last[key]] = replace(held, channels=held.channels + link.channels)
    return tuple(kept)
