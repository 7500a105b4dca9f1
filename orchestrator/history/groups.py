"""Sums over groups of runs: `orch runs --by team,week`.

The groups are made of the very runs that the same filters would list, so their figures add up to those of the rows. A run
counts in the day, week or month (UTC) of its submission. Where the filters and groups are such that the sums over periods
(summary_models.py) know them, whole months (or weeks, for groups by week) are taken from there, then whole days up to where
a filter cuts, and only what is left is counted run by run: parts of days, and runs that have not ended. Runs that
retention has deleted are still in those sums.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date, datetime
from typing import Any, TypeAlias

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Connection,
    Date,
    Double,
    FromClause,
    Select,
    Text,
    and_,
    case,
    cast,
    func,
    or_,
    select,
    true,
)

from orchestrator.history.filters import RunFilter, choose, matches, models_like, several
from orchestrator.history.ledger_days import DAY, after, day_of, midnight, periods_of
from orchestrator.history.models import RunRow
from orchestrator.history.summaries import TIMES
from orchestrator.history.summary_models import NameSumRow, RunSummaryRow, RunSumRow

DIMENSIONS = ("user", "team", "name", "state", "gpu", "day", "week", "month")
"""What runs can be grouped by."""

_CALENDAR = ("day", "week", "month")
_ENDS = ("succeeded", "failed", "cancelled")
_WHOLE = ("runs", *_ENDS, "attempts", "waited", "wait_ms", "measured", "samples", *TIMES)
_REAL = ("samples_per_s", "cost")
FIGURES = (
    "runs", *_ENDS, "success_rate", "attempts", "wait_s", "allocated_s", "starting_s", "productive_s", "checkpoint_s",
    "lost_s", "idle_s", "goodput", "samples_per_s", "samples", "cost",
)  # fmt: skip
"""What is said of each group."""

Sums: TypeAlias = type[RunSumRow] | type[NameSumRow]


@dataclass(frozen=True)
class _Source:
    """A table (or join) of runs: where its keys and figures are."""

    keys: Mapping[str, ColumnElement[Any]]
    figures: Mapping[str, ColumnElement[Any]]
    rows: FromClause


def check_groups(by: Sequence[str]) -> tuple[str, ...]:
    """The dimensions, each once. Raises ValueError for one that there is not."""
    for name in by:
        if name not in DIMENSIONS:
            raise ValueError(f"by: {name!r} is not one of {', '.join(DIMENSIONS)}")
    return tuple(dict.fromkeys(by))


def groups(
    connection: Connection, wanted: RunFilter, by: Sequence[str], sort: str | None = None
) -> list[dict[str, Any]]:
    """One row for each group: its keys, then FIGURES. Sorted by the keys, or by a figure (`-allocated_s`: largest first).

    Raises ValueError for a group or an order that there is not.
    """
    by = check_groups(by)
    order = (sort or "").removeprefix("-")
    if order and order not in (*by, *FIGURES):
        raise ValueError(f"sort: {sort!r} is not one of {', '.join((*by, *FIGURES))} (with - for the largest first)")
    found: dict[tuple[Any, ...], dict[str, Any]] = {}
    for question in _questions(connection, wanted, by):
        for row in connection.execute(question).mappings():
            key = tuple(row[f"key_{name}"] or None for name in by)
            sums = found.setdefault(key, dict.fromkeys((*_WHOLE, *_REAL), 0))
            for name in (*_WHOLE, *_REAL):
                sums[name] += row[name] or 0
    rows = [dict(zip(by, map(_key, key), strict=True)) | _figures(sums) for key, sums in found.items() if sums["runs"]]
    rows.sort(key=lambda row: [(row[name] is None, row[name]) for name in by])
    if order:
        rows.sort(
            key=lambda row: (
                (row[order] is not None, row[order] or 0) if sort != order else (row[order] is None, row[order] or 0)
            ),
            reverse=sort != order,
        )
    return rows if wanted.limit is None else rows[: wanted.limit]


def _key(value: Any) -> Any:
    return value.isoformat() if isinstance(value, date) else value


def _figures(sums: Mapping[str, Any]) -> dict[str, Any]:
    ended = sums["succeeded"] + sums["failed"]
    seconds = {f"{name.removesuffix('_ms')}_s": sums[name] / 1000 for name in TIMES}
    figures = {
        **{name: sums[name] for name in ("runs", *_ENDS, "attempts")},
        # Who cancels a run says nothing of whether it works.
        "success_rate": sums["succeeded"] / ended if ended else None,
        "wait_s": sums["wait_ms"] / 1000 / sums["waited"] if sums["waited"] else None,
        **seconds,
        "goodput": sums["productive_ms"] / sums["allocated_ms"] if sums["allocated_ms"] else None,
        "samples_per_s": sums["samples_per_s"] / sums["measured"] if sums["measured"] else None,
        "samples": sums["samples"] if sums["measured"] else None,
        "cost": sums["cost"] or None,
    }
    return {name: figures[name] for name in FIGURES}


def _questions(connection: Connection, wanted: RunFilter, by: Sequence[str]) -> list[Select[Any]]:
    sums = _sums_that_know(wanted, by)
    dialect = connection.dialect.name
    first = _first_whole_day(wanted.since)
    end = None if wanted.until is None else day_of(wanted.until)
    if sums is None or (first is not None and end is not None and first >= end):
        return [_ask(_runs(dialect), by, dialect, and_(true(), *choose(connection, wanted).clauses))]
    source, known = _periods(sums), _known_to(connection, sums, wanted)
    found = [
        _ask(source, by, dialect, and_(*known, span), period) for period, span in _spans(sums, _longest(by), first, end)
    ]
    cut = []
    if wanted.since is not None and first is not None and wanted.since < midnight(first):
        cut.append(replace(wanted, until=midnight(first)))
    if wanted.until is not None and end is not None and wanted.until > midnight(end):
        cut.append(replace(wanted, since=midnight(end)))
    ended = RunSummaryRow.state.is_not(None)
    for edge in cut:
        found.append(_ask(_runs(dialect), by, dialect, and_(ended, *choose(connection, edge).clauses)))
    lives = choose(connection, replace(wanted, live_only=True))
    found.append(_ask(_runs(dialect), by, dialect, and_(true(), *lives.clauses)))
    return found


def _longest(by: Sequence[str]) -> str:
    """The longest period of which no group cuts one."""
    calendar = [name for name in _CALENDAR if name in by]
    return calendar[0] if len(calendar) == 1 else "day" if calendar else "month"


def _spans(sums: Sums, period: str, first: date | None, end: date | None) -> list[tuple[str, ColumnElement[bool]]]:
    """The periods from the day `first` up to, without, the day `end`, and single days before and after them."""
    there = sums.__table__.c

    def within(kind: str, start: date | None, stop: date | None) -> tuple[str, ColumnElement[bool]]:
        bounds = [] if start is None else [there.start >= start]
        return kind, and_(there.period == kind, *bounds, *([] if stop is None else [there.start < stop]))

    whole = first
    if first is not None and periods_of(first)[period] < first:
        whole = after(period, periods_of(first)[period])
    last = None if end is None else periods_of(end)[period]
    if whole is not None and last is not None and whole >= last:
        return [within("day", first, end)]
    spans = [within(period, whole, last)]
    if whole != first:
        spans.append(within("day", first, whole))
    if last != end:
        spans.append(within("day", last, end))
    return spans


def _sums_that_know(wanted: RunFilter, by: Sequence[str]) -> Sums | None:
    """The sums over periods that have every column which is asked for; None where no such sums are kept."""
    beyond = (wanted.tags, wanted.node, wanted.code, wanted.outcome, wanted.failure, wanted.live_only)
    if any(beyond) or wanted.ids is not None or wanted.min_throughput is not None or wanted.max_throughput is not None:
        return None
    needs = {name for name in by if name not in _CALENDAR}
    needs |= {name for name in ("user", "team", "name", "state", "gpu") if getattr(wanted, name)}
    if needs <= {"user", "team", "state", "gpu"}:
        return RunSumRow
    return NameSumRow if needs <= {"name", "state"} else None


def _first_whole_day(since: datetime | None) -> date | None:
    if since is None:
        return None
    day = day_of(since)
    return day if midnight(day) == since else day + DAY


def _periods(sums: Sums) -> _Source:
    there = sums.__table__
    keys = {"user" if c.name == "username" else c.name: c for c in there.primary_key} | {"day": there.c.start}
    figures: dict[str, ColumnElement[Any]] = {name: there.c[name] for name in (*_WHOLE, *_REAL) if name not in _ENDS}
    figures |= {state: case((there.c.state == state, there.c.runs), else_=0) for state in _ENDS}
    return _Source(keys, figures, there)


def _runs(dialect: str) -> _Source:
    one, run = RunSummaryRow.__table__.c, RunRow.__table__.c
    day = func.date(run.submitted_at) if dialect == "sqlite" else cast(func.timezone("UTC", run.submitted_at), Date)
    keys = {"user": run.username, "team": run.team, "name": run.name, "state": run.state, "gpu": one.gpu, "day": day}
    figures: dict[str, ColumnElement[Any]] = {
        "runs": case((run.id.is_not(None), 1), else_=0),
        **{state: case((run.state == state, 1), else_=0) for state in _ENDS},
        "waited": case((one.wait_ms.is_not(None), 1), else_=0),
        "measured": case((one.samples_per_s.is_not(None), 1), else_=0),
        **{name: one[name] for name in ("attempts", "wait_ms", "samples", *TIMES, *_REAL)},
    }
    return _Source(keys, figures, RunRow.__table__.outerjoin(RunSummaryRow.__table__, one.run_id == run.id))


def _ask(
    source: _Source, by: Sequence[str], dialect: str, where: ColumnElement[bool], period: str | None = None
) -> Select[Any]:
    """`period` is what the source's days begin, where that is known."""

    def key(name: str) -> ColumnElement[Any]:
        if name not in _CALENDAR:
            return source.keys[name]
        day = source.keys["day"]
        # Not as text already: that would be made for each row.
        return day if name == period != "month" else _calendar(name, day, dialect)

    keys = [key(name) for name in by]
    asked = [
        (cast(one, Text) if name in _CALENDAR else one).label(f"key_{name}") for name, one in zip(by, keys, strict=True)
    ]
    sums = [cast(func.sum(source.figures[name]), BigInteger).label(name) for name in _WHOLE]
    sums += [cast(func.sum(source.figures[name]), Double).label(name) for name in _REAL]
    return select(*asked, *sums).select_from(source.rows).where(where).group_by(*keys)


def _calendar(name: str, day: ColumnElement[Any], dialect: str) -> ColumnElement[Any]:
    """The day, the Monday of its week, or its month, as text."""
    if dialect == "sqlite":
        return {
            "day": func.date(day),
            # The next Sunday (the day itself is one on Sundays), and from there back to Monday.
            "week": func.date(day, "weekday 0", "-6 days"),
            "month": func.strftime("%Y-%m", day),
        }[name]
    return {
        "day": cast(day, Text),
        "week": cast(cast(func.date_trunc("week", cast(day, Date)), Date), Text),
        "month": func.to_char(day, "YYYY-MM"),
    }[name]


def _known_to(connection: Connection, sums: Sums, wanted: RunFilter) -> list[ColumnElement[bool]]:
    there = sums.__table__.c
    asked: list[ColumnElement[bool]] = [true()]
    for name, given in (("username", wanted.user), ("team", wanted.team), ("state", wanted.state)):
        if words := several(given):
            asked.append(there[name].in_(words))
    if names := several(wanted.name):
        asked.append(or_(*(matches(connection, lambda column: column, there["name"], name) for name in names)))
    if words := several(wanted.gpu):
        asked.append(there["gpu"].in_(models_like(connection, words)))
    return asked
