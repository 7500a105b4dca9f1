"""What `ibnetdiscover` says of an InfiniBand fabric, in full and with `-p`.

Hosts are known by their adapters' descriptions (`gpu-01 mlx5_0`). A switch that hosts are cabled to is a `leaf`; on a
rail-optimised fabric each adapter of a host is on another leaf, so a host is a member of several. Switches above a
leaf are one domain where they have a switch below them in common: the spines of one pod do not differ for who is near
whom.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field

from orchestrator.hardware.formats import switches
from orchestrator.hardware.formats.errors import FormatError
from orchestrator.hardware.groups import Groups
from orchestrator.hardware.model import Cluster, Nic, Node, Shape
from orchestrator.hardware.names import joined_name, natural

_BLOCK = re.compile(r'(Switch|Ca|Rt)\s+([0-9]+)\s+"([SHR])-([0-9a-fA-F]{1,16})"(.*)')
_PORT = re.compile(
    r"\[([0-9]{1,4})\](?:\[ext [0-9]+\])?(?:\(([0-9a-fA-F]{1,16})\))?\s*"
    r'"([SHR])-([0-9a-fA-F]{1,16})"\s*\[([0-9]{1,4})\](?:\[ext [0-9]+\])?(?:\([0-9a-fA-F]{1,16}\))?(.*)'
)
_LISTED = re.compile(
    r"(CA|SW|RT)\s+([0-9]+)\s+([0-9]+)\s+0x([0-9a-fA-F]{1,16})\s+([0-9]+x)\s+(\S+)"
    r"(?:\s+-\s+(CA|SW|RT)\s+([0-9]+)\s+([0-9]+)\s+0x([0-9a-fA-F]{1,16}))?\s*(.*)"
)
_QUOTED = re.compile(r'"([^"]*)"')
_RATE = re.compile(r"\b([0-9]{1,2})x\s?([A-Z]{3}(?:10)?)\b")
_LANE_GBPS = {"SDR": 2.5, "DDR": 5, "QDR": 10, "FDR10": 10, "FDR": 14, "EDR": 25, "HDR": 50, "NDR": 100, "XDR": 200}

_NAMELESS = re.compile(r"(?i)Technolog|Mellanox|ConnectX|InfiniHost|^localhost\b|^MT[0-9]{3,}|^$")
"""What an adapter calls itself while nobody has told it its host's name."""
_AGGREGATION = re.compile(r"(?i)Aggregation Node")
"""The end point of in-network reduction (SHARP) inside a switch: no host."""


@dataclass(frozen=True)
class _Cable:
    """One adapter's port on one switch's port."""

    switch: str
    adapter: str
    adapter_port: int
    rate_gbps: float | None


@dataclass
class _Fabric:
    """What the lines say, by GUID (lower case, 16 digits)."""

    switches: dict[str, str] = field(default_factory=dict)
    """Descriptions."""
    adapters: dict[str, str] = field(default_factory=dict)
    described: set[str] = field(default_factory=set)
    """The switches that have a block of their own."""
    cables: dict[tuple[str, int], _Cable] = field(default_factory=dict)
    """By adapter and its port."""
    above: dict[str, dict[str, None]] = field(default_factory=lambda: defaultdict(dict))
    """The switches that a switch is cabled to."""

    def connect(self, a: tuple[str, str, int, str], b: tuple[str, str, int, str], rate: float | None) -> None:
        """Joins two ends, each (kind, guid, port, description); kinds are S, H, R."""
        for kind, guid, _, description in (a, b):
            known = self.switches if kind == "S" else self.adapters
            if kind != "R":
                known[guid] = description or known.get(guid, "")
        if a[0] == b[0] == "S":
            self.above[a[1]][b[1]] = None
            self.above[b[1]][a[1]] = None
        for (kind, guid, port, _), other in ((a, b), (b, a)):
            if kind == "H" and other[0] == "S":
                previous = self.cables.get((guid, port))
                if previous is None or previous.rate_gbps is None:
                    self.cables[guid, port] = _Cable(other[1], guid, port, rate)


def parse(text: str, name: str = "fabric") -> Cluster:
    """Hosts with their NICs, and leaves with what is above them.

    Raises FormatError where a line is cut off, and where nothing shows which host is on which switch.
    """
    fabric = _Fabric()
    block: tuple[str, str, str] | None = None
    block_line, block_ports = 0, 1
    lines = text.lstrip("\ufeff").replace("\r\n", "\n").replace("\r", "\n").split("\n")
    for number, line in enumerate(map(str.strip, lines), start=1):
        if line.startswith(("Switch", "Ca\t", "Ca ", "Rt\t", "Rt ")):
            kind, guid, description = block = _block(number, line)
            block_line, block_ports = number, 0
            if kind == "S":
                fabric.switches[guid] = description or fabric.switches.get(guid, "")
                fabric.described.add(guid)
        elif line.startswith("[") and block is not None:
            _port(number, line, block, fabric)
            block_ports += 1
        elif line.startswith(("CA ", "SW ", "RT ", "CA\t", "SW\t", "RT\t")):
            _listed(number, line, fabric)
    if not block_ports and block is not None and block[0] == "H":
        raise FormatError(block_line, f"no port follows for adapter {block[2] or block[1]}: the text is cut off")
    if not fabric.switches:
        raise FormatError(None, "it names no switch")
    return _cluster(fabric)


def _block(number: int, line: str) -> tuple[str, str, str]:
    match = _BLOCK.fullmatch(line)
    if match is None or match[5].count('"') % 2:
        raise FormatError(number, f"the line is cut off: {line[:60]}")
    description = _QUOTED.search(match[5])
    return match[3], _guid(match[4]), description[1].strip() if description else ""


def _port(number: int, line: str, block: tuple[str, str, str], fabric: _Fabric) -> None:
    match = _PORT.fullmatch(line)
    if match is None or match[6].count('"') % 2:
        raise FormatError(number, f"the line is cut off: {line[:60]}")
    kind, guid, description = block
    peer = _QUOTED.search(match[6])
    there = (match[3], _guid(match[4]), int(match[5]), peer[1].strip() if peer else "")
    fabric.connect((kind, guid, int(match[1]), description), there, _rate(match[6]))


def _listed(number: int, line: str, fabric: _Fabric) -> None:
    """One line of `-p`; a port that is down has no other end."""
    match = _LISTED.fullmatch(line)
    if match is None:
        raise FormatError(number, f"the line is cut off: {line[:60]}")
    if match[7] is None:
        if not match[11].startswith("'") or not match[11].endswith("'"):
            raise FormatError(number, f"the line is cut off: {line[:60]}")
        if match[1] == "SW":
            fabric.switches.setdefault(_guid(match[4]), match[11].strip("'").strip())
            fabric.described.add(_guid(match[4]))
        return
    first, between, second = match[11][match[11].find("'") + 1 : match[11].rfind("'")].partition("' - '")
    if not between or not match[11].startswith("(") or ")" not in match[11]:
        raise FormatError(number, f"the line is cut off: {line[:60]}")
    kinds = {"CA": "H", "SW": "S", "RT": "R"}
    here = (kinds[match[1]], _guid(match[4]), int(match[3]), first.strip())
    there = (kinds[match[7]], _guid(match[10]), int(match[9]), second.strip())
    fabric.connect(here, there, _rate(f"{match[5]}{match[6]}"))
    fabric.described |= {guid for kind, guid, _, _ in (here, there) if kind == "S"}


def _cluster(fabric: _Fabric) -> Cluster:
    names = _switch_names(fabric.switches)
    hosts: dict[str, list[Nic]] = defaultdict(list)
    held: dict[str, dict[str, None]] = defaultdict(dict)
    nameless: dict[str, int] = defaultdict(int)
    for cable in fabric.cables.values():
        description = fabric.adapters[cable.adapter]
        if _AGGREGATION.search(description):
            continue
        members = held[cable.switch]
        host, adapter = _host(description)
        if host is None:
            nameless[description or "no description"] += 1
            continue
        leaf = names[cable.switch]
        hosts[host].append(Nic(adapter, cable.adapter_port, (), cable.rate_gbps, "InfiniBand", switch=leaf))
        members[host] = None
    if not hosts:
        raise FormatError(None, "no adapter on any switch carries a host's name")
    notes = [
        f"{count} adapters call themselves {what!r}, so their hosts are not known; they were left out."
        for what, count in nameless.items()
    ]
    undescribed = [names[guid] for guid in fabric.switches if guid not in fabric.described]
    if undescribed:
        notes.append(
            f"{len(undescribed)} switches ({', '.join(undescribed[:3])}) are named but not described: "
            "the text is an excerpt or was cut off."
        )
    shapes: dict[tuple[Nic, ...], Shape] = {}
    nodes = []
    for host, found in hosts.items():
        nics = tuple(sorted(found, key=lambda nic: (natural(nic.name), nic.port)))
        nodes.append(Node(host, shapes.setdefault(nics, Shape(nics=nics))))
    children, leaves = _tree(fabric, names, {guid: list(members) for guid, members in held.items()})
    try:
        domains = switches.domains(children, leaves)
    except ValueError as error:
        raise FormatError(None, str(error)) from None
    return Cluster(tuple(nodes), domains, tuple(notes))


def _tree(
    fabric: _Fabric, names: dict[str, str], held: dict[str, list[str]]
) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    """Switches below and nodes below, by name. A switch's tier is its distance from the nearest leaf."""
    below = {guid: names[guid] for guid in held}
    leaves = {names[guid]: members for guid, members in held.items()}
    children: dict[str, list[str]] = {}
    seen = set(below)
    while True:
        cabled = {guid: [up for up in fabric.above[guid] if up not in seen] for guid in below}
        uppers = list(dict.fromkeys(up for ups in cabled.values() for up in ups))
        if not uppers:
            return children, leaves
        groups = Groups(uppers)
        # Switches of this tier that are one domain already hold their uppers together.
        for siblings in _by_value(below).values():
            ups = [up for guid in siblings for up in cabled[guid]]
            for up in ups[1:]:
                groups.join(ups[0], up)
        above = {}
        for group in groups.all():
            for guid in group:
                above[guid] = joined_name([names[member] for member in group])
        for guid, child in below.items():
            for up in cabled[guid][:1]:
                members = children.setdefault(above[up], [])
                if child not in members:
                    members.append(child)
        seen |= set(uppers)
        below = above


def _by_value(names: dict[str, str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for key, value in names.items():
        found.setdefault(value, []).append(key)
    return found


def _switch_names(descriptions: dict[str, str]) -> dict[str, str]:
    """A name for each switch: `MF0;leaf-01:MQM9701/U1` is leaf-01 where no other switch would be called so too."""
    long = {guid: text.partition(";")[2] or text for guid, text in descriptions.items()}
    short = {guid: re.sub(r":[^:/]*/U[0-9]+$", "", text) for guid, text in long.items()}
    names: dict[str, str] = {}
    for candidates in (short, long):
        for guid, text in _unique(candidates):
            names.setdefault(guid, text)
    return {guid: names.get(guid, f"{text} {guid}".strip()) for guid, text in long.items()}


def _unique(names: dict[str, str]) -> Iterable[tuple[str, str]]:
    return ((guids[0], text) for text, guids in _by_value(names).items() if len(guids) == 1 and text)


def _host(description: str) -> tuple[str | None, str]:
    """The host and the adapter of `gpu-01 mlx5_0`; no host where the description is the vendor's."""
    if _NAMELESS.search(description):
        return None, ""
    host, _, adapter = description.strip("'").rpartition(" ")
    return (host.strip(), adapter) if host.strip() else (adapter, adapter)


def _rate(text: str) -> float | None:
    match = _RATE.search(text)
    lane = _LANE_GBPS.get(match[2]) if match else None
    return int(match[1]) * lane if match and lane else None


def _guid(text: str) -> str:
    return text.lower().zfill(16)
