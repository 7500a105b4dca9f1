"""Which nodes are measured together, so that a bad one is found in two rounds: all in pairs, then suspects beside good ones.

As operators do it (gcm's check_nccl, oci-hpc): a bad node about halves what its pair reaches, and a pair does not say which of
its two it is; beside a node that has done well it does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from orchestrator.bench.compare import behind

Pair = tuple[str, str]


def first_round(nodes: Sequence[str]) -> list[Pair]:
    """Every node in one pair; of an odd number the last beside the first, which is then measured twice. Neighbours in
    `nodes` are paired."""
    pairs = list(zip(nodes[::2], nodes[1::2], strict=False))
    return [*pairs, (nodes[-1], nodes[0])] if len(nodes) % 2 and len(nodes) > 1 else pairs


def second_round(figures: Mapping[Pair, float | None]) -> list[Pair]:
    """The nodes of pairs that fell behind (or gave no figure), each beside a node of a pair that did not.

    Empty where no pair did well enough to be held against.
    """
    known = {pair: figure for pair, figure in figures.items() if figure is not None}
    slow = behind(known)
    bad = [pair for pair in figures if pair not in known or pair in slow]
    good = [node for pair in known if pair not in slow for node in pair]
    cleared = set(good)
    asked = [node for pair in bad for node in pair if node not in cleared]
    return [(node, good[i % len(good)]) for i, node in enumerate(dict.fromkeys(asked))] if good else []


def verdicts(figures: Mapping[Pair, float | None]) -> dict[str, float | None]:
    """By node, its best pair's figure in GB/s: what the node itself can do. None where no pair of it gave one."""
    best: dict[str, float | None] = {}
    for pair, figure in figures.items():
        for node in pair:
            known = best.get(node)
            best[node] = figure if known is None or (figure is not None and figure > known) else known
    return best
