"""Which runs, and in what order: the filters of `orch runs`, `orch export` and the groups, and the quick way to them.

A database that joins a rare filter with a common one may begin at the wrong end: SQLite knows nothing of how often a
value occurs, PostgreSQL nothing of how two filters go together. So each filter is first counted through its index, up to
FEW; the rarest that has no more than that gives the runs, and the others are checked on those alone. Where all are
common, the runs are gone through in the order that was asked for until enough are found.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, TypeAlias

from sqlalchemy import (
    ARRAY,
    BigInteger,
    ColumnElement,
    Connection,
    Select,
    Text,
    UnaryExpression,
    and_,
    any_,
    bindparam,
    exists,
    false,
    func,
    literal,
    or_,
    select,
)
from sqlalchemy.sql.operators import custom_op

from orchestrator.history.models import TERMINAL_STATES, RunRow, TagRow
from orchestrator.history.summary_models import AttemptNodeRow, RunSummaryRow
from orchestrator.scheduling.lifecycle import Outcome, State

FEW = 20_000
"""So many runs are looked at one by one."""

Sort: TypeAlias = ColumnElement[Any]
Words: TypeAlias = str | tuple[str, ...] | None
"""One value, or several of which one must hold; None asks for nothing."""

SORTS: dict[str, Sort] = {
    "id": RunRow.id.expression,
    "name": RunRow.name.expression,
    "user": RunRow.username.expression,
    "team": RunRow.team.expression,
    "state": RunRow.state.expression,
    "priority": RunRow.priority.expression,
    "submitted": RunRow.submitted_at.expression,
    "started": RunRow.started_at.expression,
    "finished": RunRow.finished_at.expression,
    "samples_per_s": RunSummaryRow.samples_per_s.expression,
    "step_time_s": RunSummaryRow.step_time_s.expression,
    "allocated_s": RunSummaryRow.allocated_ms.expression,
    "lost_s": RunSummaryRow.lost_ms.expression,
    "wait_s": RunSummaryRow.wait_ms.expression,
    "gpus": RunSummaryRow.gpus.expression,
    "nodes": RunSummaryRow.nodes.expression,
    "attempts": RunSummaryRow.attempts.expression,
}
"""What runs can be sorted by; nothing else reaches the database."""

_ALWAYS_THERE = ("id", "name", "user", "state", "priority", "submitted")
_SUMMARY = frozenset(RunSummaryRow.__table__.columns)


@dataclass(frozen=True)
class RunFilter:
    """Which runs, and in what order: the options of `orch runs`. What is None or empty does not filter."""

    name: Words = None
    """With * (any text) and ? (one character): a pattern."""
    user: Words = None
    team: Words = None
    state: State | str | tuple[str, ...] | None = None
    since: datetime | None = None
    """Submitted at this time or later."""
    until: datetime | None = None
    """Submitted before this time."""
    tags: Mapping[str, str] = field(default_factory=dict)
    """All of them must be there."""
    ids: range | None = None
    """Only these: the runs of an array."""
    node: Words = None
    """An attempt was on it."""
    gpu: Words = None
    """The GPU model of the last attempt, or a part of its name: `h100`."""
    code: str | None = None
    """The beginning of the code's SHA-256 or of its git commit."""
    outcome: Words = None
    """An attempt ended so."""
    failure: Words = None
    """An attempt failed in this way (Failure.kind)."""
    min_throughput: float | None = None
    """Samples per second."""
    max_throughput: float | None = None
    sort: str = "-submitted"
    """One of SORTS; with a minus, the largest first. Runs without the value come last either way."""
    limit: int | None = None
    live_only: bool = False
    """Only runs that have not ended: what `orch ps` shows."""

    def __post_init__(self) -> None:
        if self.sort.removeprefix("-") not in SORTS:
            raise ValueError(f"sort: {self.sort!r} is not one of {', '.join(SORTS)} (with - for the largest first)")
        if self.limit is not None and self.limit < 0:
            raise ValueError(f"limit: must be 0 or more, not {self.limit}")
        for what, given, known in (("state", self.state, State), ("outcome", self.outcome, Outcome)):
            for word in several(given):
                if word not in list(known):
                    raise ValueError(f"{what}: {word!r} is none of {', '.join(known)}")
        for what, bound in (("min_throughput", self.min_throughput), ("max_throughput", self.max_throughput)):
            if bound is not None and not bound >= 0:
                raise ValueError(f"{what}: must be 0 or more samples per second, not {bound}")


def several(given: Words) -> tuple[str, ...]:
    """The values that were asked for, each once."""
    return () if given is None else (str(given),) if isinstance(given, str) else tuple(dict.fromkeys(given))


Plain: TypeAlias = Callable[[Any], ColumnElement[Any]]


@dataclass(frozen=True)
class Predicate:
    """One filter, in two forms."""

    ids: Select[int]
    """The runs that it lets through, found through an index."""
    check: Callable[[Plain], ColumnElement[bool]]
    """Whether it lets a row of `runs` through. It is given what keeps a column's index from being used."""


@dataclass(frozen=True)
class Selection:
    """The runs that a filter describes, and how to come to them."""

    few: Sequence[int] | None
    """No others than these; None where even the rarest filter lets more than FEW through."""
    clauses: tuple[ColumnElement[bool], ...]


def choose(connection: Connection, wanted: RunFilter) -> Selection:
    """Counts each filter, a few milliseconds at most, and begins at the rarest."""
    sqlite = connection.dialect.name == "sqlite"
    predicates = list(_predicates(connection, wanted))
    counts = [_count(connection, one.ids) for one in predicates]
    few: list[int] | None = None
    if counts and min(counts) <= FEW:
        rarest = predicates.pop(counts.index(min(counts)))
        few = list(connection.execute(rarest.ids.distinct()).scalars())
    plain = _without_index if sqlite else _as_it_is
    clauses = [one.check(plain) for one in predicates]
    # Its index is also the usual order, so it stays of use.
    clauses += _within(wanted, plain if few is not None else _as_it_is)
    if few is not None:
        clauses.insert(0, among(connection, RunRow.id, few))
    return Selection(few, tuple(clauses))


def page(connection: Connection, wanted: RunFilter) -> list[int]:
    """The ids of the runs that `wanted` describes, in its order, no more than its limit."""
    selection = choose(connection, wanted)
    if selection.few is not None and not selection.few:
        return []
    name, down = wanted.sort.removeprefix("-"), wanted.sort.startswith("-")
    column = SORTS[name]
    summed = column in _SUMMARY
    # In this form SQLite can only begin with the summaries, whose index has the order.
    joined = _without_index(RunSummaryRow.run_id) if connection.dialect.name == "sqlite" else RunSummaryRow.run_id
    questions = []
    if name in _ALWAYS_THERE:
        questions.append(select(RunRow.id).where(*selection.clauses))
    else:
        there = select(RunRow.id).where(*selection.clauses, column.is_not(None))
        lacks = select(RunRow.id).where(*selection.clauses, column.is_(None))
        if summed:
            one_few = selection.few is not None
            there = there.join(RunSummaryRow, (RunSummaryRow.run_id if one_few else joined) == RunRow.id)
            lacks = lacks.outerjoin(RunSummaryRow, RunSummaryRow.run_id == RunRow.id)
        questions += [there, lacks]
    found: list[int] = []
    for question in questions:
        left = None if wanted.limit is None else wanted.limit - len(found)
        if left is not None and left <= 0:
            break
        order = (column.desc(), RunRow.id.desc()) if down else (column.asc(), RunRow.id.asc())
        found += connection.execute(question.order_by(*order).limit(left)).scalars()
    return found


def batches(connection: Connection, wanted: RunFilter, after: int, size: int) -> list[int]:
    """The next `size` ids, in their own order, of the runs that `wanted` describes and whose ids are above `after`."""
    clauses = choose(connection, wanted).clauses
    return list(
        connection.execute(
            select(RunRow.id).where(*clauses, RunRow.id > after).order_by(RunRow.id).limit(size)
        ).scalars()
    )


def among(connection: Connection, column: Any, ids: Sequence[int]) -> ColumnElement[bool]:
    """Whether the column is one of many ids: one parameter, however many they are."""
    return in_ids(connection.dialect.name, column, ids_of(connection.dialect.name, ids))


def in_ids(dialect: str, column: Any, ids: Any = None) -> ColumnElement[bool]:
    """The same with what ids_of made of them, or with a parameter `ids` that takes it."""
    if dialect == "sqlite":
        given = bindparam("ids", type_=Text) if ids is None else ids
        return column.in_(select(func.json_each(given).table_valued("value").c.value))  # type: ignore[no-any-return]
    kind = ARRAY(BigInteger)
    return column == any_(bindparam("ids", type_=kind) if ids is None else literal(ids, kind))  # type: ignore[no-any-return]


def ids_of(dialect: str, ids: Sequence[int]) -> Any:
    """Many ids as one parameter."""
    return json.dumps(list(ids)) if dialect == "sqlite" else list(ids)


def _count(connection: Connection, ids: Select[int]) -> int:
    upto = select(func.count()).select_from(ids.limit(FEW + 1).subquery())
    return connection.execute(upto).scalar_one()


def _as_it_is(column: Any) -> ColumnElement[Any]:
    return column  # type: ignore[no-any-return]


def _without_index(column: Any) -> ColumnElement[Any]:
    """`+column`: the same value, which SQLite looks up in no index."""
    return UnaryExpression(column.expression, operator=custom_op("+"), type_=column.type)


def _within(wanted: RunFilter, plain: Plain) -> list[ColumnElement[bool]]:
    found = []
    if wanted.since is not None:
        found.append(plain(RunRow.submitted_at) >= wanted.since)
    if wanted.until is not None:
        found.append(plain(RunRow.submitted_at) < wanted.until)
    return found


def _predicates(connection: Connection, wanted: RunFilter) -> Iterator[Predicate]:
    for column, given in ((RunRow.username, wanted.user), (RunRow.team, wanted.team), (RunRow.state, wanted.state)):
        if words := several(given):
            yield _on_run(lambda plain, column=column, words=words: plain(column).in_(words))  # type: ignore[misc]
    if wanted.live_only:
        lives = [state.value for state in State if state.value not in TERMINAL_STATES]
        yield _on_run(lambda plain: plain(RunRow.state).in_(lives))
    if (ids := wanted.ids) is not None:
        yield _on_run(lambda plain: and_(plain(RunRow.id) >= ids.start, plain(RunRow.id) < ids.stop))
    if names := several(wanted.name):
        yield _on_run(lambda plain: or_(*(matches(connection, plain, RunRow.name, name) for name in names)))
    if wanted.code:
        # What it begins with may be of either kind; SQLite and PostgreSQL both take an index for each side of an OR.
        begins = wanted.code.lower() + "*"
        yield _on_run(
            lambda plain: or_(
                matches(connection, plain, RunRow.code_sha256, begins),
                matches(connection, plain, RunRow.code_git, begins),
            )
        )
    if wanted.since is not None or wanted.until is not None:
        yield _on_run(lambda plain: and_(*_within(wanted, plain)))
    for key, value in wanted.tags.items():
        yield _related(TagRow, (TagRow.key, key), (TagRow.value, value))
    for column, given in (
        (AttemptNodeRow.node, wanted.node),
        (AttemptNodeRow.outcome, wanted.outcome),
        (AttemptNodeRow.failure_kind, wanted.failure),
    ):
        if words := several(given):
            yield _related(AttemptNodeRow, (column, words))
    if words := several(wanted.gpu):
        yield _related(RunSummaryRow, (RunSummaryRow.gpu, models_like(connection, words)))
    if wanted.min_throughput is not None or wanted.max_throughput is not None:
        yield _throughput(wanted.min_throughput, wanted.max_throughput)


def _on_run(check: Callable[[Plain], ColumnElement[bool]]) -> Predicate:
    return Predicate(select(RunRow.id).where(check(_as_it_is)), check)


def _related(table: Any, *asked: tuple[Any, str | Sequence[str]]) -> Predicate:
    """A filter on rows of another table that have the run's id."""

    def clauses(plain: Plain) -> list[ColumnElement[bool]]:
        return [
            plain(column) == value if isinstance(value, str) else plain(column).in_(value) if value else false()
            for column, value in asked
        ]

    return Predicate(
        select(table.run_id).where(*clauses(_as_it_is)),
        lambda plain: exists().where(table.run_id == RunRow.id, *clauses(plain)).correlate(RunRow),
    )


def _throughput(least: float | None, most: float | None) -> Predicate:
    def between(plain: Plain) -> ColumnElement[bool]:
        column = plain(RunSummaryRow.samples_per_s)
        return and_(*([column >= least] if least is not None else []), *([column <= most] if most is not None else []))

    return Predicate(
        select(RunSummaryRow.run_id).where(between(_as_it_is)),
        lambda plain: exists().where(RunSummaryRow.run_id == RunRow.id, between(plain)).correlate(RunRow),
    )


def matches(connection: Connection, plain: Plain, column: Any, pattern: str) -> ColumnElement[bool]:
    """Whether the column is like a pattern of * and ?; equality where the pattern has neither."""
    if not set("*?") & set(pattern):
        return plain(column) == pattern
    if connection.dialect.name == "sqlite":
        return plain(column).op("GLOB", is_comparison=True)(pattern.replace("[", "[[]"))
    escaped = pattern.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")
    return plain(column).like(escaped.replace("*", "%").replace("?", "_"), escape="\\")


def models_like(connection: Connection, words: Sequence[str]) -> list[str]:
    """The GPU models that the history knows and of which one of these words is a part, whatever its case."""
    found: list[str] = []
    column = RunSummaryRow.gpu
    # From each model to the next through the index: there are a few, in a million rows.
    at = connection.execute(select(func.min(column))).scalar()
    while at is not None:
        found.append(at)
        at = connection.execute(select(func.min(column)).where(column > at)).scalar()
    return [model for model in found if any(word.lower() in model.lower() for word in words)]
