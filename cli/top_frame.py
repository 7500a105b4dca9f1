"""What `orch top` shows, as lines of at most so many characters: made of the controller's answer and of what was typed. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Literal

from cli import output as out
from cli.measured import number, short
from cli.times import moment, span

Data = dict[str, Any]
Style = Literal["", "bold", "dim", "chosen", "green", "yellow", "red", "blue", "cyan"]


@dataclass(frozen=True)
class Line:
    text: str
    style: Style = ""
    """Says nothing that the text does not."""


@dataclass(frozen=True)
class Typed:
    """What the user has chosen so far."""

    cursor: int = 0
    """The chosen row, counted over runs and the queue."""
    sort: int = 0
    """Which of SORTS."""
    filter: str = ""
    typing: bool = False
    """Whether keys go into the filter."""
    details: int | None = None
    """The id of the run that is shown by itself."""
    scroll: int = 0
    """The first line of it that is shown."""


@dataclass(frozen=True)
class Shown:
    """One moment: what was answered last, and what is wrong now."""

    data: Data | None
    now: datetime
    lost: str = ""
    """Why the controller does not answer; "" where it does."""
    detail: Sequence[str] = ()
    """The lines of the run that is shown by itself."""


def _rate(run: Data) -> float | None:
    value = (run.get("live") or {}).get("samples_per_s")
    return value if value is not None else (run.get("throughput") or {}).get("samples_per_s")


def _step(run: Data) -> float | None:
    value = (run.get("live") or {}).get("step_time")
    return value if value is not None else (run.get("throughput") or {}).get("step_time")


def _busy(run: Data) -> float | None:
    return (run.get("live") or {}).get("utilization")


SORTS: tuple[tuple[str, Callable[[Data], Any]], ...] = (
    ("newest first", lambda run: -run["id"]),
    ("fastest first", lambda run: -(_rate(run) or 0.0)),
    ("least used GPUs first", lambda run: 1e9 if _busy(run) is None else _busy(run)),
    ("longest first", lambda run: run.get("started_at") or "9"),
    ("by name", lambda run: run["name"]),
)


def chosen_rows(data: Data | None, typed: Typed) -> tuple[list[Data], list[Data]]:
    """The runs and the queue that pass the filter, in order: what the cursor counts over."""
    if data is None:
        return [], []
    runs = sorted((run for run in data["runs"] if _passes(run, typed.filter)), key=SORTS[typed.sort][1])
    return runs, [run for run in data["waiting"] if _passes(run, typed.filter)]


def _passes(run: Data, wanted: str) -> bool:
    words = (run["id"], run["name"], run["user"], run.get("team"), run["state"], _where(run))
    return wanted.lower() in " ".join(str(word) for word in words if word).lower()


def key(typed: Typed, pressed: str, rows: int, page: int) -> Typed:
    """What was typed after one more key; `rows` are there to choose from, `page` fit on the screen. q is the caller's."""
    if typed.typing:
        return _into_filter(typed, pressed)
    if typed.details is not None:
        moves = {"up": -1, "down": 1, "pageup": -page, "pagedown": page, "home": -typed.scroll, "k": -1, "j": 1}
        return replace(typed, scroll=max(0, typed.scroll + moves.get(pressed, 0)))
    moves = {"up": -1, "down": 1, "k": -1, "j": 1, "pageup": -page, "pagedown": page, "home": -rows, "end": rows}
    if pressed in moves:
        return replace(typed, cursor=max(0, min(rows - 1, typed.cursor + moves[pressed])))
    if pressed == "s":
        return replace(typed, sort=(typed.sort + 1) % len(SORTS))
    if pressed == "/":
        return replace(typed, typing=True)
    if pressed == "escape":
        return replace(typed, filter="", cursor=0)
    return typed


def _into_filter(typed: Typed, pressed: str) -> Typed:
    if pressed in ("enter", "escape"):
        return replace(typed, typing=False, filter=typed.filter if pressed == "enter" else "", cursor=0)
    if pressed == "backspace":
        return replace(typed, filter=typed.filter[:-1], cursor=0)
    return (
        replace(typed, filter=typed.filter + pressed, cursor=0)
        if len(pressed) == 1 and pressed.isprintable()
        else typed
    )


def frame(shown: Shown, typed: Typed, columns: int, rows: int | None) -> list[Line]:
    """The whole screen; with `rows` None everything there is, without keys: for a pipe."""
    if shown.data is None:
        return _cut(
            [Line("orch top", "bold"), Line(shown.lost or "asking the controller ...", "yellow")], columns, rows
        )
    lines = [*_head(shown, columns)]
    if typed.details is not None:
        body = [Line(text) for text in shown.detail] or [Line("asking ...", "dim")]
        room = len(body) if rows is None else max(1, rows - len(lines) - 1)
        first = max(0, min(typed.scroll, len(body) - room))
        lines += body[first : first + room]
    else:
        lines += _tables(shown, typed, columns, None if rows is None else rows - len(lines) - 1)
    if rows is not None:
        lines = lines[: rows - 1] + [Line("")] * (rows - 1 - len(lines)) + [_foot(typed)]
    return _cut(lines, columns, rows)


def _cut(lines: Iterable[Line], columns: int, rows: int | None) -> list[Line]:
    clean = (replace(line, text=out.clean(line.text)) for line in lines)
    short_lines = [
        replace(line, text=line.text if len(line.text) <= columns else line.text[: columns - 1] + "…") for line in clean
    ]
    return short_lines if rows is None else short_lines[:rows]


def _head(shown: Shown, columns: int) -> list[Line]:
    assert shown.data is not None
    nodes = shown.data["nodes"]
    up = [node for node in nodes if node["state"] == "up"]
    kinds = [
        ("GPUs", [n for n in nodes if n["device"] == "cuda"]),
        ("CPU slots", [n for n in nodes if n["device"] == "cpu"]),
    ]
    down = f", {len(nodes) - len(up)} down" if len(up) < len(nodes) else ""
    lines = [
        Line(
            f"orch top  {shown.now.astimezone():%H:%M:%S}  {len(up)} node{'s' if len(up) != 1 else ''} up{down}", "bold"
        )
    ]
    if shown.lost:
        at = moment(shown.data["at"])
        old = f"what is shown is {span((shown.now - at).total_seconds())} old: " if at else ""
        lines.append(Line(f"! {old}{shown.lost}", "red"))
    for what, group in kinds:
        if group:
            lines.append(_bar(what, group, columns))
    return lines


def _bar(what: str, nodes: Sequence[Data], columns: int) -> Line:
    busy, unfit = sum(node["busy"] for node in nodes), sum(node["unfit"] for node in nodes)
    free = sum(max(0, node["total"] - node["busy"] - node["unfit"]) for node in nodes if node["state"] == "up")
    gone = sum(node["total"] - node["busy"] for node in nodes if node["state"] != "up")
    total = sum(node["total"] for node in nodes) or 1
    words = (
        f" {busy} busy, {free} free"
        + (f", {unfit} unfit" if unfit else "")
        + (f", {gone} on nodes that are down" if gone else "")
    )
    width = max(8, min(60, columns - len(words) - len(what) - 4))
    cells = round(busy / total * width)
    bad = min(width - cells, -(-(unfit + gone) * width // total))
    return Line(f"{what} [{'#' * cells}{'.' * (width - cells - bad)}{'x' * bad}]{words}")


def _tables(shown: Shown, typed: Typed, columns: int, room: int | None) -> list[Line]:
    assert shown.data is not None
    runs, queue = chosen_rows(shown.data, typed)
    nodes = sorted(shown.data["nodes"], key=lambda node: (node["state"] == "up", not node.get("note"), node["node"]))
    counts = _shares((len(runs), len(queue), len(nodes)), room)
    cursor = typed.cursor if room is not None else -1
    more = (
        f" of {shown.data['counts']['waiting']}"
        if shown.data["counts"]["waiting"] > len(queue) and not typed.filter
        else ""
    )
    lines = _table(f"RUNS {len(runs)}", _RUNS, runs, shown.now, columns, counts[0], cursor, "nothing runs")
    lines += _table(
        f"QUEUE {len(queue)}{more}", _QUEUE, queue, shown.now, columns, counts[1], cursor - len(runs), "nothing waits"
    )
    return lines + _table(f"NODES {len(nodes)}", _NODES, nodes, shown.now, columns, counts[2], -1, "no node has joined")


def _shares(wanted: Sequence[int], room: int | None) -> list[int]:
    """How many rows of each table fit: every table its title and one row, then in turn until all is given away."""
    if room is None:
        return list(wanted)
    given = [1] * len(wanted)
    left = room - sum(3 if most else 2 for most in wanted)
    while left > 0 and any(g < w for g, w in zip(given, wanted, strict=True)):
        for i, most in enumerate(wanted):
            # Runs first: two for each of the others'.
            take = min(left, 2 if i == 0 else 1, max(0, most - given[i]))
            given[i], left = given[i] + take, left - take
    return given


def _where(run: Data) -> str:
    attempts = run.get("attempts") or []
    placement = attempts[-1].get("placement") if attempts and run["state"] != "queued" else None
    return ",".join(f"{part['node']}:{len(part['gpus'])}" for part in (placement or {}).get("nodes", []))


def _for(run: Data, now: datetime) -> str:
    """How long it runs, and of how long."""
    start, limit = moment(run.get("started_at")), run.get("time_limit")
    took = "" if start is None else span((now - start).total_seconds())
    return f"{took}/{span(limit)}" if limit else took


def _waited(run: Data, now: datetime) -> str:
    since = moment(run["submitted_at"])
    return "" if since is None else span((now - since).total_seconds())


def _percent(value: float | None) -> str:
    return "" if value is None else f"{value:.0f}%"


Cell = Callable[[Data, datetime], str]
_RUNS: tuple[tuple[str, Cell, bool], ...] = (
    ("ID", lambda run, now: str(run["id"]), True),
    ("NAME", lambda run, now: _named(run), False),
    ("USER", lambda run, now: run["user"], False),
    ("STATE", lambda run, now: out.word(run["state"]), False),
    ("SAMPLES/S", lambda run, now: number(_rate(run)), True),
    ("STEP", lambda run, now: short(_step(run)), True),
    ("GPU", lambda run, now: _percent(_busy(run)), True),
    ("FOR", _for, True),
    ("WHERE", lambda run, now: _where(run), False),
    ("NOTE", lambda run, now: run.get("note") or "", False),
)
_QUEUE: tuple[tuple[str, Cell, bool], ...] = (
    ("#", lambda run, now: str(run.get("position") or ""), True),
    ("ID", lambda run, now: str(run["id"]), True),
    ("NAME", lambda run, now: _named(run), False),
    ("USER", lambda run, now: run["user"], False),
    ("WAITS", _waited, True),
    ("START", lambda run, now: _start(run, now), True),
    ("WHY", lambda run, now: run.get("reason") or "", False),
)
_NODES: tuple[tuple[str, Cell, bool], ...] = (
    ("NODE", lambda node, now: node["node"], False),
    ("STATE", lambda node, now: out.word(node["state"]), False),
    ("BUSY", lambda node, now: f"{node['busy']}/{node['total']}", True),
    ("GPU", lambda node, now: _percent(node.get("utilization")), True),
    ("MEM", lambda node, now: "" if node.get("memory_gib") is None else f"{node['memory_gib']:.0f}GiB", True),
    ("POWER", lambda node, now: "" if node.get("power_w") is None else f"{node['power_w']:.0f}W", True),
    ("RUNS", lambda node, now: ",".join(map(str, node["runs"])), False),
    ("NOTE", lambda node, now: node.get("note") or "", False),
)


def _start(run: Data, now: datetime) -> str:
    at = moment(run.get("expected_start"))
    return "" if at is None else f"~{span((at - now).total_seconds())}" if at > now else "soon"


def _named(run: Data) -> str:
    array = run.get("array") or {}
    return f"{run['name']}[{array['index']}]" if "index" in array else str(run["name"])


def _style(row: Data) -> Style:
    if row["state"] == "down":
        return "red"
    return "yellow" if row["state"] == "stopping" or row.get("note") else ""


def _table(
    title: str,
    spec: Sequence[tuple[str, Cell, bool]],
    rows: Sequence[Data],
    now: datetime,
    columns: int,
    room: int,
    cursor: int,
    empty: str,
) -> list[Line]:
    if not rows:
        return [Line(title, "bold"), Line(f"  {empty}", "dim")]
    first = max(0, min(cursor - room // 2, len(rows) - room)) if 0 <= cursor < len(rows) else 0
    window = rows[first : first + room]
    cells = [[out.clean(cell(row, now)) for _, cell, _ in spec] for row in window]
    used = [i for i in range(len(spec)) if any(line[i] for line in cells)]
    widths = _widths([max(len(spec[i][0]), *(len(line[i]) for line in cells)) for i in used], columns - len("  "))
    hidden = f", {first + 1} to {first + len(window)} shown" if len(window) < len(rows) else ""
    head = "  ".join(_pad(spec[i][0], width, spec[i][2]) for i, width in zip(used, widths, strict=True))
    lines = [Line(f"{title}{hidden}", "bold"), Line(f"  {head}".rstrip(), "dim")]
    for index, (row, line) in enumerate(zip(window, cells, strict=True), first):
        text = "  ".join(_pad(line[i], width, spec[i][2]) for i, width in zip(used, widths, strict=True))
        chosen = index == cursor
        lines.append(Line(f"{'>' if chosen else ' '} {text}".rstrip(), "chosen" if chosen else _style(row)))
    return lines


def _widths(wanted: Sequence[int], room: int) -> list[int]:
    """The widest give way until all fit."""
    widths = list(wanted)
    while sum(widths) + 2 * (len(widths) - 1) > room and max(widths) > 6:
        widths[max(range(len(widths)), key=lambda i: (widths[i], i))] -= 1
    return widths


def _pad(text: str, width: int, right: bool) -> str:
    text = text if len(text) <= width else text[: width - 1] + "…"
    return text.rjust(width) if right else text.ljust(width)


def _foot(typed: Typed) -> Line:
    if typed.typing:
        return Line(f"/{typed.filter}_   enter: keep, escape: all")
    if typed.details is not None:
        return Line("q, escape: back   up, down: scroll", "dim")
    kept = f"   only /{typed.filter}, escape: all" if typed.filter else ""
    return Line(f"q: quit  up, down  enter: details  s: sort ({SORTS[typed.sort][0]})  /: filter{kept}", "dim")
