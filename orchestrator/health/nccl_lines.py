"""What one line of NCCL's log says: who said it, which ranks it joins, and by what.

Lines of NCCL 2.4 to 2.30 and of RCCL, behind whatever a launcher puts before them. Processes that share a file write into
each other's lines, so one line may hold several messages, each perhaps without its end: what cannot be read with certainty
is left out rather than guessed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

LONGEST = 16_384
"""Characters of a line that are looked at: a file that is one endless line costs no more than any other."""

_MARK = re.compile(r"NCCL (INFO|WARN|ERROR) ")
_WHO = re.compile(r"([A-Za-z0-9_][\w.\-]*):(\d+):(\d+) ?\[(-?\d+)\](?: [^\[\]]*)?$")
_PLAIN = re.compile(r"([A-Za-z0-9_][\w.\-]*):(\d+):(\d+) \[(-?\d+)\] NCCL INFO (.*)")
"""Nearly every line."""
_WHO_REACHES = 240
_ESCAPE = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")


class Said(NamedTuple):
    """One message, and the process that said it where that can be read."""

    host: str | None
    pid: int
    thread: int
    device: int
    """NCCL's cudaDev; -1 where the message belongs to no GPU or its sender is unknown."""
    warning: bool
    text: str


class Via(NamedTuple):
    """A line `Channel 00/0 : 0[0] -> 1[1] [send] via ...`: a link between two ranks as one of them saw it."""

    channel: int
    sender: int
    receiver: int
    sender_gpu: str | None
    """Bus id up to NCCL 2.17, NVML's index from 2.18."""
    receiver_gpu: str | None
    end: str | None
    """`send` or `receive`: which of the two speaks; None where only the sender prints the line."""
    transport: str
    gdr: bool | None
    """Whether the GPU's memory goes to the adapter directly; None where the line does not say."""
    nvlink: bool
    """P2P that the line itself proves to run over NVLink."""
    reads: bool
    """P2P by reading instead of writing, which NCCL chooses only over the NVLink of compute capability 8.0."""
    proxy: bool
    """The network is reached through another rank's adapter (PXN)."""


def said(line: str) -> Iterator[Said]:
    """The messages of one line, which may be none."""
    line = line[:LONGEST]
    if "\x1b" in line:
        line = _ESCAPE.sub("", line)
    if (plain := _PLAIN.match(line)) and "NCCL INFO " not in plain[5] and "NCCL WARN " not in plain[5]:
        yield Said(plain[1], int(plain[2]), int(plain[3]), int(plain[4]), False, plain[5].rstrip())
        return
    marks = list(_MARK.finditer(line))
    if not marks and " via " in line:
        yield Said(None, 0, 0, -1, False, line.rstrip())  # its beginning is in another process's line
    before = 0
    senders = []
    for mark in marks:
        start = max(before, mark.start() - _WHO_REACHES)
        senders.append((_WHO.search(line[start : mark.start()]), start))
        before = mark.end()
    for i, mark in enumerate(marks):
        end = len(line)
        if i + 1 < len(marks):
            follower, start = senders[i + 1]
            end = start + follower.start() if follower else marks[i + 1].start()
        text, warning = line[mark.end() : end].rstrip(), mark[1] != "INFO"
        if who := senders[i][0]:
            yield Said(who[1], int(who[2]), int(who[3]), int(who[4]), warning, text)
        else:
            yield Said(None, 0, 0, -1, warning, text)


_VIA = re.compile(
    r"(?:Channel|Ring) (\d+)(?:/\d+)? ?: (\d{1,7})(?:\[([0-9a-fA-F]+)\])? -> (\d{1,7})(?:\[([0-9a-fA-F]+)\])?"
    r"(?: \[(send|receive)\])? via (.*)"
)
_COLLNET = re.compile(r"Coll(?:Net)? (\d+)(?:/\d+)? ?: (\d{1,7})(?:\[\w+\])? \[(send|receive)\] via COLLNET/(.*)")
# A name that lacks its device was cut off: `NET/Sock` is no transport.
_NET = re.compile(r"([A-Za-z][\w .+\-]{0,40}?)(?: \(v\d+\))?/(\d+)(?:\((\d+)\))?(.*)")
_NO_GDR = re.compile(r"(\(PCI\))?(/Shared)?( |$)")


def via(text: str) -> Via | None:
    """The link that a message tells of, or None where it tells of none, or of one that cannot be read."""
    if found := _VIA.search(text):
        channel, sender, sender_gpu, receiver, receiver_gpu, end, how = found.groups()
        base = int(channel), int(sender), int(receiver), sender_gpu, receiver_gpu, end
        if how.startswith("P2P"):
            # MNNVL is NVLink between hosts; `indirect` hops over a GPU that has NVLink to both.
            return Via(*base, "P2P", None, "/MNNVL" in how or "/indirect" in how, "/read" in how, False)
        if how.startswith(("SHM", "direct shared")):
            return Via(*base, "SHM", None, False, False, False)
        if how.startswith("NET/") and (net := _NET.match(how, 4)):
            return Via(*base, f"NET/{net[1]}", _gdr(net[4]), False, False, net[3] is not None)
    return None


def collnet(text: str) -> tuple[int, int, str, str, bool | None] | None:
    """Of a CollNet line: channel, rank, send or receive, the plugin's name, GPUDirect RDMA."""
    if (found := _COLLNET.search(text)) and (net := _NET.match(found[4])):
        return int(found[1]), int(found[2]), found[3], net[1], _gdr(net[4])
    return None


def _gdr(tail: str) -> bool | None:
    if tail.startswith("/GDRDMA"):
        return True
    return False if _NO_GDR.match(tail) else None
