"""The frame that charts are drawn in: axes with units, bands and marks over them, and lines of values over time."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from orchestrator.pictures.markup import Markup, join, number, tag
from orchestrator.pictures.scale import Scale, figure, nice_step, ticks, time_ticks

WIDTH, WIDE = 720.0, 1080.0
"""Of a card that has half of the page, and of one that has all of it."""
LEFT, RIGHT, TOP, BOTTOM = 58.0, 14.0, 20.0, 30.0

Point = tuple[float, float | None]


@dataclass(frozen=True)
class Line:
    """Values from left to right; None is a gap. Lines differ by dash and label too, never by colour alone."""

    name: str
    points: tuple[Point, ...]
    style: int = 0
    """Which of the page's colours and dashes, 0 to 5."""
    broken: float | None = None
    """A gap where two points are further apart than this."""


@dataclass(frozen=True)
class Band:
    """A stretch of the x axis with a meaning: an attempt, a wait in the queue."""

    start: float
    end: float
    label: str
    kind: str
    """A class of the page's style sheet: attempt, odd, queued."""


@dataclass(frozen=True)
class Mark:
    """One moment with a sign and a sentence; `kind` is a class and, by SIGNS, a shape."""

    at: float
    kind: str
    label: str


SIGNS = {"failed": "✕", "preempted": "▼", "cancelled": "■", "succeeded": "✓", "noted": "●"}
"""By weight."""


@dataclass
class Axes:
    """A chart under construction: its x axis is time (seconds since 1970) or, with `x_words`, given places."""

    low: float
    high: float
    top: float
    """The highest value that must fit."""
    unit: str
    height: float = 200.0
    width: float = WIDTH
    left: float = LEFT
    x_words: tuple[tuple[float, str], ...] | None = None
    x_unit: str = "UTC"
    wanted_y: int = 4
    parts: list[Markup] = field(default_factory=list)
    above: float = 0.0
    """Room above the frame: for marks."""

    def __post_init__(self) -> None:
        labels = ticks(self.top, self.wanted_y)
        self.x = Scale(self.low, self.high, self.left, self.width - RIGHT)
        self.y = Scale(0.0, labels[-1], self.height - BOTTOM, TOP + self.above)
        for value in labels:
            y = self.y(value)
            self.parts.append(tag("path", class_="grid", d=f"M{number(self.left)} {number(y)}H{number(self.x.last)}"))
            self.words(self.left - 7, y + 4, figure(value), "end")
        self.words(4, 12, self.unit, "start", "unit")
        for place, word in self.x_words if self.x_words is not None else time_ticks(self.low, self.high):
            x = self.x(place)
            self.parts.append(tag("path", class_="tick", d=f"M{number(x)} {number(self.y.first)}v5"))
            # At the very left the axis's unit stands.
            if x < self.left + 3.2 * len(word):
                self.words(x, self.y.first + 18, word)
            else:
                self.words(min(x, self.width - 4 - 3.2 * len(word)), self.y.first + 18, word, "middle")
        if self.x_unit:
            # Under the y axis, where no label of the x axis is.
            self.words(self.left - 7, self.y.first + 18, self.x_unit, "end", "unit")
        self.parts.append(
            tag("path", class_="axis", d=f"M{number(self.left)} {number(self.y.first)}H{number(self.x.last)}")
        )

    def words(self, x: float, y: float, words: str, anchor: str = "start", class_: str | None = None) -> None:
        self.parts.append(
            tag("text", words, x=x, y=y, text_anchor=None if anchor == "start" else anchor, class_=class_)
        )

    def bands(self, bands: Iterable[Band]) -> None:
        """Behind the lines: added before them."""
        for band in bands:
            start, end = self.x(max(band.start, self.low)), self.x(min(band.end, self.high))
            width = max(1.0, end - start)
            box = tag(
                "rect",
                tag("title", band.label),
                x=start,
                y=self.y.last,
                width=width,
                height=self.y.first - self.y.last,
                class_=f"band {band.kind}",
            )
            self.parts.insert(0, box)
            if width > 7.2 * len(band.label):
                self.words(start + 5, self.y.last + 13, band.label, class_="bandlabel")

    def marks(self, marks: Iterable[Mark]) -> None:
        """Above the frame, each over its moment, with a thin line down. Where several would overlap, the first."""
        signed: list[float] = []
        # Of signs that would overlap the weightiest is drawn.
        for mark in sorted(marks, key=lambda one: (list(SIGNS).index(one.kind), one.at)):
            x = self.x(min(max(mark.at, self.low), self.high))
            drop = f"M{number(x)} {number(self.y.last)}V{number(self.y.first)}"
            self.parts.append(tag("path", class_=f"drop {mark.kind}", d=drop))
            if all(abs(x - other) >= 9 for other in signed):
                title, y = tag("title", mark.label), self.y.last - 5
                words = tag("text", SIGNS[mark.kind], title, x=x, y=y, text_anchor="middle", class_=f"sign {mark.kind}")
                self.parts.append(words)
                signed.append(x)

    def line(self, line: Line) -> None:
        self.parts.append(tag("path", tag("title", line.name), d=self._path(line), class_=f"line s{line.style}"))
        alone = [point for point in _pieces(line) if len(point) == 1]
        for ((x, y),) in alone:
            self.dot(x, y, line.style, line.name)

    def dot(self, x: float, y: float, style: int, label: str) -> None:
        self.parts.append(tag("circle", tag("title", label), cx=self.x(x), cy=self.y(y), r=2.6, class_=f"dot s{style}"))

    def _path(self, line: Line) -> str:
        return "".join(
            "M" + "L".join(f"{number(self.x(x))} {number(self.y(y))}" for x, y in piece)
            for piece in _pieces(line)
            if len(piece) > 1
        )

    def level(self, value: float, label: str, style: int) -> None:
        """A horizontal line with its name at the right end."""
        y = self.y(value)
        self.parts.append(
            tag("path", class_=f"line s{style}", d=f"M{number(self.left)} {number(y)}H{number(self.x.last)}")
        )
        self.words(self.x.last - 2, y - 4, label, "end")

    def hover(self, lines: Sequence[Line], scale: float = 1.0) -> str:
        """What the page's script shows under the pointer: for each x the value of each line."""
        xs = sorted({x for line in lines for x, _ in line.points})
        values = [dict(line.points) for line in lines]
        rows = [[round(x), *(_short(value.get(x), scale) for value in values)] for x in xs]
        frame = [round(v, 1) for v in (self.x.first, self.x.last, self.low, self.high, self.y.last, self.y.first)]
        data = {"f": frame, "n": [line.name for line in lines], "u": self.unit, "r": rows}
        return json.dumps(data, separators=(",", ":"))

    def svg(self, label: str, data: str | None = None) -> Markup:
        """The chart; `label` says in words what it shows."""
        return tag(
            "svg",
            *self.parts,
            viewBox=f"0 0 {number(self.width)} {number(self.height)}",
            role="img",
            aria_label=label,
            data_hover=data,
        )


def _short(value: float | None, scale: float) -> float | None:
    return None if value is None else float(f"{value * scale:.4g}")


def _pieces(line: Line) -> list[list[tuple[float, float]]]:
    """The line between its gaps."""
    pieces: list[list[tuple[float, float]]] = []
    last: float | None = None
    for x, y in line.points:
        if y is None:
            last = None
            continue
        if last is None or (line.broken is not None and x - last > line.broken):
            pieces.append([])
        pieces[-1].append((x, y))
        last = x
    return pieces


def legend(items: Iterable[tuple[str, str]]) -> Markup:
    """What the signs and hatchings mean: (class of the swatch, word) each."""
    drawn = [
        tag(
            "span",
            tag("svg", tag("rect", width=14, height=10, class_=kind), viewBox="0 0 14 10", class_="swatch"),
            word,
        )
        for kind, word in items
    ]
    return tag("p", *drawn, class_="legend")


def line_legend(lines: Sequence[Line]) -> Markup:
    drawn = [
        tag(
            "span",
            tag(
                "svg", tag("path", d="M0 5h22", class_=f"line s{line.style}"), viewBox="0 0 22 10", class_="swatch wide"
            ),
            line.name,
        )
        for line in lines
    ]
    return tag("p", *drawn, class_="legend")


def sign_legend(marks: Iterable[tuple[str, str]]) -> Markup:
    """(kind of the mark, word) each."""
    return tag(
        "p",
        *(tag("span", tag("b", SIGNS[kind], class_=f"sign {kind}"), " ", word) for kind, word in marks),
        class_="legend",
    )


def histogram(
    values: Sequence[tuple[float, float]], unit: str, height: float = 180.0
) -> tuple[Axes, list[tuple[float, float, float]]]:
    """Bars of (value, weight): axes whose y is the share of the weight, and the bars as (from, to, share)."""
    low, high = min(value for value, _ in values), max(value for value, _ in values)
    # Values that hardly differ are one bar, not a spread of rounding errors.
    step = nice_step(high - low if high - low > 0.02 * high else high / 5 or 1.0, 24)
    first = int(low / step)
    shares: dict[int, float] = {}
    total = sum(weight for _, weight in values)
    for value, weight in values:
        place = max(first, int(value / step))
        shares[place] = shares.get(place, 0.0) + weight / total
    last = max(shares)
    wanted = nice_step((last + 1 - first) * step, 6)
    labels = [i * wanted for i in range(int(first * step / wanted), int((last + 1) * step / wanted) + 2)]
    low, high = first * step, (last + 1) * step
    words = tuple((at, figure(at)) for at in labels if low - 1e-9 <= at <= high + 1e-9)
    axes = Axes(low, high, max(shares.values()) * 100, "% of steps", height, x_words=words, x_unit=unit)
    bars = [(place * step, (place + 1) * step, share) for place, share in sorted(shares.items())]
    for start, end, share in bars:
        x0, x1, y = axes.x(start), axes.x(end), axes.y(share * 100)
        title = tag("title", f"{figure(start)} to {figure(end)} {unit}: {share:.1%} of steps")
        axes.parts.append(
            tag(
                "rect",
                title,
                x=x0 + 0.5,
                y=y,
                width=max(1.0, x1 - x0 - 1),
                height=max(0.5, axes.y.first - y),
                class_="bar",
            )
        )
    return axes, bars


def joined(parts: Iterable[Markup]) -> Markup:
    return join(*parts)
