"""Nodes that a run must not get, in words: the same reason of many nodes is said once."""

from __future__ import annotations

from collections.abc import Mapping

NAMED, MOST_REASONS = 2, 4


def left_out(unfit: Mapping[str, str]) -> str:
    """`driver 550.54 is older than 570 on gpu-01, gpu-02 and 6 more; ...`, the reason of most nodes first."""
    groups: dict[str, list[str]] = {}
    for node, why in sorted(unfit.items()):
        groups.setdefault(why, []).append(node)
    ordered = sorted(groups.items(), key=lambda group: (-len(group[1]), group[0]))
    said = [f"{why} on {_few(nodes)}" for why, nodes in ordered[:MOST_REASONS]]
    if len(ordered) > MOST_REASONS:
        said.append(f"{sum(len(nodes) for _, nodes in ordered[MOST_REASONS:])} more nodes for other reasons")
    return "; ".join(said)


def _few(nodes: list[str]) -> str:
    # "and 1 more" would take no less room than the name.
    if len(nodes) <= NAMED + 1:
        return ", ".join(nodes)
    return f"{', '.join(nodes[:NAMED])} and {len(nodes) - NAMED} more"
