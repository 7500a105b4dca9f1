"""What is measured, in the database: progress, series and GPU time, written by the controller and read with the runs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from datetime import datetime
from functools import cache
from typing import Any

from sqlalchemy import Connection, Row, Select, bindparam, delete, func, insert, or_, select

from orchestrator.history import ledger
from orchestrator.history.filters import ids_of, in_ids
from orchestrator.history.measured_models import GangSampleRow, GpuSampleRow, GpuTimeRow, ProgressRow, RankSampleRow
from orchestrator.history.models import AllocationRow, AttemptRow, NodeRow, RunRow
from orchestrator.history.series import DETAIL, fold_gang, fold_gpus, fold_ranks
from orchestrator.history.upsert import replacing
from orchestrator.placement.wishes import matches
from orchestrator.progress.gpu_time import GpuTime, NodeTime, total
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

# Statements are made once: to make one takes SQLAlchemy longer than SQLite takes to run it.
_SAMPLES: dict[Any, Any] = {row: insert(row) for row in (GangSampleRow, RankSampleRow, GpuSampleRow)}
_HARDWARE = select(NodeRow.name, NodeRow.hardware).where(NodeRow.name.in_(bindparam("nodes", expanding=True)))


# Writing --------------------------------------------------------------------------------------------------------------


def record(connection: Connection, taken: Sequence[Measured], now: datetime) -> None:
    """Replaces what is known of the attempts' progress, and adds rows to their series."""
    progress = [_of(one) | _progress(one.progress, now) for one in taken if one.progress is not None]
    if progress:
        connection.execute(replacing(connection.dialect.name, ProgressRow), progress)
    for row, samples in ((GangSampleRow, "gang"), (RankSampleRow, "ranks"), (GpuSampleRow, "gpus")):
        if rows := [_of(one) | _columns(sample) for one in taken for sample in getattr(one, samples)]:
            connection.execute(_SAMPLES[row], rows)


def _of(one: Measured) -> dict[str, Any]:
    return {"run_id": one.run, "attempt": one.attempt}


def _progress(progress: Progress, now: datetime) -> dict[str, Any]:
    return asdict(progress) | {"metrics": progress.metrics or None, "updated_at": now}


def _columns(sample: GangSample | RankSample | GpuSample) -> dict[str, Any]:
    values = asdict(sample)
    if "metrics" in values:
        values["metrics"] = values["metrics"] or None
    if "throttled_by" in values:
        values["throttled_by"] = ",".join(values["throttled_by"]) or None
    return values


def recount(
    connection: Connection, runs: Sequence[Run], now: datetime, prices: Mapping[str, float]
) -> dict[Key, dict[str, NodeTime]]:
    """Counts the GPU time of the runs' attempts anew, up to `now` where GPUs are still held; by attempt and node.

    `prices` are per GPU-hour by model; what was counted before keeps the price of then.
    """
    ids = {"ids": ids_of(connection.dialect.name, [run.id for run in runs])}
    held, counted = _held(connection, ids, now), _counted(connection, ids)
    models = _models(connection, {node for key, nodes in held.items() for node in nodes.keys() - counted.get(key, {})})
    rows = []
    for run in runs:
        for attempt, anew in zip(run.attempts, ledger.began_anew(run.attempts), strict=True):
            key = run.id, attempt.number
            for node, gpus in held.get(key, {}).items():
                # Most often all of them were held as long as each other.
                time = total(
                    ledger.account(attempt, since, until, began_anew=anew) * count
                    for (since, until), count in Counter(gpus).items()
                )
                before = counted.setdefault(key, {}).get(node)
                if before is None:
                    device, model = attempt.placement.device, models.get(node)
                    since, price = min(since for since, _ in gpus), _price(prices, device, model)
                    before = NodeTime(node, len(gpus), device, since, since, GpuTime(), model, price)
                after = replace(before, until=max(until for _, until in gpus), time=time)
                if after != counted[key].get(node):
                    counted[key][node] = after
                    rows.append(_time_row(key, after))
    if rows:
        connection.execute(replacing(connection.dialect.name, GpuTimeRow), rows)
    return counted


def _time_row(key: Key, one: NodeTime) -> dict[str, Any]:
    parts = {f"{part}_ms": getattr(one.time, part) for part in ("allocated", *_PARTS)}
    node = {name: getattr(one, name) for name in ("node", "gpus", "device", "since", "until", "model", "price")}
    return {"run_id": key[0], "attempt": key[1], **node, **parts}


def with_times(run: Run, counted: Mapping[Key, Mapping[str, NodeTime]]) -> Run:
    """The run with what was counted of its attempts."""
    return replace(run, attempts=tuple(_with_times(run.id, one, counted) for one in run.attempts))


def _with_times(run: int, attempt: Attempt, counted: Mapping[Key, Mapping[str, NodeTime]]) -> Attempt:
    times = counted.get((run, attempt.number))
    return attempt if times is None else replace(attempt, used=tuple(times[node] for node in sorted(times)))


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


def _held(
    connection: Connection, ids: Mapping[str, Any], now: datetime
) -> dict[Key, dict[str, list[tuple[datetime, datetime]]]]:
    """By attempt and node, from when to when each GPU was held."""
    held: dict[Key, dict[str, list[tuple[datetime, datetime]]]] = {}
    for run, attempt, node, since, released in connection.execute(_gpus_of(connection.dialect.name), ids):
        held.setdefault((run, attempt), {}).setdefault(node, []).append((since, max(since, released or now)))
    return held


def _counted(connection: Connection, ids: Mapping[str, Any]) -> dict[Key, dict[str, NodeTime]]:
    """By attempt and node, what was counted before."""
    found: dict[Key, dict[str, NodeTime]] = {}
    for row in connection.execute(_times_of(connection.dialect.name), ids):
        found.setdefault((row.run_id, row.attempt), {})[row.node] = _node_time(row)
    return found


@cache
def _gpus_of(dialect: str) -> Any:
    row = AllocationRow
    return select(row.run_id, row.attempt, row.node, row.since, row.released_at).where(in_ids(dialect, row.run_id))


@cache
def _times_of(dialect: str) -> Any:
    return select(GpuTimeRow).where(in_ids(dialect, GpuTimeRow.run_id))


def _models(connection: Connection, nodes: Collection[str]) -> dict[str, str | None]:
    """The model of each node's GPUs, as it was last seen."""
    models: dict[str, str | None] = {}
    for name, hardware in connection.execute(_HARDWARE, {"nodes": sorted(nodes)}) if nodes else ():
        found = {gpu.get("model") for gpu in (hardware or {}).get("gpus") or [] if isinstance(gpu, dict)}
        models[name] = found.pop() if len(found) == 1 else None
    return models


def _price(prices: Mapping[str, float], device: str, model: str | None) -> float | None:
    if device == "cpu":
        return prices.get("cpu")
    return next((price for name, price in prices.items() if model and matches(name, model)), None)


def fold(connection: Connection, keys: Collection[Key], now: datetime, ended: datetime | None) -> None:
    """Makes longer rows of the attempts' older ones (series.DETAIL)."""
    kinds: tuple[tuple[Any, Any, Any], ...] = (
        (GangSampleRow, fold_gang, gang_of),
        (RankSampleRow, fold_ranks, rank_of),
        (GpuSampleRow, fold_gpus, gpu_of),
    )
    ids = {"ids": ids_of(connection.dialect.name, sorted({run for run, _ in keys}))}
    for row, folded, back in kinds if keys else ():
        for run, attempt, began in connection.execute(_oldest(connection.dialect.name, row), ids):
            if (run, attempt) not in keys:
                continue
            of = {"run_id": run, "attempt": attempt}
            for seconds, before in DETAIL[row.__tablename__].due(began, now, ended):
                # Most often there is nothing so old.
                if began >= before:
                    continue
                narrow = (row.run_id == run, row.attempt == attempt, row.seconds < seconds, row.at < before)
                old = [back(one) for one in connection.execute(select(row).where(*narrow).order_by(row.at))]
                if old:
                    connection.execute(delete(row).where(*narrow))
                    connection.execute(_SAMPLES[row], [of | _columns(sample) for sample in folded(old, seconds)])


@cache
def _oldest(dialect: str, row: Any) -> Any:
    return (
        select(row.run_id, row.attempt, func.min(row.at))
        .where(in_ids(dialect, row.run_id))
        .group_by(row.run_id, row.attempt)
    )


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
        found[row.run_id, row.attempt] = (*found.get((row.run_id, row.attempt), ()), _node_time(row))
    return found


def _node_time(row: Row[Any]) -> NodeTime:
    time = GpuTime(*(getattr(row, f"{part}_ms") for part in _PARTS))
    return NodeTime(row.node, row.gpus, row.device, row.since, row.until, time, row.model, row.price)


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
