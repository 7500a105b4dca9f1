"""A heat map: rows by time, darker is more; a path for each shade, so that thousands of cells stay small and follow the theme."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from orchestrator.pictures.markup import Markup, number, tag
from orchestrator.pictures.plot import RIGHT, WIDE, Band
from orchestrator.pictures.scale import Scale, time_ticks

SHADES = 7
LABEL = 12.0
"""The least height of a labelled row."""


@dataclass(frozen=True)
class Heat:
    """Cells by row, from left to right; None is a cell of which nothing is known."""

    rows: tuple[str, ...]
    cells: tuple[tuple[float | None, ...], ...]
    first: float
    """Seconds since 1970 at the left edge."""
    seconds: float
    """How long a cell is."""
    low: float
    """The value of the lightest shade."""
    high: float
    """That of the darkest; what is more is as dark."""
    unit: str
    label: str
    """In words what it shows."""


def draw(heat: Heat, bands: Sequence[Band] = (), left: float = 0.0) -> Markup:
    rows = len(heat.rows)
    columns = max((len(line) for line in heat.cells), default=0)
    left = left or min(190.0, 16 + 6.6 * max((len(name) for name in heat.rows), default=1))
    cell = max(4.0, min(22.0, 260.0 / max(1, rows)))
    top, bottom = 16.0, 26.0
    height = top + rows * cell + bottom
    x = Scale(0, max(1, columns), left, WIDE - RIGHT)
    paths: dict[int, list[str]] = defaultdict(list)
    for number_of, line in enumerate(heat.cells):
        start, shade_before = 0, -1
        for column, shade in enumerate([*(_shade(heat, value) for value in line), -1]):
            if shade != shade_before:
                if shade_before >= 0:
                    paths[shade_before].append(f"M{start} {number_of}.5h{column - start}")
                start, shade_before = column, shade
    width = (WIDE - RIGHT - left) / max(1, columns)
    place = f"translate({number(left)} {number(top)}) scale({width:.4f} {cell:.4f})"
    parts = [
        tag("rect", x=left, y=top, width=WIDE - RIGHT - left, height=rows * cell, class_="unknown"),
        tag(
            "g",
            *(tag("path", d="".join(d), class_=f"h{shade}") for shade, d in sorted(paths.items())),
            transform=place,
            class_="heat",
        ),
    ]
    every = max(1, -(-int(LABEL) // int(max(1, cell))))
    for index, name in enumerate(heat.rows):
        if index % every == 0:
            shown = name if len(name) <= 24 else name[:23] + "…"
            parts.append(tag("text", shown, x=left - 6, y=top + (index + 0.5) * cell + 4, text_anchor="end"))
    for band in bands:
        at = x((band.start - heat.first) / heat.seconds)
        if left <= at <= WIDE - RIGHT:
            parts.append(
                tag(
                    "path",
                    tag("title", band.label),
                    d=f"M{number(at)} {number(top - 4)}V{number(top + rows * cell)}",
                    class_="split",
                )
            )
            parts.append(tag("text", band.label, x=at + 3, y=top - 5, class_="bandlabel"))
    end = heat.first + columns * heat.seconds
    for at, word in time_ticks(heat.first, end):
        place_x = x((at - heat.first) / heat.seconds)
        parts.append(tag("path", d=f"M{number(place_x)} {number(top + rows * cell)}v5", class_="tick"))
        middle = place_x > left + 3.2 * len(word)
        words_x = min(place_x, WIDE - 4 - 3.2 * len(word)) if middle else place_x
        parts.append(tag("text", word, x=words_x, y=height - 6, text_anchor="middle" if middle else None))
    parts.append(tag("text", "UTC", x=left - 6, y=height - 6, text_anchor="end", class_="unit"))
    return tag(
        "svg",
        *parts,
        viewBox=f"0 0 {number(WIDE)} {number(height)}",
        role="img",
        aria_label=heat.label,
        data_heat=_hover(heat, left, top, cell, columns),
    )


def _shade(heat: Heat, value: float | None) -> int:
    if value is None:
        return -1
    share = (value - heat.low) / ((heat.high - heat.low) or 1.0)
    return max(0, min(SHADES - 1, int(share * SHADES)))


def _hover(heat: Heat, left: float, top: float, cell: float, columns: int) -> str:
    """What the page's script needs to name the cell under the pointer; without values, which would double the page."""
    frame = [round(v, 2) for v in (left, WIDE - RIGHT, top, cell)]
    data = {"f": frame, "c": columns, "t": heat.first, "s": heat.seconds, "n": list(heat.rows)}
    return json.dumps(data, separators=(",", ":"))


def key(heat: Heat, low: str, high: str) -> Markup:
    """The shades with what their ends mean."""
    boxes = [tag("rect", x=i * 18, width=18, height=10, class_=f"k{i}") for i in range(SHADES)]
    scale = tag("svg", *boxes, viewBox=f"0 0 {SHADES * 18} 10", class_="swatch scale")
    gap = tag(
        "span",
        tag("svg", tag("rect", width=14, height=10, class_="unknown"), viewBox="0 0 14 10", class_="swatch"),
        "not measured",
    )
    return tag("p", tag("span", low, " ", scale, " ", high), gap, class_="legend")
