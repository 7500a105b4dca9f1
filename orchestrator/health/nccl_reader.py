"""From lines of NCCL's log, in any order, to the value that they amount to."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from functools import partial

from orchestrator.health.nccl_fabric import FabricEvidence, Islands
from orchestrator.health.nccl_hosts import Alias, Process, aliases, by_host, most_named
from orchestrator.health.nccl_lines import LONGEST, Said, Via, collnet, said, via
from orchestrator.health.nccl_log import Link, NcclLog
from orchestrator.health.nccl_pairs import Pairs
from orchestrator.health.nccl_tuning import TuningTables

MOST_RANKS = 1 << 20
MOST_WARNINGS = 10_000
WARNINGS_KEPT = 50

_VERSION = re.compile(r"(N|R)CCL version ?:? ?([2-9]\.\d+\.\d+)(?=[+\-,\sa-z]|$)")
_COMM = re.compile(
    r"rank (\d+) n[rR]anks (\d+)(?: nNodes (\d+)\b)?(?: localRanks \d+ localRank \d+ MNNVL (\d))?(?= |$)"
)
_CALL = re.compile(r"\[nranks=(\d+)\]")
_RING = re.compile(r"Channel \d+(?:/\d+)? ?:((?: +\d+)+)$")
_TEST = re.compile(r"# +Rank +(\d+) (?:Group +\d+ )?Pid +(\d+) on +(\S+) device +(\d+)")
_NETWORK = re.compile(r"Using network ([\w .+\-]+)$")
_CONNECTED = re.compile(r"Connected (all rings|all trees|binomial trees|NVLS tree|[Cc]oll[Nn]et)(?=[, ]|$)")
_CONNECTIONS = {
    "all rings": "rings",
    "all trees": "trees",
    "binomial trees": "binomial trees",
    "nvls tree": "NVLS",
    "collnet": "CollNet",
}
_ALL_RINGS = re.compile(r"use ring PXN (\d) GDR (\d)")
_CHANNELS = re.compile(r"(\d+) coll channels,(?:.*?(\d+) nvls channels,)?")
_ADAPTER = re.compile(r"\[\d+\]([\w.+\-]+:\d+(?::\d+)*/\w+)")
_INTERFACE = re.compile(r"(?:\[\d+\]|Using )([A-Za-z][\w.@\-]*):[0-9a-f]")
_OOB = re.compile(r"; OOB ([A-Za-z][\w.@\-]*):")
_SET = re.compile(r"\b((?:NCCL|RCCL)_[A-Z0-9_]+) set (?:by environment )?to (.*)$")
_ALGORITHM = re.compile(r"(\w+): \d+ Bytes -> Algo (\w+) proto (\w+)")
_ALGORITHMS = ("TREE", "RING", "COLLNET_DIRECT", "COLLNET_CHAIN", "NVLS", "NVLS_TREE", "PAT")
_PROTOCOLS = ("LL", "LL128", "SIMPLE")
_POINTER = re.compile(r"0x[0-9a-f]+")

_NOTES = (
    ("P2P is disabled between", "p2p refused"),
    ("Could not enable P2P", "p2p refused"),
    ("Failed to initialize NET plugin IB", "ib failed"),
    ("Error while attaching to shared memory", "shm failed"),
    ("Error: failed to extend /dev/shm", "shm failed"),
)


class Reader:
    """Takes lines in any order; `log()` is what they say together. Everything kept is a set or a count for that reason."""

    def __init__(self) -> None:
        self._processes: Counter[Process] = Counter()
        self._lines = 0
        self._versions: Counter[tuple[str, str]] = Counter()
        self._ranks_of: dict[Process, set[tuple[int, int]]] = {}
        """By process: (size of the communicator, its rank there)."""
        self._sizes: Counter[int] = Counter()
        self._rings: set[int] = set()
        """Lengths of the rings, which long lines may cut short."""
        self._nodes: dict[int, set[int]] = {}
        self._mnnvl = False
        self._pairs = Pairs()
        self._speakers: dict[Process, set[int]] = {}
        self._fabric = FabricEvidence()
        self._channels: set[int] = set()
        self._nvls_channels: set[int] = set()
        self._nvls = False
        self._network: Counter[str] = Counter()
        self._pxn: set[bool] = set()
        self._connections: set[str] = set()
        self._adapters: dict[str | None, set[str]] = {}
        self._no_adapter: set[str | None] = set()
        self._interfaces: set[str] = set()
        self._gdr_refused: Counter[str] = Counter()
        self._algorithms: Counter[str] = Counter()
        self._environment: dict[str, set[str]] = {}
        self._warnings: Counter[str] = Counter()
        self._notes: set[str] = set()
        self._tuning = TuningTables()

    def line(self, line: str) -> None:
        if "CCL" not in line and " via " not in line:
            if " Pid " in line and (found := _TEST.search(line[:LONGEST])):  # the head that nccl-tests prints
                self._rank((found[3], int(found[2]), int(found[4])), int(found[1]), None)
            return
        if "CCL version" in line and (found := _VERSION.search(line[:LONGEST])):
            self._versions[(f"{found[1]}CCL", found[2])] += 1
        for message in said(line):
            self._lines += 1
            process = message.host, message.pid, message.device
            self._processes[process] += 1
            if message.warning:
                self._warn(message)
            if " via " in message.text:
                self._link(message, process)
            else:
                for needle, take in _TAKES:
                    if needle in message.text:
                        take(self, message, process)

    def _link(self, message: Said, process: Process) -> None:
        if found := collnet(message.text):
            channel, rank, end, name, gdr = found
            self._pairs.add_collnet(message.host, self._own(rank), name, (channel, end), gdr)
            return
        link = via(message.text)
        if link is None or max(link.sender, link.receiver) >= MOST_RANKS:
            return
        link = self._meant(link)
        self._speakers.setdefault(process, set()).add(link.receiver if link.end == "receive" else link.sender)
        self._pairs.add(link, message.host)
        if link.proxy:
            self._pxn.add(True)

    def _own(self, rank: int) -> int:
        """The rank of who speaks, as it is to be counted: here as the line says it."""
        return rank

    def _meant(self, link: Via) -> Via:
        """The link with its ranks as they are to be counted: here as the line says them."""
        return link

    def _rank(self, process: Process, rank: int, size: int | None) -> None:
        if rank < (size or MOST_RANKS) <= MOST_RANKS:
            self._ranks_of.setdefault(process, set()).add((size or 0, rank))
            if size:
                self._sizes[size] += 1
            else:
                self._speakers.setdefault(process, set()).add(rank)

    def _communicator(self, message: Said, process: Process) -> None:
        self._fabric.gpu(message.host, message.text)
        if not (found := _COMM.search(message.text)):
            return
        rank, size = int(found[1]), int(found[2])
        self._rank(process, rank, size)
        if found[3] and 0 < int(found[3]) <= size:
            self._nodes.setdefault(size, set()).add(int(found[3]))
        if found[4] == "1":
            self._mnnvl = True
            self._fabric.switched.add(message.host)

    def _call(self, message: Said, process: Process) -> None:
        if (found := _CALL.search(message.text)) and int(found[1]) <= MOST_RANKS:
            self._sizes[int(found[1])] += 1

    def _ring(self, message: Said, process: Process) -> None:
        if found := _RING.search(message.text):
            ring = [int(rank) for rank in found[1].split()]
            if sorted(ring) == list(range(len(ring))):
                self._rings.add(len(ring))

    def _used_network(self, message: Said, process: Process) -> None:
        if found := _NETWORK.search(message.text):
            self._network[found[1].strip()] += 1

    def _connected(self, message: Said, process: Process) -> None:
        if found := _CONNECTED.match(message.text):
            self._connections.add(_CONNECTIONS[found[1].lower()])
        if found := _ALL_RINGS.search(message.text):
            self._pxn.add(found[1] == "1")

    def _channel_count(self, message: Said, process: Process) -> None:
        if found := _CHANNELS.search(message.text):
            self._channels.add(int(found[1]))
            if found[2] and int(found[2]):
                self._nvls_channels.add(int(found[2]))
                self._uses_nvls(message, process)

    def _uses_nvls(self, message: Said, process: Process) -> None:
        self._nvls = True
        self._fabric.switched.add(message.host)

    def _ib(self, message: Said, process: Process) -> None:
        if "No device found" in message.text:
            self._no_adapter.add(message.host)
        elif adapters := _ADAPTER.findall(message.text):
            self._adapters.setdefault(message.host, set()).update(adapters)
        self._interfaces.update(_OOB.findall(message.text))

    def _socket(self, message: Said, process: Process) -> None:
        self._interfaces.update(_INTERFACE.findall(message.text))

    def _gdr_off(self, message: Said, process: Process) -> None:
        tail = message.text.partition("GPU Direct RDMA Disabled")[2]
        why = "module" if "no module" in tail else "distance" if "distance" in tail else "adapter"
        self._gdr_refused[why] += 1

    def _algorithm(self, message: Said, process: Process) -> None:
        if found := _ALGORITHM.search(message.text):
            algorithm, protocol = _named(found[2], _ALGORITHMS), _named(found[3], _PROTOCOLS)
            self._algorithms[f"{found[1]} {algorithm} {protocol}"] += 1
            if algorithm.startswith("NVLS"):
                self._uses_nvls(message, process)

    def _variable(self, message: Said, process: Process) -> None:
        if found := _SET.search(message.text):
            value = found[2].strip()
            if value.endswith(".") and value[:-1].lstrip("-").isdecimal():
                value = value[:-1]  # NCCL ends the line of a number with a full stop
            self._environment.setdefault(found[1], set()).add(value)

    def _table(self, message: Said, process: Process) -> None:
        self._tuning.row((message.host, message.pid, message.thread), message.text)

    def _path(self, message: Said, process: Process) -> None:
        self._fabric.path(message.host, message.text)

    @staticmethod
    def _note(note: str, reader: Reader, message: Said, process: Process) -> None:
        reader._notes.add(note)

    def _pattern(self, message: Said, process: Process) -> None:
        self._fabric.pattern(message.host, message.text)

    def _warn(self, message: Said) -> None:
        text = _POINTER.sub("0x…", message.text)[:300]
        if text in self._warnings or len(self._warnings) < MOST_WARNINGS:
            self._warnings[text] += 1

    def log(self, islands: Islands | None = None) -> NcclLog:
        """The log as a value."""
        alias = aliases(self._processes)
        self._fabric.merge(alias)
        # P2P reads by itself over NVLink alone; the variable has it read over anything.
        links = self._pairs.links(
            alias,
            lambda host, low, high: self._fabric.of(host, low, high, islands),
            reads_prove="NCCL_P2P_READ_ENABLE" not in self._environment,
        )
        ranks = self._rank_count(links, alias)
        places = self._places(ranks, alias)
        # Launchers and proxies have no rank; a host counts where a GPU's process spoke.
        hosts = sorted({host for host, _, _ in self._processes if host is not None and host not in alias})
        version = min(self._versions, key=lambda found: (-self._versions[found], found), default=None)
        warnings = sorted(self._warnings.items(), key=lambda item: (-item[1], item[0]))
        return NcclLog(
            lines=self._lines,
            library="RCCL" if any(name == "RCCL" for name, _ in self._versions) else "NCCL",
            version=version[1] if version else None,
            versions=tuple(sorted({number for _, number in self._versions})),
            ranks=ranks,
            nodes=self._node_count(ranks, hosts, places, links),
            communicator_sizes=tuple(sorted(self._sizes)),
            hosts=tuple(hosts),
            rank_hosts=tuple(sorted(places.items())),
            found=tuple(links),
            channels=max(self._channels, default=None),
            nvls_channels=max(self._nvls_channels, default=0),
            nvls=self._nvls,
            network=tuple(sorted(self._network)),
            pxn=any(self._pxn) if self._pxn else None,
            connected=tuple(sorted(self._connections)),
            adapters=tuple(
                sorted((host, tuple(sorted(names))) for host, names in by_host(self._adapters, alias).items())
            ),
            no_adapter=tuple(sorted({alias.get(host, host) or "" for host in self._no_adapter})),
            interfaces=tuple(sorted(self._interfaces)),
            gdr_refused=tuple(sorted(self._gdr_refused.items())),
            algorithms=tuple(sorted(self._algorithms.items())),
            environment=tuple(sorted((name, tuple(sorted(values))) for name, values in self._environment.items())),
            warnings=tuple(warnings[:WARNINGS_KEPT]),
            notes=tuple(sorted(self._notes)),
            tuning=tuple(sorted(self._tuning.cells)),
        )

    def _rank_count(self, links: list[Link], alias: Alias) -> int:
        if self._sizes:
            return max(self._sizes)
        most = max((link.ranks[1] + 1 for link in links), default=0)
        # A process that was heard but whose rank no line gives: on a host where rank minus device is the same for all
        # others, it is the same for this one too.
        offsets: dict[str | None, set[int]] = {}
        for (host, _, device), ranks in self._speakers.items():
            offsets.setdefault(alias.get(host, host), set()).update(rank - device for rank in ranks)
        for host, _, device in self._processes:
            of_host = offsets.get(alias.get(host, host), set())
            if len(of_host) == 1 and device >= 0:
                most = max(most, device + next(iter(of_host)) + 1)
        return max([most, *self._rings, *(rank + 1 for ranks in self._speakers.values() for rank in ranks)])

    def _places(self, ranks: int, alias: Alias) -> dict[int, str]:
        """The host of each rank of the largest communicator."""
        votes: dict[int, Counter[str]] = {}
        for process, pairs in self._ranks_of.items():
            for size, rank in pairs:
                if size in (0, ranks) and (host := process[0]) is not None:
                    votes.setdefault(rank, Counter())[host] += self._processes[process] or 1
        if len(self._sizes) < 2:  # else a rank in a line may be that of a smaller communicator
            for process, spoken in self._speakers.items():
                host = process[0]
                for rank in spoken if host else ():
                    votes.setdefault(rank, Counter())[str(host)] += self._processes[process] or 1
        return {rank: host for rank, counts in votes.items() if (host := most_named(counts, alias))}

    def _node_count(self, ranks: int, hosts: list[str], places: dict[int, str], links: list[Link]) -> int:
        here = len(set(places.values()) or set(hosts))
        if said := self._nodes.get(ranks):
            # An NVLink domain across hosts is one node to NCCL.
            return max(max(said), here) if self._mnnvl else max(said)
        # A rank at the far end of a network link, whose own lines are not here, is on a host that is not here either.
        missing = any(link.kind.startswith("NET/") and any(rank not in places for rank in link.ranks) for link in links)
        return max(1 if ranks else 0, here + missing)


_TAKES: tuple[tuple[str, Callable[[Reader, Said, Process], None]], ...] = (
    ("anks ", Reader._communicator),
    ("[nranks=", Reader._call),
    ("Channel ", Reader._ring),
    ("Using network", Reader._used_network),
    ("Connected ", Reader._connected),
    (" coll channels", Reader._channel_count),
    ("Connected NVLS tree", Reader._uses_nvls),
    ("NVLS comm 0x", Reader._uses_nvls),
    ("NET/IB : ", Reader._ib),
    ("NET/Socket : Using", Reader._socket),
    ("Bootstrap", Reader._socket),
    ("GPU Direct RDMA Disabled", Reader._gdr_off),
    (" Bytes -> Algo ", Reader._algorithm),
    (" set ", Reader._variable),
    ("|", Reader._table),
    (":GPU/", Reader._path),
    ("Pattern ", Reader._pattern),
    *((needle, partial(Reader._note, note)) for needle, note in _NOTES),
)
"""What a message holds, and who reads it."""


def _named(word: str, names: tuple[str, ...]) -> str:
    return names[int(word)] if word.isdecimal() and int(word) < len(names) else word
