"""What is measured, in the database: progress, series and GPU time, written by the controller and read with the runs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Row, Select, bindparam, delete, func, insert, or_, select, update

from orchestrator.history import ledger
from orchestrator.history.measured_models import GangSampleRow, GpuSampleRow, GpuTimeRow, ProgressRow, RankSampleRow
from orchestrator.history.models import AllocationRow, AttemptRow, NodeRow, RunRow
from orchestrator.history.series import DETAIL, fold_gang, fold_gpus, fold_ranks
from orchestrator.placement.wishes import matches
from orchestrator.progress.gpu_time import GpuTime, NodeTime
from orchestrator.progress.values import GangSample, GpuSample, Progress, RankSample
from orchestrator.scheduling.run import Attempt, Run

Key = tuple[int, int]
"""A run and the number of one of its attempts."""


@dataclass(frozen=True)
class Measured:
    """What was measured of one attempt since the last time."""

    run: int
    attempt: int
    progress: Progress | None = None
    gang: tuple[GangSample, ...] = ()
    ranks: tuple[RankSample, ...] = ()
    gpus: tuple[GpuSample, ...] = ()
    count: bool = True
    """Whether the run's GPU time is counted anew."""

    @property
    def told(self) -> bool:
        """Whether there is anything."""
        return self.progress is not None or bool(self.gang or self.ranks or self.gpus)


LATEST = 200
"""So many attempts of a name say how it scales."""
_PARTS = [part.name for part in fields(GpuTime)]

# Asked at the end of each attempt, and made once: to make a statement takes SQLAlchemy longer than SQLite takes to run it.
_TIMES = select(GpuTimeRow).where(GpuTimeRow.run_id == bindparam("run")).order_by(GpuTimeRow.node)
_NEW_TIME = insert(GpuTimeRow)
_HELD = select(AllocationRow.attempt, AllocationRow.node, AllocationRow.since, AllocationRow.released_at).where(
    AllocationRow.run_id == bindparam("run")
)
_HARDWARE = select(NodeRow.hardware).where(NodeRow.name == bindparam("node"))


# Writing --------------------------------------------------------------------------------------------------------------


def record_progress(connection: Connection, key: Key, progress: Progress, now: datetime) -> None:
    """Replaces what is known of the attempt's progress."""
    values = asdict(progress) | {"metrics": progress.metrics or None, "updated_at": now}
    _put(connection, ProgressRow, {"run_id": key[0], "attempt": key[1]}, values)


def record_samples(
    connection: Connection,
    key: Key,
    gang: Iterable[GangSample] = (),
    ranks: Iterable[RankSample] = (),
    gpus: Iterable[GpuSample] = (),
) -> None:
    """Adds rows to the attempt's series."""
    of = {"run_id": key[0], "attempt": key[1]}
    for row, samples in ((GangSampleRow, gang), (RankSampleRow, ranks), (GpuSampleRow, gpus)):
        if values := [of | _columns(sample) for sample in samples]:
            connection.execute(insert(row), values)


def _columns(sample: GangSample | RankSample | GpuSample) -> dict[str, Any]:
    values = asdict(sample)
    if "metrics" in values:
        values["metrics"] = values["metrics"] or None
    if "throttled_by" in values:
        values["throttled_by"] = ",".join(values["throttled_by"]) or None
    return values


def _put(connection: Connection, row: Any, key: Mapping[str, Any], values: Mapping[str, Any]) -> None:
    there = update(row).where(*(getattr(row, name) == value for name, value in key.items())).values(**values)
    if not connection.execute(there).rowcount:
        connection.execute(insert(row).values(**key, **values))


def recount(connection: Connection, run: Run, now: datetime, prices: Mapping[str, float]) -> Run:
    """Counts the GPU time of the run's attempts anew, up to `now` where GPUs are still held; the run with it.

    `prices` are per GPU-hour by model; what was counted before keeps the price of then.
    """
    held = _held(connection, run.id, now)
    known = {(row.attempt, row.node): row for row in connection.execute(_TIMES, {"run": run.id})}
    models: dict[str, str | None] = {}
    new: list[dict[str, Any]] = []
    for attempt, anew in zip(run.attempts, ledger.began_anew(run.attempts), strict=True):
        for node, gpus in held.get(attempt.number, {}).items():
            time = sum(
                (ledger.account(attempt, since, until, began_anew=anew) for since, until in gpus), start=GpuTime()
            )
            values = {f"{part}_ms": getattr(time, part) for part in ("allocated", *_PARTS)}
            values["until"] = max(until for _, until in gpus)
            of = {"run_id": run.id, "attempt": attempt.number, "node": node}
            row = known.get((attempt.number, node))
            if row is None:
                if node not in models:
                    models[node] = _model(connection, node)
                first = {
                    "gpus": len(gpus),
                    "device": attempt.placement.device,
                    "model": models[node],
                    "price": _price(prices, attempt.placement.device, models[node]),
                    "since": min(since for since, _ in gpus),
                }
                new.append(of | values | first)
            elif any(getattr(row, name) != value for name, value in values.items()):
                _put(connection, GpuTimeRow, of, values)
    if new:
        connection.execute(_NEW_TIME, new)
    used = _used(connection.execute(_TIMES, {"run": run.id}))
    return replace(
        run, attempts=tuple(replace(one, used=used.get((run.id, one.number), one.used)) for one in run.attempts)
    )


def uncounted(connection: Connection) -> list[int]:
    """Runs with an attempt that has ended, whose GPU time was last counted before that, or never."""
    counted = (
        select(func.max(GpuTimeRow.until))
        .where(GpuTimeRow.run_id == AttemptRow.run_id, GpuTimeRow.attempt == AttemptRow.number)
        .scalar_subquery()
    )
    question = select(AttemptRow.run_id).where(
        AttemptRow.ended_at.is_not(None), or_(counted.is_(None), counted < AttemptRow.ended_at)
    )
    return sorted(set(connection.execute(question).scalars()))


def _held(connection: Connection, run: int, now: datetime) -> dict[int, dict[str, list[tuple[datetime, datetime]]]]:
    """By attempt and node, from when to when each GPU was held."""
    held: dict[int, dict[str, list[tuple[datetime, datetime]]]] = {}
    for attempt, node, since, released in connection.execute(_HELD, {"run": run}):
        held.setdefault(attempt, {}).setdefault(node, []).append((since, max(since, released or now)))
    return held


def _model(connection: Connection, node: str) -> str | None:
    """The model of the node's GPUs, as it was last seen."""
    hardware = connection.execute(_HARDWARE, {"node": node}).scalar() or {}
    found = {gpu.get("model") for gpu in hardware.get("gpus") or [] if isinstance(gpu, dict)}
    return found.pop() if len(found) == 1 else None


def _price(prices: Mapping[str, float], device: str, model: str | None) -> float | None:
    if device == "cpu":
        return prices.get("cpu")
    return next((price for name, price in prices.items() if model and matches(name, model)), None)


def fold(connection: Connection, key: Key, now: datetime, ended: datetime | None) -> None:
    """Makes longer rows of the attempt's older ones (series.DETAIL)."""
    kinds: tuple[tuple[Any, Any, Any], ...] = (
        (GangSampleRow, fold_gang, gang_of),
        (RankSampleRow, fold_ranks, rank_of),
        (GpuSampleRow, fold_gpus, gpu_of),
    )
    for row, folded, back in kinds:
        began = connection.execute(select(func.min(row.at)).where(row.run_id == key[0], row.attempt == key[1])).scalar()
        if began is None:
            continue
        for seconds, before in DETAIL[row.__tablename__].due(began, now, ended):
            narrow = (row.run_id == key[0], row.attempt == key[1], row.seconds < seconds, row.at < before)
            old = [back(one) for one in connection.execute(select(row).where(*narrow).order_by(row.at))]
            if old:
                connection.execute(delete(row).where(*narrow))
                samples = folded(old, seconds)
                of = {"run_id": key[0], "attempt": key[1]}
                connection.execute(insert(row), [of | _columns(sample) for sample in samples])


# Reading --------------------------------------------------------------------------------------------------------------


def progress_of(connection: Connection, runs: Select[Any] | Sequence[int]) -> dict[Key, Progress]:
    """By attempt, of these runs: a statement that gives their ids, or the ids."""
    return {
        (row.run_id, row.attempt): Progress(**_fields(row, Progress))
        for row in connection.execute(select(ProgressRow).where(ProgressRow.run_id.in_(runs)))
    }


def used_by(connection: Connection, runs: Select[Any] | Sequence[int]) -> dict[Key, tuple[NodeTime, ...]]:
    """By attempt, the GPU time of its nodes, by name."""
    return _used(connection.execute(select(GpuTimeRow).where(GpuTimeRow.run_id.in_(runs)).order_by(GpuTimeRow.node)))


def _used(rows: Iterable[Row[Any]]) -> dict[Key, tuple[NodeTime, ...]]:
    found: dict[Key, tuple[NodeTime, ...]] = {}
    for row in rows:
        time = GpuTime(*(getattr(row, f"{part}_ms") for part in _PARTS))
        one = NodeTime(row.node, row.gpus, row.device, row.since, row.until, time, row.model, row.price)
        found[row.run_id, row.attempt] = (*found.get((row.run_id, row.attempt), ()), one)
    return found


def series(connection: Connection, run: int, attempt: int | None = None) -> dict[int, list[GangSample]]:
    """By attempt, the series of its gang, oldest first."""
    question = select(GangSampleRow).where(GangSampleRow.run_id == run)
    if attempt is not None:
        question = question.where(GangSampleRow.attempt == attempt)
    found: dict[int, list[GangSample]] = {}
    for row in connection.execute(question.order_by(GangSampleRow.attempt, GangSampleRow.at)):
        found.setdefault(row.attempt, []).append(gang_of(row))
    return found


def rank_series(connection: Connection, key: Key) -> list[RankSample]:
    """The series of the attempt's ranks, oldest first."""
    question = select(RankSampleRow).where(RankSampleRow.run_id == key[0], RankSampleRow.attempt == key[1])
    return [rank_of(row) for row in connection.execute(question.order_by(RankSampleRow.at, RankSampleRow.rank))]


def gpu_series(connection: Connection, key: Key) -> list[GpuSample]:
    """The series of the attempt's GPUs, oldest first."""
    question = select(GpuSampleRow).where(GpuSampleRow.run_id == key[0], GpuSampleRow.attempt == key[1])
    order = GpuSampleRow.at, GpuSampleRow.node, GpuSampleRow.gpu
    return [gpu_of(row) for row in connection.execute(question.order_by(*order))]


def sizes_and_rates(connection: Connection, name: str) -> list[tuple[int, float]]:
    """Of the latest runs of that name: how many workers an attempt had, and how many samples a second it did."""
    question = (
        select(AttemptRow.placement, ProgressRow.samples_per_s)
        .join(ProgressRow, (ProgressRow.run_id == AttemptRow.run_id) & (ProgressRow.attempt == AttemptRow.number))
        .join(RunRow, RunRow.id == AttemptRow.run_id)
        .where(RunRow.name == name, ProgressRow.samples_per_s.is_not(None))
        .order_by(AttemptRow.run_id.desc())
        .limit(LATEST)
    )
    return [
        (sum(len(node["gpus"]) for node in placement["nodes"]), rate)
        for placement, rate in connection.execute(question)
    ]


def gang_of(row: Row[Any]) -> GangSample:
    return GangSample(**_fields(row, GangSample))


def rank_of(row: Row[Any]) -> RankSample:
    return RankSample(**_fields(row, RankSample))


def gpu_of(row: Row[Any]) -> GpuSample:
    values = _fields(row, GpuSample)
    return GpuSample(
        **values | {"throttled_by": tuple((values["throttled_by"] or "").split(",")) if values["throttled_by"] else ()}
    )


def _fields(row: Row[Any], kind: Any) -> dict[str, Any]:
    values = {one.name: getattr(row, one.name) for one in fields(kind)}
    if "metrics" in values:
        values["metrics"] = values["metrics"] or {}
    return values


def measured(
    attempt: Attempt, run: int, progress: Mapping[Key, Progress], used: Mapping[Key, tuple[NodeTime, ...]]
) -> Attempt:
    """The attempt with what was measured of it."""
    key = run, attempt.number
    return replace(attempt, progress=progress.get(key), used=used.get(key, ()))
