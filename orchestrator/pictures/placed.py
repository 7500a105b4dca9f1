"""A placement drawn: each node with its GPUs, NVLink islands and ranks, and the rank that failed or is slow."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from orchestrator.pictures.markup import Markup, tag
from orchestrator.pictures.plot import WIDE
from orchestrator.pictures.scale import figure

MOST_NODES = 64
_CELL, _GAP = 26.0, 14.0


def draw(
    placement: Mapping[str, Any],
    nodes: Mapping[str, Mapping[str, Any]],
    *,
    bad: Collection[int] = (),
    slow: Collection[int] = (),
    times: Mapping[str, float] | None = None,
) -> Markup:
    """`nodes` has the hardware of each as far as it is known; `bad` and `slow` are ranks; `times` seconds a step by rank."""
    x, y, row_height = 0.0, 0.0, 0.0
    parts: list[Markup] = []
    shown = placement["nodes"][:MOST_NODES]
    for part in shown:
        known = _known_islands(part, nodes.get(part["node"]) or {})
        islands = known or [list(part["gpus"])]
        count = sum(map(len, islands))
        columns = min(count, 16)
        width = max(columns * _CELL + (len(islands) - 1) * _GAP * (count <= 16) + 18, 9 + 6.9 * len(part["node"][:30]))
        height = 62.0 + (count - 1) // 16 * _CELL
        if x and x + width > WIDE:
            x, y, row_height = 0.0, y + row_height + 12, 0.0
        parts.append(_node(part, islands, (x, y, width, height), bad, slow, times or {}, known=bool(known)))
        x, row_height = x + width + 12, max(row_height, height)
    left_out = len(placement["nodes"]) - len(shown)
    bottom = y + row_height + (22 if left_out else 4)
    if left_out:
        parts.append(tag("text", f"and {left_out} more nodes", x=0, y=bottom - 6))
    label = f"{len(placement['nodes'])} nodes at level {placement.get('level', 'cluster')}"
    return tag("svg", *parts, viewBox=f"-2 -2 {WIDE + 4:.0f} {bottom + 2:.0f}", role="img", aria_label=label)


def _known_islands(part: Mapping[str, Any], hardware: Mapping[str, Any]) -> list[list[int]]:
    """The node's GPUs by NVLink island; nothing where its hardware is not known."""
    known = [list(island) for island in hardware.get("islands") or ()]
    there = {gpu for island in known for gpu in island}
    return known if there >= set(part["gpus"]) else []


def _node(
    part: Mapping[str, Any],
    islands: list[list[int]],
    box: tuple[float, float, float, float],
    bad: Collection[int],
    slow: Collection[int],
    times: Mapping[str, float],
    *,
    known: bool,
) -> Markup:
    x, y, width, height = box
    name = part["node"] if len(part["node"]) <= 30 else part["node"][:29] + "…"
    drawn = [
        tag("rect", x=x, y=y, width=width, height=height, rx=5, class_="box"),
        tag("text", name, tag("title", part["node"]), x=x + 9, y=y + 17, class_="name"),
    ]
    ranks = dict(zip(part["gpus"], part.get("ranks") or (), strict=False))
    at, place = x + 9, 0
    small = sum(map(len, islands)) <= 16
    for island in islands:
        begin = at
        for gpu in island:
            row = 0 if small else place // 16
            left = at if small else x + 9 + place % 16 * _CELL
            drawn.append(_gpu(gpu, ranks.get(gpu), left, y + 26 + row * _CELL, bad, slow, times))
            at, place = at + _CELL, place + 1
        if small and known and len(island) > 1:
            title = tag("title", f"NVLink island of {len(island)} GPUs")
            drawn.append(tag("path", title, d=f"M{begin:.1f} {y + 55:.1f}H{at - 4:.1f}", class_="island"))
        at += _GAP
    return tag("g", *drawn)


def _gpu(
    gpu: int,
    rank: int | None,
    x: float,
    y: float,
    bad: Collection[int],
    slow: Collection[int],
    times: Mapping[str, float],
) -> Markup:
    if rank is None:
        return tag(
            "rect", tag("title", f"GPU {gpu}: not of this run"), x=x, y=y, width=22, height=22, rx=3, class_="gpu free"
        )
    word = "bad" if rank in bad else "slow" if rank in slow else ""
    title = f"rank {rank}, GPU {gpu}" + {"bad": ": failed", "slow": ": slower than the others", "": ""}[word]
    if (seconds := times.get(str(rank))) is not None:
        title += f", {figure(seconds * 1000)} ms a step"
    return tag(
        "g",
        tag("title", title),
        tag("rect", x=x, y=y, width=22, height=22, rx=3, class_=f"gpu own {word}".rstrip()),
        tag("text", rank, x=x + 11, y=y + 15, text_anchor="middle", class_=f"rank {word}".rstrip()),
    )
