"""The history as rows for other tools: runs, attempts or series, batch after batch, so that memory does not grow with it."""

from __future__ import annotations

import csv
import json
import os
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import IO, Any

from sqlalchemy import Connection, select

from orchestrator.history import queries
from orchestrator.history.database import Database
from orchestrator.history.filters import RunFilter, among, batches
from orchestrator.history.ledger_days import GPU_TIME
from orchestrator.history.listing import COLUMNS, json_value, rows_of
from orchestrator.history.measured_models import GangSampleRow, GpuTimeRow, ProgressRow
from orchestrator.history.render import transport
from orchestrator.history.summary_models import AttemptNodeRow
from orchestrator.scheduling.run import Attempt, Run

RUNS_AT_ONCE = {"runs": 2000, "attempts": 500, "series": 50}
"""A batch is one short transaction: a long one would keep SQLite's write-ahead log from being folded in."""

_PROGRESS = ("source", "steps", "samples", "samples_per_s", "step_time", "step_time_p50", "step_time_p99", "data_wait")
_SAMPLE = ("seconds", "measured_ms", "steps", "samples", "step_time", "step_time_p50", "step_time_p99", "rank_time_min",
           "rank_time_max")  # fmt: skip

FIELDS: dict[str, dict[str, type]] = {
    "runs": COLUMNS,
    "attempts": {
        "run_id": int, "name": str, "user": str, "team": str, "number": int, "outcome": str, "failure_kind": str,
        "failure_message": str, "failure_rank": int, "failure_node": str, "device": str, "level": str, "nodes": str,
        "leaves": str, "gpu": str, "gpus": int, "busbw_predicted": float, "transport": str, "started_at": datetime,
        "ranks_started_at": datetime, "ended_at": datetime, "source": str, "steps": int, "samples": int,
        "samples_per_s": float, "step_time": float, "step_time_p50": float, "step_time_p99": float, "data_wait": float,
        **{f"{part}_s": float for part in GPU_TIME},
    },
    "series": {
        "run_id": int, "name": str, "attempt": int, "at": datetime, "seconds": int, "measured_ms": int, "steps": int,
        "samples": int, "samples_per_s": float, "step_time": float, "step_time_p50": float, "step_time_p99": float,
        "rank_time_min": float, "rank_time_max": float,
    },
}  # fmt: skip
"""The columns of each kind of row, in their order."""

Row = dict[str, Any]


def rows(database: Database, what: str, wanted: RunFilter) -> Iterator[Row]:
    """Every row of `what` (a key of FIELDS) for the runs that `wanted` describes, by run id. Values are Python's."""
    make = {"runs": _runs, "attempts": _attempts, "series": _series}[what]
    after = 0
    while True:
        with database.read() as connection:
            ids = batches(connection, wanted, after, RUNS_AT_ONCE[what])
            found = list(make(connection, ids)) if ids else []
        if not ids:
            return
        yield from found
        after = ids[-1]


def _runs(connection: Connection, ids: Sequence[int]) -> Iterator[Row]:
    return rows_of(connection, ids, list(COLUMNS))


def _attempts(connection: Connection, ids: Sequence[int]) -> Iterator[Row]:
    progress = {
        (row["run_id"], row["attempt"]): row
        for row in connection.execute(select(ProgressRow).where(among(connection, ProgressRow.run_id, ids))).mappings()
    }
    used: dict[tuple[int, int], dict[str, int]] = defaultdict(lambda: dict.fromkeys(GPU_TIME, 0))
    for time in connection.execute(select(GpuTimeRow).where(among(connection, GpuTimeRow.run_id, ids))).mappings():
        for part in GPU_TIME:
            used[time["run_id"], time["attempt"]][part] += time[f"{part}_ms"]
    where: dict[tuple[int, int], list[Any]] = defaultdict(list)
    for node in connection.execute(select(AttemptNodeRow).where(among(connection, AttemptNodeRow.run_id, ids))):
        where[node.run_id, node.attempt].append(node)
    for run in queries.by_ids(connection, ids):
        for attempt in run.attempts:
            key = (run.id, attempt.number)
            seen = progress.get(key)
            yield {
                **_attempt(run, attempt),
                "leaves": _listed({node.leaf for node in where[key]}),
                "gpu": _listed({node.gpu for node in where[key]}),
                **{name: None if seen is None else seen[name] for name in _PROGRESS},
                **{f"{part}_s": used[key][part] / 1000 for part in GPU_TIME},
            }


def _attempt(run: Run, attempt: Attempt) -> Row:
    failure, placement = attempt.failure, attempt.placement
    return {
        "run_id": run.id,
        "name": run.name,
        "user": run.user,
        "team": run.spec.team,
        "number": attempt.number,
        "outcome": attempt.outcome and attempt.outcome.value,
        "failure_kind": failure and failure.kind,
        "failure_message": failure and failure.message,
        "failure_rank": failure and failure.rank,
        "failure_node": failure and failure.node,
        "device": placement.device,
        "level": placement.level,
        "nodes": ",".join(part.node for part in placement.nodes),
        "gpus": placement.world_size,
        "busbw_predicted": placement.busbw_predicted,
        "transport": (transport(run, attempt) or {}).get("verdict"),
        "started_at": attempt.started_at,
        "ranks_started_at": attempt.ranks_started_at,
        "ended_at": attempt.ended_at,
    }


def _listed(names: set[str | None]) -> str | None:
    return ",".join(sorted(name for name in names if name is not None)) or None


def _series(connection: Connection, ids: Sequence[int]) -> Iterator[Row]:
    names = {row["id"]: row["name"] for row in rows_of(connection, ids, ("id", "name"))}
    question = select(GangSampleRow).where(among(connection, GangSampleRow.run_id, ids))
    for row in connection.execute(
        question.order_by(GangSampleRow.run_id, GangSampleRow.attempt, GangSampleRow.at)
    ).mappings():
        rate = None if row["samples"] is None or not row["measured_ms"] else row["samples"] * 1000 / row["measured_ms"]
        head = {"run_id": row["run_id"], "name": names[row["run_id"]], "attempt": row["attempt"], "at": row["at"]}
        yield head | {name: row[name] for name in _SAMPLE} | {"samples_per_s": rate}


# Forms -------------------------------------------------------------------------------------------------------------------


class Csv:
    """With a line of titles; times as RFC 3339, nothing where there is no value."""

    def __init__(self, file: IO[str], fields: Mapping[str, type]) -> None:
        self._fields, self._rows = fields, csv.writer(file, lineterminator="\n")
        self._rows.writerow(fields)

    def write(self, row: Row) -> None:
        self._rows.writerow([_text(row[name]) for name in self._fields])

    def close(self) -> None: ...


class JsonLines:
    """One object a line."""

    def __init__(self, file: IO[str], fields: Mapping[str, type]) -> None:
        self._file, self._fields = file, fields

    def write(self, row: Row) -> None:
        self._file.write(json.dumps({name: json_value(row[name]) for name in self._fields}) + "\n")

    def close(self) -> None: ...


class Parquet:
    """A Parquet file with typed columns; objects are JSON text."""

    ROWS = 20_000
    """Of a row group, which is what is held in memory."""

    def __init__(self, file: IO[bytes], fields: Mapping[str, type]) -> None:
        import pyarrow
        from pyarrow import parquet

        kinds = {
            int: pyarrow.int64(), float: pyarrow.float64(), str: pyarrow.string(), bool: pyarrow.bool_(),
            datetime: pyarrow.timestamp("us", tz="UTC"),
        }  # fmt: skip
        self._arrow, self._fields = pyarrow, fields
        self._schema = pyarrow.schema([(name, kinds[kind]) for name, kind in fields.items()])
        self._writer = parquet.ParquetWriter(file, self._schema, compression="zstd")
        self._held: list[Row] = []

    def write(self, row: Row) -> None:
        self._held.append({name: json.dumps(v) if isinstance(v := row[name], dict) else v for name in self._fields})
        if len(self._held) >= self.ROWS:
            self._flush()

    def _flush(self) -> None:
        if self._held:
            self._writer.write_table(self._arrow.Table.from_pylist(self._held, self._schema))
            self._held.clear()

    def close(self) -> None:
        self._flush()
        self._writer.close()


def _text(value: Any) -> Any:
    if isinstance(value, bool):
        return "true" if value else "false"
    return json.dumps(value) if isinstance(value, dict) else "" if value is None else json_value(value)


@contextmanager
def whole_file(target: Path, replace: bool, binary: bool) -> Iterator[IO[Any]]:
    """A file that appears under its name when the block ends well, and else not at all.

    Raises FileExistsError, at the end too, where there is one by then and it is not to be replaced.
    """
    if target.exists() and not replace:
        raise FileExistsError(target)
    making = target.with_name(f".{target.name}.making-{os.getpid()}")
    try:
        with open(making, "xb" if binary else "x", newline=None if binary else "") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        if replace:
            making.replace(target)
        else:
            os.link(making, target)
    finally:
        with suppress(FileNotFoundError):
            making.unlink()
