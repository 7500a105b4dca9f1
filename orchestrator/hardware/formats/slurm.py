"""What Slurm's topology.conf says: a tree of switches (topology/tree) and NVLink blocks (topology/block).

A switch with nodes is a `leaf`, those above are `pod`, `spine`, `core`; a block is an `nvlink` domain. The file knows
no GPUs.
"""

from __future__ import annotations

import re
from collections import Counter

from orchestrator.hardware.formats import switches
from orchestrator.hardware.formats.errors import FormatError
from orchestrator.hardware.formats.hostlist import MOST_NAMES, expand
from orchestrator.hardware.model import Cluster, Domain, Node

_PAIR = re.compile(r"([A-Za-z]+)\s*=\s*(\"[^\"]*\"|[^\s\"]*)")
_KNOWN = {
    "switchname": frozenset({"switchname", "switches", "nodes", "linkspeed"}),
    "blockname": frozenset({"blockname", "nodes"}),
    "blocksizes": frozenset({"blocksizes"}),
    "blocklevels": frozenset({"blocklevels"}),
}


def parse(text: str, name: str = "topology.conf") -> Cluster:
    """The nodes that `text` places, and their switches and blocks.

    Raises FormatError where a line is none of Slurm's, a name comes twice, or a switch is named but not described.
    """
    children: dict[str, list[str]] = {}
    leaves: dict[str, list[str]] = {}
    blocks: dict[str, list[str]] = {}
    described: dict[str, int] = {}
    notes: list[str] = []
    for number, line in _lines(text):
        if included := re.fullmatch(r"(?i)include\s+(\S+)", line):
            notes.append(f"Line {number} includes {included[1]}, which was not read: give that file too.")
            continue
        pairs = _pairs(number, line)
        kind = next(iter(pairs))
        if kind in ("blocksizes", "blocklevels"):
            # How many blocks Slurm takes together says nothing of what is joined.
            continue
        own = _one_name(number, pairs[kind])
        if own in described:
            raise FormatError(number, f"{own} is described twice (first on line {described[own]})")
        described[own] = number
        nodes = _names(number, pairs.get("nodes", ""))
        if kind == "blockname":
            blocks[own] = nodes
        else:
            if not nodes and not pairs.get("switches"):
                raise FormatError(number, f"switch {own} has neither Nodes nor Switches")
            leaves[own], children[own] = nodes, _names(number, pairs.get("switches", ""))
        if sum(map(len, leaves.values())) + sum(map(len, blocks.values())) > 2 * MOST_NAMES:
            raise FormatError(number, f"the file names more than {2 * MOST_NAMES} nodes")
    if not described:
        raise FormatError(None, "it has no line of SwitchName or BlockName")
    for switch, below in children.items():
        for child in below:
            if child not in children and not notes:
                raise FormatError(
                    described[switch], f"switch {switch} names switch {child}, which has no line of its own"
                )
    try:
        domains = switches.domains(children, leaves)
    except ValueError as error:
        raise FormatError(None, str(error)) from None
    named = dict.fromkeys(node for group in (*leaves.values(), *blocks.values()) for node in group)
    times = Counter(node for group in leaves.values() for node in group)
    notes += [f"{node} is on {count} leaf switches." for node, count in times.items() if count > 1][:20]
    domains += tuple(Domain("nvlink", block, None, tuple(nodes)) for block, nodes in blocks.items())
    return Cluster(tuple(Node(node) for node in named), domains, tuple(notes))


def _lines(text: str) -> list[tuple[int, str]]:
    """Logical lines with their number: comments gone, continued ones joined, empty ones left out."""
    lines: list[tuple[int, str]] = []
    started = 0
    parts: list[str] = []
    physical = text.lstrip("\ufeff").replace("\r\n", "\n").replace("\r", "\n").split("\n")
    for number, raw in enumerate(physical, start=1):
        # Slurm takes \# for a # of its own.
        line = re.split(r"(?<!\\)#", raw, maxsplit=1)[0].rstrip()
        started = started if parts else number
        continued = line.endswith("\\") and number < len(physical)
        parts.append(line.removesuffix("\\"))
        if not continued:
            joined = "".join(parts).strip()
            if joined:
                lines.append((started, joined))
            parts = []
    return lines


def _pairs(number: int, line: str) -> dict[str, str]:
    """Lower-case keys and values of one line, the key that says what the line is first."""
    pairs: dict[str, str] = {}
    position = 0
    while position < len(line):
        match = _PAIR.match(line, position)
        if match is None:
            raise FormatError(number, f"{line[position : position + 40]!r} is not of the form Key=Value")
        key = match[1].lower()
        if key in pairs:
            raise FormatError(number, f"{match[1]} comes twice")
        pairs[key] = match[2].strip('"')
        position = match.end()
        while position < len(line) and line[position].isspace():
            position += 1
    kind = next((kind for kind in _KNOWN if kind in pairs), None)
    if kind is None:
        raise FormatError(number, f"{line[:40]!r} begins with none of SwitchName, BlockName, BlockSizes")
    if unknown := pairs.keys() - _KNOWN[kind]:
        raise FormatError(number, f"unknown key {sorted(unknown)[0]}; known are {', '.join(sorted(_KNOWN[kind]))}")
    return {kind: pairs.pop(kind), **pairs}


def _one_name(number: int, text: str) -> str:
    names = _names(number, text)
    if len(names) != 1:
        raise FormatError(number, f"a line describes one switch or block, not {len(names)}")
    return names[0]


def _names(number: int, text: str) -> list[str]:
    try:
        return list(dict.fromkeys(expand(text)))
    except ValueError as error:
        raise FormatError(number, str(error)) from None
