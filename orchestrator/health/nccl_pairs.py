"""Which GPUs the lines of NCCL's log join, over what transport, and by how many channels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping

from orchestrator.health.nccl_hosts import Alias, most_named
from orchestrator.health.nccl_lines import Via
from orchestrator.health.nccl_log import Link

Pair = tuple[str | None, int, str | None, int, str | None, str]
"""The host (None for a link over the network), the lower rank and its GPU, the higher and its GPU, the transport."""

FabricOf = Callable[[str | None, str | None, str | None], str | None]
"""What joins two GPUs of a host whose lines do not say it themselves: from the host and the GPUs to NVLink, PCIe or None."""


class _Joined:
    """What lines tell of one pair of GPUs over one transport."""

    __slots__ = ("channels", "lower", "nvlink", "reads", "upper")

    def __init__(self) -> None:
        self.channels: dict[int, bool | None] = {}
        self.lower: Counter[str] = Counter()
        self.upper: Counter[str] = Counter()
        self.nvlink = self.reads = False


class Pairs:
    """Takes links as lines tell them, in any order; `links` is what they amount to."""

    def __init__(self) -> None:
        self._joined: dict[Pair, _Joined] = {}
        self._collnet: dict[tuple[str | None, int, str], dict[tuple[int, str], bool | None]] = {}

    def add(self, link: Via, host: str | None) -> None:
        """A link that a process on `host` told of."""
        speaker_sends = link.end != "receive"
        ends_of = sorted([(link.sender, link.sender_gpu or "", True), (link.receiver, link.receiver_gpu or "", False)])
        (low, low_gpu, low_sends), (high, high_gpu, _) = ends_of
        # Both ends print a link over the network; all others only the sender prints, and both are on its host.
        local = None if link.transport.startswith("NET/") else host
        key = (local, low, low_gpu or None, high, high_gpu or None, link.transport)
        joined = self._joined.get(key)
        if joined is None:
            joined = self._joined[key] = _Joined()
        joined.channels[link.channel] = _either(joined.channels.get(link.channel), link.gdr)
        joined.nvlink |= link.nvlink
        joined.reads |= link.reads
        if host is not None:
            (joined.lower if low_sends == speaker_sends else joined.upper)[host] += 1

    def add_collnet(self, host: str | None, rank: int, name: str, end: tuple[int, str], gdr: bool | None) -> None:
        """A rank's link to the network that reduces; `end` is its channel and direction."""
        ends = self._collnet.setdefault((host, rank, name), {})
        ends[end] = _either(ends.get(end), gdr)

    def links(self, alias: Alias, fabric: FabricOf, *, reads_prove: bool) -> list[Link]:
        """All links, in order. With `reads_prove`, a pair that reads instead of writing is joined by NVLink."""
        merged = _merged(self._joined, alias)
        counts: Counter[tuple[tuple[int, int], tuple[str | None, str | None], str]] = Counter()
        for (host, low, low_gpu, high, high_gpu, transport), joined in merged.items():
            where = most_named(joined.lower, alias), most_named(joined.upper, alias)
            if not transport.startswith("NET/") and not joined.nvlink:
                where = (host, host)
            kind = transport
            if transport == "P2P":
                sure = joined.nvlink or (joined.reads and reads_prove)
                over = "NVLink" if sure else fabric(host, low_gpu, high_gpu)
                kind = f"P2P/{over}" if over else "P2P"
            for gdr in joined.channels.values():
                counts[(low, high), where, f"{kind}/GDRDMA" if gdr else kind] += 1
        for (host, rank, name), ends in self._collnet.items():
            host = alias.get(host, host)
            for gdr in ends.values():
                counts[(rank, rank), (host, host), f"COLLNET/{name}" + ("/GDRDMA" if gdr else "")] += 1
        found = [Link(ranks, where, kind, count) for (ranks, where, kind), count in counts.items()]
        return sorted(found, key=lambda link: (link.ranks, link.kind, [host or "" for host in link.hosts]))


def _either(one: bool | None, other: bool | None) -> bool | None:
    # One end is enough: a GPU may send through the host's memory and receive straight from the adapter.
    return True if one or other else False if one is False or other is False else None


def _merged(joined: Mapping[Pair, _Joined], alias: Alias) -> dict[Pair, _Joined]:
    """One entry for each pair: under the host that is meant, and a line that has lost its sender with those that have not."""
    hosts: dict[tuple[int, str | None, int, str | None, str], set[str]] = {}
    for host, *pair in joined:
        if host is not None:
            hosts.setdefault(tuple(pair), set()).add(alias.get(host) or host)  # type: ignore[arg-type]
    merged: dict[Pair, _Joined] = {}
    for key, entry in joined.items():
        known = hosts.get(key[1:], set())
        host = alias.get(key[0], key[0]) if key[0] is not None else min(known, default=None)
        into = merged.setdefault((host, *key[1:]), _Joined())
        _add(into, entry)
    return merged


def _add(into: _Joined, other: _Joined) -> None:
    for channel, gdr in other.channels.items():
        into.channels[channel] = _either(into.channels.get(channel), gdr)
    into.lower.update(other.lower)
    into.upper.update(other.upper)
    into.nvlink |= other.nvlink
    into.reads |= other.reads
