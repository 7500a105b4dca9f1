"""What a cluster.yaml declares of its hardware, under `metadata: orch: hardware:` (or a file with just that part).

    nodes:
      gpu-[01-16]: {gpus: 8xH100, nvlink: 18, nics: 8x400, leaf: l1, pod: p1}
      old-[1-4]:   {gpus: 4xV100, nvlink: 2, islands: [[0, 1], [2, 3]], labels: {row: "7"}}
      login:       {cpus: 32}

`gpus` is COUNTxMODEL or a count, `nvlink` how many NVLinks each pair has (all pairs, or those within one of
`islands`), `nics` COUNTxGBPS or a list of `{name, rate, near}`. What is not declared is unknown, and is filled in
from the machine itself.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from typing import Any

from orchestrator.hardware.formats.errors import FormatError
from orchestrator.hardware.formats.hostlist import expand
from orchestrator.hardware.formats.yaml_text import line_of, load, mapping, strings
from orchestrator.hardware.model import FABRIC_LEVELS, MOST_GPUS, Cluster, Gpu, Nic, Node, Shape, triangle_position

_LEVELS = tuple(level for level in FABRIC_LEVELS if level != "nvlink")
_KEYS = ("gpus", "nvlink", "islands", "nics", "cpus", "memory_gib", "labels", "clique", *_LEVELS)
_COUNTED = re.compile(r"([0-9]{1,4})\s*x\s*(\S.*)")
_MOST_NICS, _MOST_NVLINKS = 256, 999


def parse(text: str, name: str = "cluster.yaml") -> Cluster:
    """The nodes that the YAML declares. Raises FormatError where it declares none, or something that is not known."""
    document = mapping(load(text), "nodes", text)
    if "metadata" in document or "cluster_name" in document:
        orch = mapping(mapping(document.get("metadata"), "metadata", text).get("orch"), "orch", text)
        if "hardware" not in orch:
            raise FormatError(None, "it declares no hardware: there is nothing under metadata: orch: hardware:")
        document = orch
    return from_mapping(document.get("hardware", document), text)


def from_mapping(value: Any, text: str = "") -> Cluster:
    """The nodes of an already loaded `hardware:` part; `text`, where it is at hand, gives complaints their line."""
    hardware = mapping(value, "hardware", text)
    declared = mapping(hardware["nodes"], "nodes", text) if "nodes" in hardware else hardware
    if not declared:
        raise FormatError(None, "it declares no nodes")
    nodes: dict[str, Node] = {}
    for hosts, entry in declared.items():
        for node in _nodes(hosts, mapping(entry, hosts, text), text):
            if node.name in nodes:
                raise FormatError(line_of(text, hosts), f"{hosts}: {node.name} is declared twice")
            nodes[node.name] = node
    return Cluster(tuple(nodes.values()))


def _nodes(hosts: str, entry: Mapping[str, Any], text: str) -> list[Node]:
    def refuse(message: str) -> FormatError:
        return FormatError(line_of(text, hosts), f"{hosts}: {message}")

    for key in entry:
        if key not in _KEYS:
            close = difflib.get_close_matches(key, _KEYS, 1)
            hint = f" Did you mean {close[0]}?" if close else " Labels of your own go under labels:."
            raise refuse(f"unknown key {key}.{hint}")
    try:
        names = expand(hosts)
        labels = {str(k): _text(v, k) for k, v in mapping(entry.get("labels"), "labels", text).items()}
        labels |= {level: _text(entry[level], level) for level in _LEVELS if level in entry}
        gpus = _gpus(entry.get("gpus", 0))
        shape = Shape(
            gpus,
            _links(len(gpus), entry.get("nvlink"), entry.get("islands"), text),
            _nics(entry.get("nics"), len(gpus), text),
            _integer(entry["cpus"], "cpus", 100_000) if "cpus" in entry else None,
            _integer(entry["memory_gib"], "memory_gib", 1_000_000) * 1024 if "memory_gib" in entry else None,
        )
        clique = _text(entry["clique"], "clique") if "clique" in entry else None
    except ValueError as error:
        raise refuse(str(error)) from None
    return [Node(name, shape, labels, clique) for name in names]


def _text(value: Any, what: str) -> str:
    if not isinstance(value, str | int) or isinstance(value, bool) or value == "":
        raise ValueError(f"{what}: a name is wanted, not {type(value).__name__}")
    return str(value)


def _integer(value: Any, what: str, most: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= most:
        raise ValueError(f"{what}: a whole number up to {most} is wanted")
    return value


def _gpus(value: Any) -> tuple[Gpu, ...]:
    match = _COUNTED.fullmatch(value.strip()) if isinstance(value, str) else None
    if match is None and isinstance(value, str):
        raise ValueError("gpus: COUNTxMODEL is wanted, such as 8xH100")
    count = _integer(int(match[1]) if match else value, "gpus", MOST_GPUS)
    return tuple(Gpu(index, match[2] if match else None) for index in range(count))


def _links(gpus: int, nvlink: Any, islands: Any, text: str) -> tuple[str | None, ...]:
    if nvlink is None and islands is None:
        return ()
    if isinstance(nvlink, str) and nvlink.upper().startswith("NV") and nvlink[2:].isdigit() and len(nvlink) < 6:
        nvlink = int(nvlink[2:])
    count = _integer(nvlink, "nvlink", _MOST_NVLINKS)
    if islands is not None and not isinstance(islands, list):
        raise ValueError("islands: a list of lists of GPU indices is wanted")
    links: list[str | None] = [None] * (gpus * (gpus - 1) // 2)
    seen: set[int] = set()
    for island in [list(range(gpus))] if islands is None else islands:
        members = _indices(island, gpus, "islands")
        if seen & set(members):
            raise ValueError(f"islands: GPU {min(seen & set(members))} is in two")
        seen |= set(members)
        for position, a in enumerate(members):
            for b in members[position + 1 :]:
                links[triangle_position(a, b, gpus)] = f"NV{count}" if count else None
    return tuple(links)


def _indices(value: Any, gpus: int, what: str) -> list[int]:
    items = value if isinstance(value, list) else [value]
    return sorted({_integer(item, what, gpus - 1) for item in items}) if gpus else []


def _nics(value: Any, gpus: int, text: str) -> tuple[Nic, ...]:
    if value is None:
        return ()
    if isinstance(value, list):
        return tuple(_nic(position, item, gpus, text) for position, item in enumerate(value))
    match = _COUNTED.fullmatch(value.strip()) if isinstance(value, str) else None
    if match is None or not re.fullmatch(r"[0-9]{1,5}", match[2].strip()) or int(match[1]) > _MOST_NICS:
        raise ValueError("nics: COUNTxGBPS is wanted, such as 8x400, or a list of {name, rate, near}")
    return tuple(Nic(f"nic{index}", rate_gbps=float(match[2])) for index in range(int(match[1])))


def _nic(position: int, value: Any, gpus: int, text: str) -> Nic:
    entry = mapping(value, "nics", text)
    if unknown := entry.keys() - {"name", "rate", "near", "port"}:
        raise ValueError(f"nics: unknown key {sorted(unknown)[0]}; known are name, near, port, rate")
    name = strings(entry.get("name", f"nic{position}"), "nics", text)
    rate = _integer(entry["rate"], "rate", 100_000) if "rate" in entry else None
    near = tuple(_indices(entry.get("near", []), gpus, "near"))
    return Nic(name[0], _integer(entry.get("port", 1), "port", 255), near, rate)
