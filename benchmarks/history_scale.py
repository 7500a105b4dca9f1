"""How long the history takes to answer once it is large: a year of 1,000,000 runs, on SQLite and PostgreSQL.

`build` fills a database with benchmarks/history_rows.py (fixed seed); `measure` runs each command as a process of its own, from
the start of the interpreter to its end, N times, through a controller that serves this database and without one, where the
command reads the database itself. `plans` prints what the databases say that they do for the statements behind each command.

    python benchmarks/history_scale.py build sqlite:////tmp/scale/orch.db
    python benchmarks/history_scale.py measure sqlite:////tmp/scale/orch.db --record
"""

from __future__ import annotations

import argparse
import asyncio
import io
import itertools
import json
import os
import resource
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import date, datetime
from pathlib import Path
from typing import Any

import psutil
from harness import REPOSITORY, record, spread, table
from history_rows import Year
from sqlalchemy import event

from orchestrator.history.database import Database, open_database
from orchestrator.history.schema import METADATA

BATCH = 20_000
LIMIT_S = 0.5
COMMANDS = (
    ("runs --user user007 --state failed", "two filters"),
    ("runs --tag sweep=s1200 --state succeeded", "a rare tag and a common state"),
    ("runs --node n017 --failure node_lost --since 2026-06-01", "a node and a kind of failure"),
    ("runs --name resnet-* --gpu a100 --sort -samples_per_s", "a pattern and a GPU model, by throughput"),
    ("runs --team team03 --state succeeded --columns id,name,samples_per_s,allocated_s", "two common filters"),
    ("runs --sort -allocated_s --limit 20", "the most expensive of all"),
    ("runs --by team,week", "groups over everything"),
    ("runs --by user --since 2026-09-01 --state failed", "groups of a part"),
    ("runs --by name --sort -allocated_s", "groups by name"),
    ("show 777777", "one run whole"),
    ("compare 777777", "a run against its like"),
    ("compare 777777 777700", "two runs"),
)


def build(url: str, runs: int) -> None:
    """Creates the database at `url` and fills it: indices last, foreign keys not checked meanwhile."""
    began = time.monotonic()
    database = open_database(url)
    fill = _fill_sqlite if url.startswith("sqlite") else _fill_postgres
    try:
        fill(database, runs)
    finally:
        database.close()
    print(f"{runs:,} runs in {time.monotonic() - began:.0f} s")


def _chunks(runs: int) -> Iterator[tuple[str, list[tuple[Any, ...]]]]:
    held: dict[str, list[tuple[Any, ...]]] = defaultdict(list)
    for name, row in Year(runs).rows():
        held[name].append(row)
        if len(held[name]) >= BATCH:
            yield name, held.pop(name)
    yield from held.items()


def _columns(name: str) -> list[str]:
    return [column.name for column in METADATA.tables[name].columns]


def _fill_sqlite(database: Database, runs: int) -> None:
    with database.plain() as connection:
        connection.execute("PRAGMA foreign_keys=OFF")
        connection.execute("PRAGMA synchronous=OFF")
        connection.execute("PRAGMA cache_size=-800000")
        later = connection.execute(
            "SELECT name, sql FROM sqlite_master WHERE type = 'index' AND sql IS NOT NULL"
        ).fetchall()
        for name, _ in later:
            connection.execute(f"DROP INDEX {name}")
        for name, rows in _chunks(runs):
            connection.execute("BEGIN")
            marks = ", ".join("?" * len(_columns(name)))
            connection.executemany(
                f"INSERT INTO {name} VALUES ({marks})".replace(
                    "INTO " + name, f"INTO {name} ({', '.join(map(_quoted, _columns(name)))})"
                ),
                ([_sqlite(v) for v in row] for row in rows),
            )
            connection.execute("COMMIT")
        for _, sql in later:
            connection.execute(sql)
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")


def _quoted(name: str) -> str:
    return f'"{name}"'


def _sqlite(value: Any) -> Any:
    if isinstance(value, datetime):
        return value.strftime("%Y-%m-%d %H:%M:%S.%f")
    return value.isoformat() if isinstance(value, date) else value


def _fill_postgres(database: Database, runs: int) -> None:
    with database.write() as outer:
        connection = outer.connection.driver_connection
        cursor = connection.cursor()
        cursor.execute("SET LOCAL session_replication_role = replica")
        cursor.execute("SET LOCAL maintenance_work_mem = '1GB'")
        cursor.execute(
            "SELECT c.relname, pg_get_indexdef(i.indexrelid) FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid"
            " JOIN pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname = current_schema() AND NOT EXISTS"
            " (SELECT 1 FROM pg_constraint k WHERE k.conindid = i.indexrelid)"
            " AND c.relname LIKE ANY (ARRAY['runs_%', 'attempt%', 'allocations_%', 'events_%', 'tags_%', 'run_s%', 'gpu_time%'])"
        )
        later = cursor.fetchall()
        for name, _ in later:
            cursor.execute(f"DROP INDEX {name}")
        sequence = itertools.count(1)
        for name, rows in _chunks(runs):
            with cursor.copy(f"COPY {name} ({', '.join(map(_quoted, _columns(name)))}) FROM STDIN") as copy:
                for row in rows:
                    copy.write_row((next(sequence), *row[1:]) if name == "events" else row)
        for _, sql in later:
            cursor.execute(sql)
        for name, column in (("runs", "id"), ("events", "sequence")):
            cursor.execute(
                f"SELECT setval(pg_get_serial_sequence('{name}', '{column}'), (SELECT max({column}) FROM {name}))"
            )
    with database.plain() as connection:
        connection.autocommit = True
        connection.execute("VACUUM ANALYZE")


@contextmanager
def serving(home: Path, url: str) -> Iterator[psutil.Process]:
    """A controller without a cluster, in a process of its own, that answers for this database."""
    process = subprocess.Popen([sys.executable, __file__, "serve", url, "--home", str(home)], cwd=REPOSITORY)
    try:
        deadline = time.monotonic() + 120
        while not (home / "controller.json").exists():
            if time.monotonic() > deadline or process.poll() is not None:
                raise RuntimeError("the controller did not start")
            time.sleep(0.1)
        yield psutil.Process(process.pid)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)
        (home / "controller.json").unlink(missing_ok=True)


def serve(url: str, home: Path) -> None:
    """The controller's API over a store and no cluster; until SIGTERM."""
    from aiohttp import web

    from orchestrator.control.api import Api
    from orchestrator.control.code_store import CodeStore
    from orchestrator.control.controller import Controller
    from orchestrator.control.runtime import Settings
    from orchestrator.history.store import Store
    from orchestrator.testing.cluster import FakeCluster

    async def run() -> None:
        store = Store(open_database(url, readonly=True), readonly=True)
        controller = Controller(store, FakeCluster(), Settings(home, home / "storage"))

        async def down() -> None: ...

        api = Api(controller, CodeStore(home / "code", 1 << 20), lambda: "token", dict, down)
        runner = web.AppRunner(api.app())
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        port = runner.addresses[0][1]
        (home / "token").touch(mode=0o600)
        (home / "token").write_text("token")
        making = home / ".controller.json"
        making.write_text(json.dumps({"url": f"http://127.0.0.1:{port}", "pid": os.getpid()}))
        making.rename(home / "controller.json")
        stop = asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
        await stop.wait()
        await runner.cleanup()
        await controller.close()
        store.close()

    asyncio.run(run())


def cpu_s(trees: Sequence[psutil.Process]) -> float:
    """Processor seconds of these processes, of those that they wait for, and of their living children."""
    used = 0.0
    for root in trees:
        for process in (root, *root.children(recursive=True)):
            with suppress(psutil.Error):
                times = process.cpu_times()
                used += times.user + times.system
        with suppress(psutil.Error):
            times = root.cpu_times()
            used += times.children_user + times.children_system
    return used


def timed(
    home: Path, url: str, words: Sequence[str], n: int, others: Sequence[psutil.Process]
) -> list[tuple[float, float]]:
    """Seconds, and processor seconds of all that takes part, of each call but the first, which fills the caches."""
    env = {k: v for k, v in os.environ.items() if not k.startswith("ORCH_")}
    env |= {"ORCH_HOME": str(home), "ORCH_DATABASE": url, "PYTHONPATH": str(REPOSITORY)}
    took = []
    for _ in range(n + 1):
        before, used = cpu_s(others), resource.getrusage(resource.RUSAGE_CHILDREN)
        began = time.perf_counter()
        done = subprocess.run([sys.executable, "-m", "cli", *words], env=env, cwd=home, capture_output=True, text=True)
        seconds = time.perf_counter() - began
        now = resource.getrusage(resource.RUSAGE_CHILDREN)
        own = now.ru_utime + now.ru_stime - used.ru_utime - used.ru_stime
        took.append((seconds, own + cpu_s(others) - before))
        if done.returncode:
            raise RuntimeError(f"{' '.join(words)}: {done.stderr}")
    return took[1:]


def postmaster() -> list[psutil.Process]:
    """The PostgreSQL server of this machine, if it has one."""
    found = [one for one in psutil.process_iter(["name"]) if one.info["name"] == "postgres"]
    return [one for one in found if (parent := one.parent()) is None or parent.name() != "postgres"]


def measure(url: str, n: int) -> str:
    sqlite = url.startswith("sqlite")
    servers = [] if sqlite else postmaster()
    with tempfile.TemporaryDirectory(prefix="ohs-", dir="/tmp") as folder:
        home = Path(folder)
        alone = {command: timed(home, url, command.split(), n, servers) for command, _ in COMMANDS}
        with serving(home, url) as controller:
            served = {command: timed(home, url, command.split(), n, [*servers, controller]) for command, _ in COMMANDS}
    missed = [
        command for command, took in served.items() if statistics.median(seconds for seconds, _ in took) > LIMIT_S
    ]
    rows = [
        [
            f"`orch {command}`",
            what,
            *(spread([one[index] for one in took[command]], ".2f") for took in (served, alone) for index in (0, 1)),
        ]
        for command, what in COMMANDS
    ]
    kind = "SQLite" if sqlite else "PostgreSQL"
    verdict = "met by all" if not missed else f"missed by {', '.join(missed)}"
    titles = ["", "", "through the controller, s", "of which CPU", "without one, s", "of which CPU"]
    return (
        f"{kind}; wanted at most {LIMIT_S:g} s through the controller: {verdict}. CPU: of the command, the controller and the"
        f" database server together; median (least–most) of {n}.\n\n{table(titles, rows)}"
    )


def plans(url: str) -> str:
    """What the database says that it does, for every SELECT behind each command that takes more than a millisecond."""
    from orchestrator.history.store import Store

    said = io.StringIO()
    database = open_database(url, readonly=True)
    store = Store(database, readonly=True)
    heard: list[tuple[str, Any]] = []
    event.listen(
        database.reader,
        "before_cursor_execute",
        lambda c, u, statement, values, x, m: heard.append((statement, values)),
    )
    from history_questions import QUESTIONS

    try:
        for title, ask in QUESTIONS:
            heard.clear()
            began = time.perf_counter()
            ask(store)
            said.write(f"\n### {title} ({(time.perf_counter() - began) * 1000:.0f} ms)\n")
            for statement, values in list(heard):
                if not statement.lstrip().upper().startswith(("SELECT", "WITH")):
                    continue
                with database.read() as connection:
                    began = time.perf_counter()
                    connection.exec_driver_sql(statement, values).fetchall()
                    took = (time.perf_counter() - began) * 1000
                    sqlite = connection.dialect.name == "sqlite"
                    explain = "EXPLAIN QUERY PLAN " if sqlite else "EXPLAIN "
                    lines = connection.exec_driver_sql(explain + statement, values).fetchall()
                shown = "\n".join(str(line[-1]) for line in lines)
                said.write(f"\n{' '.join(statement.split())[:300]}\n-- {took:.1f} ms\n{shown}\n")
    finally:
        store.close()
    return said.getvalue()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("build", "measure", "plans", "serve"))
    parser.add_argument("url")
    parser.add_argument("--runs", type=int, default=1_000_000)
    parser.add_argument("-n", type=int, default=5)
    parser.add_argument("--home", type=Path)
    parser.add_argument("--record", action="store_true", help="write the results to docs/performance.md")
    given = parser.parse_args()
    if given.what == "build":
        build(given.url, given.runs)
    elif given.what == "serve":
        serve(given.url, given.home)
    elif given.what == "plans":
        print(plans(given.url))
    else:
        kind = "SQLite" if given.url.startswith("sqlite") else "PostgreSQL"
        with suppress(BrokenPipeError):
            record(f"A million runs: {kind}", measure(given.url, given.n), keep=given.record)


if __name__ == "__main__":
    main()
