"""What belongs together: sets that are joined pair by pair, and the domains of a level that are one place."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from itertools import combinations
from typing import Any

from orchestrator.hardware.names import joined_name


class Groups:
    """Disjoint sets that can be joined (union-find)."""

    def __init__(self, items: Iterable[Any]) -> None:
        self._parent = {item: item for item in items}

    def find(self, item: Any) -> Any:
        while self._parent[item] != item:
            self._parent[item] = self._parent[self._parent[item]]
            item = self._parent[item]
        return item

    def join(self, a: Any, b: Any) -> None:
        self._parent[self.find(b)] = self.find(a)

    def all(self) -> list[list[Any]]:
        found: dict[Any, list[Any]] = {}
        for item in self._parent:
            found.setdefault(self.find(item), []).append(item)
        return list(found.values())


def merged_places(held: Mapping[str, tuple[str, ...]]) -> dict[str, str]:
    """Place by node, where domains that share at least half of the smaller one's nodes are one place.

    Half, and not any: one cable in the wrong leaf, or two machines that both call themselves `ubuntu`, must not make
    one place of two racks.
    """
    of_node: dict[str, list[str]] = {}
    for name, members in held.items():
        for member in members:
            of_node.setdefault(member, []).append(name)
    shared: Counter[tuple[str, str]] = Counter()
    for names in of_node.values():
        shared.update(combinations(names, 2))
    groups = Groups(held)
    for (a, b), count in shared.items():
        if 2 * count >= min(len(held[a]), len(held[b])):
            groups.join(a, b)
    label = {name: joined_name(group) for group in groups.all() for name in group}
    # A node that is in two places after all belongs where most of its cables go.
    return {node: Counter(label[name] for name in names).most_common(1)[0][0] for node, names in of_node.items()}
