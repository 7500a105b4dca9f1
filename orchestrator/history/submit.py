"""Submissions to rows: many in one statement, arrays with a row a run, and the words of `after:` resolved to ids."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any, TypeAlias

from sqlalchemy import Connection, String, insert, literal_column, select, text, tuple_
from sqlalchemy.exc import IntegrityError

from orchestrator.array import Ref, at, parse_ref, size
from orchestrator.history import queries
from orchestrator.history.book import Changes
from orchestrator.history.errors import KeyUsed, NoSuchRun, NothingFollows, StoreError
from orchestrator.history.models import ArrayRow, DependencyRow, EventRow, RunRow, TagRow
from orchestrator.scheduling.lifecycle import Event, State
from orchestrator.scheduling.run import Array, Code, Dependency, Element, NewRun, Run
from orchestrator.spec import SETTABLE, SETTABLE_OF_ARRAYS, JobSpec

Answer: TypeAlias = tuple[Run, bool] | StoreError
"""The run (an array's first) and whether it is new, or why it was refused."""

# Made once: to make a statement takes SQLAlchemy longer than SQLite takes to run it.
# What is the same in all rows is part of it, and not bound with each.
_QUEUED = literal_column(f"'{State.QUEUED.value}'", String)
_SUBMITTED = literal_column(f"'{Event.SUBMITTED.value}'", String)
_RUNS, _TAGS, _ARRAYS = insert(RunRow).values(state=_QUEUED), insert(TagRow), insert(ArrayRow)
_DEPENDENCIES, _EVENTS = insert(DependencyRow), insert(EventRow).values(event=_SUBMITTED, state=_QUEUED)
_TAKEN = text("SELECT nextval(pg_get_serial_sequence('runs', 'id')) FROM generate_series(1, :count)")


def submit(connection: Connection, new: Sequence[NewRun], now: datetime, changes: Changes) -> list[Answer]:
    """Queues each that can be, in their order: a refused one does not keep the others out."""
    # Nearly every key is new: whether one was used before is asked only once the database has refused one.
    connection.exec_driver_sql("SAVEPOINT keys_are_new")
    try:
        answers = _submit(connection, new, {}, now, made := Changes())
    except IntegrityError:
        connection.exec_driver_sql("ROLLBACK TO SAVEPOINT keys_are_new")
        answers = _submit(connection, new, _keys_before(connection, new), now, made := Changes())
    except BaseException:
        connection.exec_driver_sql("ROLLBACK TO SAVEPOINT keys_are_new")
        raise
    connection.exec_driver_sql("RELEASE SAVEPOINT keys_are_new")
    changes.add(made)
    return answers


def _submit(
    connection: Connection,
    new: Sequence[NewRun],
    before: Mapping[tuple[str, str] | None, int],
    now: datetime,
    changes: Changes,
) -> list[Answer]:
    """`before`: by user and key, the runs of then."""
    after: dict[int, tuple[Dependency, ...]] = {}
    answers: list[Answer | None] = [None] * len(new)
    wanted = []
    first_of: dict[tuple[str, str], int] = {}
    for position, one in enumerate(new):
        key = (one.user, one.key) if one.key is not None else None
        try:
            if key in before:
                answers[position] = (_same(connection, one, before[key]), False)
            elif key is None or first_of.setdefault(key, position) == position:
                after[position] = resolve(connection, one.spec.after, one.user)
                wanted.append(position)
        except StoreError as error:
            answers[position] = error
    made = _insert(connection, [(new[position], after[position]) for position in wanted], now, changes)
    for position, run in zip(wanted, made, strict=True):
        answers[position] = (run, True)
    for position, one in enumerate(new):
        if answers[position] is None:
            # A key that came twice in this batch is the first one's, or was refused as that was.
            at_first = first_of[one.user, one.key or ""]
            first = answers[at_first]
            assert first is not None
            if not isinstance(first, StoreError) and (differs := _differs(one, new[at_first].spec, new[at_first].code)):
                answers[position] = KeyUsed(first[0], one.key or "", differs)
            else:
                answers[position] = first if isinstance(first, StoreError) else (first[0], False)
    return [answer for answer in answers if answer is not None]


def submitted(connection: Connection, new: NewRun) -> Run | None:
    """The run that this submission's key gave before. Raises KeyUsed where it was another job's."""
    known = _keys_before(connection, [new])
    return None if not known else _same(connection, new, next(iter(known.values())))


def _same(connection: Connection, new: NewRun, before: int) -> Run:
    """The run of then. Raises KeyUsed where it is another job."""
    run = queries.run_by_id(connection, before)
    assert run is not None
    array = queries.array_of(connection, before)
    if differs := _differs(new, run.spec if array is None else array.spec, run.code):
        raise KeyUsed(run, new.key or "", differs)
    return run


def _differs(new: NewRun, spec: JobSpec, code: Code | None) -> list[str]:
    """The keys of the job file in which a submission is another job than that; what `orch set` may change is none of them."""
    now, then = new.spec.model_dump(mode="json"), spec.model_dump(mode="json")
    found = [key for key in now if key not in SETTABLE + SETTABLE_OF_ARRAYS and now[key] != then.get(key)]
    code_differs = (new.code and new.code.sha256) != (code and code.sha256)
    return [*found, *(["code"] if code_differs else [])]


def _keys_before(connection: Connection, new: Sequence[NewRun]) -> dict[tuple[str, str] | None, int]:
    keys = [(one.user, one.key) for one in new if one.key is not None]
    if not keys:
        return {}
    rows = connection.execute(
        select(RunRow.username, RunRow.submit_key, RunRow.id).where(
            tuple_(RunRow.username, RunRow.submit_key).in_(keys)
        )
    )
    return {(row.username, row.submit_key): row.id for row in rows}


def take_ids(connection: Connection, count: int) -> range:
    """The next ids of runs, without a gap: the caller has the lock under which all of them are given."""
    if connection.dialect.name == "sqlite":
        last = connection.exec_driver_sql("SELECT seq FROM sqlite_sequence WHERE name = 'runs'").scalar() or 0
        return range(last + 1, last + 1 + count)
    taken = list(connection.execute(_TAKEN, {"count": count}).scalars())
    assert taken == list(range(taken[0], taken[0] + count))
    return range(taken[0], taken[0] + count)


def _insert(
    connection: Connection, wanted: Sequence[tuple[NewRun, tuple[Dependency, ...]]], now: datetime, changes: Changes
) -> list[Run]:
    """The rows of all of them, a statement for each table; gives the run of each, an array's first."""
    sizes = [size(one.spec.array) if one.spec.array is not None else 1 for one, _ in wanted]
    if not wanted:
        return []
    ids = take_ids(connection, sum(sizes))
    runs: list[dict[str, Any]] = []
    tags: list[dict[str, Any]] = []
    arrays: list[dict[str, Any]] = []
    needs: list[dict[str, Any]] = []
    firsts: list[Run] = []
    next_id = ids.start
    for (one, after), count in zip(wanted, sizes, strict=True):
        mine = range(next_id, next_id + count)
        next_id += count
        made = _runs(one, after, mine, now)
        firsts.append(made[0])
        changes.runs |= {run.id: run for run in made}
        spec = one.spec.model_dump(mode="json")
        if one.spec.array is not None:
            array = Array(mine.start, one.spec, one.user, count, one.spec.array_limit)
            changes.arrays[array.id] = array
            arrays.append(
                {
                    "id": array.id,
                    "name": array.name,
                    "username": one.user,
                    "size": count,
                    "run_limit": array.limit,
                    "spec": spec,
                }
            )
            spec = {}
        runs += [_row(one, number, spec, one.key if number == mine.start else None, now) for number in mine]
        tags += [{"run_id": number, "key": k, "value": v} for k, v in one.spec.tags.items() for number in mine]
        needs += [
            {"run_id": mine.start, "position": i, "first_id": d.first, "last_id": d.last, "word": d.word}
            for i, d in enumerate(after)
        ]
    connection.execute(_RUNS, runs)
    for statement, rows in ((_TAGS, tags), (_ARRAYS, arrays), (_DEPENDENCIES, needs)):
        if rows:
            connection.execute(statement, rows)
    connection.execute(_EVENTS, [{"run_id": row["id"], "at": now, "by": row["username"]} for row in runs])
    return firsts


def _runs(new: NewRun, after: tuple[Dependency, ...], ids: range, now: datetime) -> list[Run]:
    one = Run(
        ids.start, new.spec, new.user, new.code, new.workdir, State.QUEUED, None, now, now, after=after
    )  # fmt: skip
    if new.spec.array is None:
        return [one]
    specs = new.spec.elements(range(len(ids)))
    return [
        replace(one, id=number, spec=spec, element=Element(ids.start, index, at(new.spec.array, index)))
        for index, (number, spec) in enumerate(zip(ids, specs, strict=True))
    ]


def _row(new: NewRun, number: int, spec: dict[str, Any], key: str | None, now: datetime) -> dict[str, Any]:
    code = new.code
    return {
        "id": number,
        "name": new.spec.name,
        "username": new.user,
        "team": new.spec.team,
        "priority": new.spec.priority,
        # Defaults included: a default that changes later must not change what was asked for.
        "spec": spec,
        "code_sha256": code and code.sha256,
        "code_git": code and code.git,
        "code_dirty": code and code.dirty,
        "workdir": new.workdir,
        "submit_key": key,
        "submitted_at": now,
        "queued_at": now,
    }


# What `after:` means --------------------------------------------------------------------------------------------------


def resolve(connection: Connection, after: Sequence[int | str], user: str) -> tuple[Dependency, ...]:
    """The runs that the words mean now. Raises NoSuchRun, and NothingFollows where one of them has failed."""
    found = []
    for word in after:
        ref = parse_ref(str(word))
        assert ref is not None
        ids = queries.ids_of(connection, ref, user)
        if ids is None:
            raise NoSuchRun(str(word), "after: ")
        found.append(Dependency(ids.start, ids.stop - 1, _named(connection, ref, ids)))
    for one in found:
        if (broken := queries.broken_dependency(connection, one)) is not None:
            raise NothingFollows(broken, one.word)
    return tuple(found)


def _named(connection: Connection, ref: Ref, ids: range) -> str:
    """What to call them from now on: the name, which an id alone does not tell."""
    if not ref.word.isdigit():
        return str(ref)
    return str(connection.execute(select(RunRow.name).where(RunRow.id == ids.start)).scalar())
