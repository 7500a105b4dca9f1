"""Horizontal bars: what a whole is made of, and one beside the other. Every part has a hatching of its own and its figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from orchestrator.pictures.markup import Markup, tag
from orchestrator.pictures.plot import WIDTH, legend
from orchestrator.pictures.scale import figure, nice_step

PARTS = ("productive", "checkpoint", "starting", "lost", "idle")


def stacked(
    rows: Sequence[tuple[str, Mapping[str, float]]], unit: str, label: str, parts: Sequence[str] = PARTS
) -> Markup:
    """A bar a row, its parts from left to right, to one scale; the total at its end."""
    left = min(190.0, 40 + 6.8 * max((len(name) for name, _ in rows), default=1))
    most = max((sum(values.values()) for _, values in rows), default=0.0) or 1.0
    right = WIDTH - 92
    height = len(rows) * 26.0 + 30
    step = nice_step(most, 5)
    drawn: list[Markup] = []
    ticks = int(most / step + 1e-9) + 1
    for i in range(ticks):
        x = left + i * step / most * (right - left)
        drawn.append(tag("path", d=f"M{x:.1f} 2V{height - 24:.1f}", class_="grid"))
        drawn.append(tag("text", figure(i * step), x=x, y=height - 8, text_anchor="middle"))
    drawn.append(tag("text", unit, x=left - 8, y=height - 8, text_anchor="end", class_="unit"))
    for index, (name, values) in enumerate(rows):
        y = index * 26.0 + 4
        shown = name if len(name) <= 26 else name[:25] + "…"
        drawn.append(tag("text", shown, x=left - 8, y=y + 14, text_anchor="end"))
        x = left
        for part in parts:
            value = values.get(part, 0.0)
            if value <= 0:
                continue
            width = value / most * (right - left)
            title = tag("title", f"{name}: {part} {figure(value)} {unit}")
            drawn.append(tag("rect", title, x=x, y=y, width=max(0.4, width), height=18.0, class_=f"part {part}"))
            x += width
        total = sum(values.values())
        share = values.get(parts[0], 0.0) / total if total else 0.0
        drawn.append(tag("text", f"{figure(total)}, {share:.0%}", x=x + 6, y=y + 14))
    return tag("svg", *drawn, viewBox=f"0 0 {WIDTH:.0f} {height:.0f}", role="img", aria_label=label)


def whole(values: Mapping[str, float], label: str, words: Mapping[str, str], parts: Sequence[str] = PARTS) -> Markup:
    """One bar that is the whole, with a legend that has the figures."""
    total = sum(values.get(part, 0.0) for part in parts) or 1.0
    drawn: list[Markup] = []
    x = 2.0
    for part in parts:
        width = values.get(part, 0.0) / total * (WIDTH - 4)
        if width <= 0:
            continue
        share = values[part] / total
        drawn.append(
            tag(
                "rect",
                tag("title", f"{part}: {words[part]}"),
                x=x,
                y=4,
                width=max(0.4, width),
                height=34,
                class_=f"part {part}",
            )
        )
        if width > 46 and part in ("productive", "idle"):
            drawn.append(tag("text", f"{share:.0%}", x=x + 8, y=26, class_=f"on {part}"))
        x += width
    bar = tag("svg", *drawn, viewBox=f"0 0 {WIDTH:.0f} 42", role="img", aria_label=label)
    items = [(f"part {part}", f"{part} {words[part]}") for part in parts if values.get(part, 0.0) > 0]
    return tag("div", bar, legend(items))
