"""A study as a picture: one SVG that needs nothing else, and a page around it with the numbers."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape

from orchestrator.scheduling.simulate.measures import waited
from orchestrator.scheduling.simulate.replay import Replayed
from orchestrator.scheduling.simulate.study import Row

# Okabe and Ito's colours, told apart also by those who see few.
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c6d31", "#555555")
DASHES = ("", "6 3", "2 3", "9 3 2 3")

_WIDTH, _HEIGHT, _GAP, _LEFT, _TOP, _BOTTOM = 520, 270, 36, 58, 34, 40
_BINS = 160
_TIMES = (
    (1, "≤1s"),
    (10, "10s"),
    (60, "1m"),
    (600, "10m"),
    (3600, "1h"),
    (36000, "10h"),
    (86400, "1d"),
    (864000, "10d"),
)

_STYLE = """
.orch{font:12px system-ui,sans-serif;--ink:#1a1a1a;--soft:#5c5c5c;--grid:#e3e3e3;--paper:#fff;background:var(--paper)}
@media (prefers-color-scheme:dark){.orch{--ink:#ececec;--soft:#a8a8a8;--grid:#3a3a3a;--paper:#161616}}
.orch text{fill:var(--soft)}.orch .title{fill:var(--ink);font-weight:600;font-size:13px}.orch .name{fill:var(--ink)}
.orch .grid{stroke:var(--grid);stroke-width:1}.orch .line{fill:none;stroke-width:1.8;stroke-linejoin:round}
"""
_PAGE = """
body{margin:2rem auto;max-width:1280px;padding:0 1rem;font:15px/1.45 system-ui,sans-serif;color:#1a1a1a;background:#fff}
h1{font-size:1.35rem;margin:0 0 .2rem}p{color:#5c5c5c;margin:.2rem 0 1rem}
table{border-collapse:collapse;font-variant-numeric:tabular-nums;margin:0 0 1.5rem;width:100%}
td,th{padding:.3rem .5rem;text-align:right;border-bottom:1px solid #e3e3e3;font-size:.84rem}
td{white-space:nowrap}th{font-weight:600;vertical-align:bottom}td:first-child,th:first-child{text-align:left}svg{max-width:100%;height:auto}
.wide{overflow-x:auto}
@media (prefers-color-scheme:dark){body{color:#ececec;background:#161616}p{color:#a8a8a8}td,th{border-color:#3a3a3a}}
"""


@dataclass(frozen=True)
class _Line:
    name: str
    look: str
    points: Sequence[tuple[float, float]]
    step: bool = False


@dataclass(frozen=True)
class _Axis:
    low: float
    high: float
    ticks: Sequence[tuple[float, str]]
    log: bool = False

    def at(self, value: float) -> float:
        """The value as a share of the axis."""
        if self.log:
            low, high, value = math.log(self.low), math.log(self.high), math.log(max(value, self.low))
        else:
            low, high = self.low, self.high
        return min(1.0, max(0.0, (value - low) / (high - low))) if high > low else 0.0


def svg(rows: Sequence[Row]) -> str:
    """Completion times, waits, GPUs held and jobs waiting, a line for each policy."""
    names = {f"{row.measures.policy} {row.label}".strip(): _look(row, rows) for row in rows}
    replays = [row.replayed for row in rows]
    completions = [[(life.finished_s or 0.0) - life.job.submit_s for life in each.lives] for each in replays]
    waits = [[waited(life) for life in each.lives] for each in replays]
    end = max(each.makespan_s for each in replays) or 1.0
    held = [_binned(each, lambda total: [float(count) for count in total.integral.held], end) for each in replays]
    queued = [_binned(each, lambda total: [float(count) for count in total.integral.waiting], end) for each in replays]
    most = max(row.measures.gpus for row in rows)
    panels = [
        _panel("Jobs done within", _shares(names, completions), _time_axis(completions), _percent()),
        _panel("Jobs that waited no longer than", _shares(names, waits), _time_axis(waits), _percent()),
        _panel("GPUs in use", _series(names, held), _day_axis(end), _count_axis(most)),
        _panel("Jobs waiting", _series(names, queued), _day_axis(end), _count_axis(max(map(_top, queued), default=1))),
    ]
    legend, height = _legend(names)
    placed = "".join(
        f'<g transform="translate({(i % 2) * (_WIDTH + _GAP)},{height + (i // 2) * (_HEIGHT + _GAP)})">{panel}</g>'
        for i, panel in enumerate(panels)
    )
    whole = (2 * _WIDTH + _GAP, height + 2 * _HEIGHT + _GAP)
    return (
        f'<svg class="orch" xmlns="http://www.w3.org/2000/svg" width="{whole[0]}" height="{whole[1]}" '
        f'viewBox="0 0 {whole[0]} {whole[1]}" role="img"><title>orch simulate: {escape(", ".join(names))}</title>'
        f"<style>{_STYLE}</style>{legend}{placed}</svg>\n"
    )


def page(rows: Sequence[Row], title: str, said: str, titles: Sequence[str], cells: Sequence[Sequence[str]]) -> str:
    """The picture with a table: `cells` as a terminal would show them."""
    head = "".join(f"<th>{escape(text)}</th>" for text in titles)
    body = "".join("<tr>" + "".join(f"<td>{escape(text)}</td>" for text in line) + "</tr>" for line in cells)
    return (
        '<!doctype html>\n<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>{escape(title)}</title><style>{_PAGE}</style><h1>{escape(title)}</h1><p>{escape(said)}</p>"
        f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>{svg(rows)}</html>\n'
    )


def _legend(names: Mapping[str, str]) -> tuple[str, int]:
    x, y, parts = 0, 12, []
    for name, look in names.items():
        width = 44 + 7 * len(name)
        if x and x + width > 2 * _WIDTH:
            x, y = 0, y + 20
        parts.append(
            f'<path class="line" {look} d="M{x},{y}h26"/><text class="name" x="{x + 32}" y="{y + 4}">{escape(name)}</text>'
        )
        x += width
    return "".join(parts), y + 24


def _look(row: Row, rows: Sequence[Row]) -> str:
    """A colour for each policy, a dash for each cluster."""
    policies = list(dict.fromkeys(each.measures.policy for each in rows))
    clusters = list(dict.fromkeys(each.label for each in rows))
    dash = DASHES[clusters.index(row.label) % len(DASHES)]
    color = COLORS[policies.index(row.measures.policy) % len(COLORS)]
    return f'stroke="{color}"' + (f' stroke-dasharray="{dash}"' if dash else "")


def _panel(title: str, lines: Sequence[_Line], x: _Axis, y: _Axis) -> str:
    width, height = _WIDTH - _LEFT - 10, _HEIGHT - _TOP - _BOTTOM
    parts = [f'<text class="title" x="0" y="14">{escape(title)}</text>']
    for value, text in y.ticks:
        at = _TOP + height * (1 - y.at(value))
        parts.append(f'<path class="grid" d="M{_LEFT},{at:.1f}h{width}"/>')
        parts.append(f'<text x="{_LEFT - 8}" y="{at + 4:.1f}" text-anchor="end">{text}</text>')
    for value, text in x.ticks:
        at = _LEFT + width * x.at(value)
        parts.append(f'<path class="grid" d="M{at:.1f},{_TOP}v{height}"/>')
        parts.append(f'<text x="{at:.1f}" y="{_TOP + height + 18}" text-anchor="middle">{text}</text>')
    for line in lines:
        drawn: list[str] = []
        before = ""
        for a, b in line.points:
            px, py = f"{_LEFT + width * x.at(a):.1f}", f"{_TOP + height * (1 - y.at(b)):.1f}"
            drawn.append(f"M{px},{py}" if not drawn else f"H{px}V{py}" if line.step else f"L{px},{py}")
            before = py
        if drawn and before and line.step:
            drawn.append(f"H{_LEFT + width}")
        parts.append(f'<path class="line" {line.look} d="{"".join(drawn)}"><title>{escape(line.name)}</title></path>')
    return "".join(parts)


def _shares(names: Mapping[str, str], values: Sequence[Sequence[float]]) -> list[_Line]:
    """The share of jobs up to each time, at 200 of them."""
    lines = []
    for (name, look), times in zip(names.items(), values, strict=True):
        ordered = sorted(times)
        marks = sorted({round(i * (len(ordered) - 1) / 200) for i in range(201)}) if ordered else []
        # Starts on the axis: jobs that did not wait at all are its height there.
        lines.append(_Line(name, look, [(max(ordered[i], 1.0), (i + 1) / len(ordered)) for i in marks], step=True))
    return lines


def _series(names: Mapping[str, str], values: Sequence[Sequence[tuple[float, float]]]) -> list[_Line]:
    return [_Line(name, look, points) for (name, look), points in zip(names.items(), values, strict=True)]


def _binned(replayed: Replayed, of: Callable[[Replayed], Sequence[float]], end: float) -> list[tuple[float, float]]:
    """The mean of a series that holds from each time to the next, over equal stretches up to `end`."""
    times, values, size = replayed.integral.times, of(replayed), end / _BINS
    sums = [0.0] * _BINS
    for begin, until, value in zip(times, (*times[1:], replayed.makespan_s), values, strict=True):
        for which in range(min(_BINS - 1, int(begin / size)), min(_BINS - 1, int(until / size)) + 1):
            sums[which] += value * max(0.0, min(until, (which + 1) * size) - max(begin, which * size))
    return [((i + 0.5) * size, total / size) for i, total in enumerate(sums)]


def _top(points: Sequence[tuple[float, float]]) -> float:
    return max((value for _, value in points), default=1.0)


def _percent() -> _Axis:
    return _Axis(0, 1, [(share / 100, f"{share}%") for share in (0, 25, 50, 75, 100)])


def _time_axis(values: Sequence[Sequence[float]]) -> _Axis:
    high = max((max(times, default=1.0) for times in values), default=1.0)
    return _Axis(1.0, max(60.0, high), [(at, text) for at, text in _TIMES if at <= max(60.0, high)], log=True)


def _day_axis(end: float) -> _Axis:
    for unit, text in ((86400.0, "d"), (3600.0, "h"), (60.0, "m"), (1.0, "s")):
        if end >= 2 * unit:
            step = _nice(end / unit / 6)
            return _Axis(0, end, [(i * step * unit, f"{i * step:g}{text}") for i in range(int(end / unit / step) + 1)])
    return _Axis(0, end, [(0, "0s")])


def _count_axis(most: float) -> _Axis:
    step = _nice(max(1.0, most) / 4)
    return _Axis(
        0, max(1.0, most) * 1.04, [(i * step, f"{i * step:,g}") for i in range(int(max(1.0, most) / step) + 1)]
    )


def _nice(rough: float) -> float:
    """The next of 1, 2 or 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(rough))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
