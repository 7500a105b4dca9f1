"""How a tree of switches becomes domains: level by height, `leaf` for those that nodes are cabled to."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from orchestrator.hardware.model import Domain

_LEVELS = ("leaf", "pod", "spine", "core")


def level_of(height: int) -> str:
    """The level of a switch of that height above the nodes: 1 is a leaf, 2 a pod, 3 a spine, 4 a core, then
    tier5, ..."""
    return _LEVELS[height - 1] if height <= len(_LEVELS) else f"tier{height}"


def domains(children: Mapping[str, Sequence[str]], nodes: Mapping[str, Sequence[str]]) -> tuple[Domain, ...]:
    """Domains, widest first, of the switches named in either mapping: `children` are switches below, `nodes` nodes.

    A switch is one higher than the highest below it. Raises ValueError where switches are below themselves.
    """
    height = _heights(
        children, list(dict.fromkeys([*children, *nodes, *(c for below in children.values() for c in below)]))
    )
    parent: dict[str, str] = {}
    for switch, below in children.items():
        for child in below:
            parent.setdefault(child, switch)
    found = [
        Domain(level_of(height[name]), name, parent.get(name), (*nodes.get(name, ()), *children.get(name, ())))
        for name in height
    ]
    return tuple(sorted(found, key=lambda domain: -height[domain.name]))


def _heights(children: Mapping[str, Sequence[str]], switches: Sequence[str]) -> dict[str, int]:
    """Height by switch, in the order of `switches`; depth first without recursion, for a chain may be long."""
    height: dict[str, int] = {}
    for start in switches:
        path: list[tuple[str, Iterator[str]]] = [(start, iter(children.get(start, ())))]
        on_path = {start}
        while path and start not in height:
            switch, rest = path[-1]
            child = next((c for c in rest if c not in height), None)
            if child is None:
                height[switch] = 1 + max((height[c] for c in children.get(switch, ())), default=0)
                on_path.discard(switch)
                path.pop()
            elif child in on_path:
                raise ValueError(f"switch {child} is below itself")
            else:
                on_path.add(child)
                path.append((child, iter(children.get(child, ()))))
    return {switch: height[switch] for switch in switches}
