"""Series as ageing leaves them, made inside the database from the attempts that benchmarks/history_rows.py put there.

Every attempt of the last `days` has rows of its gang, of each rank and of each GPU, in the length that
orchestrator/history/series.py folds an attempt of its duration into once it has ended, on the clock as folded rows are. The
database makes the rows itself, because sending them takes ten times as long.
"""

from __future__ import annotations

from datetime import timedelta

from history_rows import END
from sqlalchemy import func, select, text

from orchestrator.history.database import Database
from orchestrator.history.models import RunRow
from orchestrator.history.series import DETAIL

STEP = 5_000
"""Runs in one transaction."""
LONGEST = 20_000
"""More stretches than any series here has."""

# `one` is what has a series (a gang, a rank, a GPU), from second to second; `stretch` its rows: the first begins with it.
STRETCHES = """
    WITH one AS ({one}), sized AS (
        SELECT one.*, CASE WHEN until - since <= {whole[0]} THEN {lengths[0]} WHEN until - since <= {whole[1]} THEN {lengths[1]}
                      ELSE {lengths[2]} END AS seconds FROM one),
    stretch AS (
        SELECT sized.*, CASE WHEN k = 0 THEN since ELSE (since / seconds + k) * seconds END AS at,
               CAST(0.9 + ((run_id * 7919 + k * 104729) % 1000) / 5000.0 AS double precision) AS noise
        FROM sized CROSS JOIN stretch_numbers WHERE k <= until / seconds - since / seconds)
    INSERT INTO {table} ({columns}) SELECT {values} FROM stretch"""

NUMBERS = """
    INSERT INTO stretch_numbers
    WITH RECURSIVE n (k) AS (SELECT 0 UNION ALL SELECT k + 1 FROM n WHERE k < :most) SELECT k FROM n"""
GANG = """
    SELECT a.run_id, a.number AS attempt, {since}, {until}, p.step_time, p.samples_per_s
    FROM attempts a JOIN attempt_progress p ON p.run_id = a.run_id AND p.attempt = a.number
    WHERE a.run_id >= :first AND a.run_id < :last"""
GPU = """
    SELECT a.run_id, a.attempt, a.node, a.gpu, {since}, {until}, p.step_time,
           row_number() OVER (PARTITION BY a.run_id, a.attempt ORDER BY a.node, a.gpu) - 1 AS rank
    FROM allocations a JOIN attempt_progress p ON p.run_id = a.run_id AND p.attempt = a.attempt
    WHERE a.run_id >= :first AND a.run_id < :last"""

TABLES: dict[str, tuple[str, dict[str, str]]] = {
    "gang_samples": (
        GANG,
        {
            "measured_ms": "seconds * 1000",
            "steps": "CAST(seconds / step_time AS bigint)",
            "samples": "CAST(seconds * samples_per_s AS bigint)",
            "step_time": "step_time * noise",
            "step_time_p50": "step_time * noise",
            "step_time_p99": "step_time * noise * 1.3",
            "rank_time_min": "step_time * noise * 0.97",
            "rank_time_max": "step_time * noise * 1.03",
        },
    ),
    "rank_samples": (
        GPU,
        {
            "rank": "rank",
            "measured_ms": "seconds * 1000",
            "steps": "CAST(seconds / step_time AS bigint)",
            "samples": "CAST(seconds / step_time AS bigint) * 64",
            "step_time": "step_time",
            "own_time": "step_time * noise",
            "data_wait_ms": "seconds * 20",
        },
    ),
    "gpu_samples": (
        GPU,
        {
            "node": "node",
            "gpu": "gpu",
            "looks": "seconds / 5",
            "utilization": "85 * noise",
            "memory_mib": "60000.0",
            "power_w": "600 * noise",
            "temperature_c": "65.0",
            "sm_clock_mhz": "1900.0",
            "throttled": "0.0",
        },
    ),
}


def fill(database: Database, days: float) -> int:
    """Adds the series of the runs that were submitted in the last `days` of the year; gives how many rows there are."""
    sqlite = database.reader.dialect.name == "sqlite"
    seconds = "CAST(strftime('%s', a.{}) AS bigint)" if sqlite else "CAST(extract(epoch FROM a.{}) AS bigint)"
    at = "datetime(at, 'unixepoch') || '.000000'" if sqlite else "to_timestamp(at)"
    with database.writer.connect() as connection:
        if sqlite:
            for pragma in ("foreign_keys=OFF", "synchronous=OFF", "cache_size=-400000"):
                connection.connection.driver_connection.execute(f"PRAGMA {pragma}")
        with connection.begin():
            if not sqlite:
                connection.execute(text("SET session_replication_role = replica"))
            connection.execute(text("CREATE TEMP TABLE stretch_numbers (k INTEGER PRIMARY KEY)"))
            connection.execute(text(NUMBERS), {"most": LONGEST})
            first, last = connection.execute(
                select(func.min(RunRow.id), func.max(RunRow.id)).where(
                    RunRow.submitted_at >= END - timedelta(days=days)
                )
            ).one()
        for start in range(first, last + 1, STEP):
            bounds = {"first": start, "last": min(start + STEP, last + 1)}
            with connection.begin():
                for table, (source, figures) in TABLES.items():
                    names = ("started_at", "ended_at") if source is GANG else ("since", "released_at")
                    since, until = (seconds.format(name) for name in names)
                    values = {"run_id": "run_id", "attempt": "attempt", "at": at, "seconds": "seconds", **figures}
                    statement = STRETCHES.format(
                        one=source.format(since=f"{since} AS since", until=f"{until} AS until"),
                        whole=[int(most) for most in DETAIL[table].whole],
                        lengths=DETAIL[table].lengths,
                        table=table,
                        columns=", ".join(values),
                        values=", ".join(values.values()),
                    )
                    connection.execute(text(statement), bounds)
        connection.invalidate()  # its settings are not for others
    with database.read() as connection:
        return sum(connection.execute(text(f"SELECT count(*) FROM {table}")).scalar() or 0 for table in TABLES)
