"""Rows 23 to 27, 30 to 32: submissions sent often, cancels that race, a database that is locked, full, damaged or another's."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest
from databases import over
from measuring import Measured
from rows import fault
from sqlalchemy import text

from orchestrator.control.backend import LogChunk
from orchestrator.history.errors import (
    DatabaseBusy,
    DatabaseDamaged,
    DatabaseUnreachable,
    KeyUsed,
    StaleEpoch,
    StoreError,
)
from orchestrator.history.filters import RunFilter
from orchestrator.history.store import Store
from orchestrator.scheduling.lifecycle import TERMINAL, State
from orchestrator.testing.cluster import FakeCluster
from orchestrator.testing.controlling import controlling, job, reaches, until

Story = Callable[[], Awaitable[None]]


# --- what users send twice ---


@fault(23)
@pytest.mark.representative
def test_a_key_sent_twenty_times_at_once_is_one_run_and_with_another_job_it_is_refused(tmp_path: Path) -> None:
    async def story() -> None:
        async with controlling(tmp_path, FakeCluster(a=1)) as controller:
            sent = [controller.submit(job(key="k"), {}) for _ in range(20)]
            answers = await asyncio.gather(*sent)
            assert len({run.id for run, _ in answers}) == 1
            assert sum(created for _, created in answers) == 1
            with pytest.raises(
                KeyUsed, match=f"that of run {answers[0][0].id} \\(job\\), which is another job \\(another env\\)"
            ):
                await controller.submit(job(key="k", env={"A": "1"}), {})
            assert len(await controller.runs(RunFilter())) == 1

    asyncio.run(story())


@fault(23)
@pytest.mark.representative
def test_a_job_sent_twice_without_a_key_is_two_runs_and_the_second_names_the_first(tmp_path: Path) -> None:
    async def story() -> None:
        async with controlling(tmp_path, FakeCluster(a=1)) as controller:
            first, _ = await controller.submit(job(), {})
            assert controller.twin_of(first) is None
            other, _ = await controller.submit(job(name="other"), {})
            assert controller.twin_of(other) is None
            second, created = await controller.submit(job(), {})
            assert created
            twin = controller.twin_of(second)
            assert twin is not None
            assert twin.id == first.id

    asyncio.run(story())


@fault(24)
@pytest.mark.representative
@pytest.mark.parametrize("state", [State.QUEUED, State.STARTING, State.RUNNING, State.STOPPING, State.CANCELLED])
def test_twenty_cancels_at_once_give_one_end(tmp_path: Path, state: State) -> None:
    async def story() -> None:
        cluster = FakeCluster(a=1)
        agent = cluster.agents["a"]
        async with controlling(tmp_path, cluster) as controller:
            if state is State.QUEUED:
                controller.start_no_more()
            elif state is State.STARTING:
                agent.slow_start = asyncio.Event()
            agent.obeys_stop = state is not State.STOPPING
            run, _ = await controller.submit(job(), {})
            if state in (State.STOPPING, State.CANCELLED):
                await reaches(controller, run, State.RUNNING)
                await controller.cancel(str(run.id))
            await reaches(controller, run, state)
            answers = await asyncio.gather(*(controller.cancel(str(run.id)) for _ in range(20)), return_exceptions=True)
            # One that comes when another's is on record already has nothing to do, and says so.
            assert all(not isinstance(answer, Exception) or "cannot take" in str(answer) for answer in answers)
            if agent.slow_start is not None:
                agent.slow_start.set()
            agent.obeys_stop = True
            if (run.id, 1) in agent.parts:
                agent.end(run.id, 1, -15)
            ended = await reaches(controller, run, State.CANCELLED)
            assert [event.state for event in ended.events if event.state in TERMINAL] == [State.CANCELLED]
            assert controller.runtime.store.verify(run.id)

    asyncio.run(story())


# --- the database is held ---

HOLDS = """
import sqlite3, sys, time
held = sqlite3.connect(sys.argv[1], isolation_level=None)
held.execute("BEGIN IMMEDIATE")
print("held", flush=True)
time.sleep(60)
"""


@fault(25)
@pytest.mark.representative
def test_who_holds_the_database_for_too_long_is_named_and_nothing_is_lost(tmp_path: Path, measured: Measured) -> None:
    async def story() -> None:
        cluster = FakeCluster(a=2)
        path = tmp_path / "orch.db"
        async with over(f"sqlite:///{path}", tmp_path, cluster, 0.3) as controller:
            run, _ = await controller.submit(job(), {})
            await reaches(controller, run, State.RUNNING)
            holder = subprocess.Popen([sys.executable, "-c", HOLDS, str(path)], stdout=subprocess.PIPE)
            try:
                assert holder.stdout is not None
                await asyncio.to_thread(holder.stdout.readline)
                measured.injected()
                # The run ends meanwhile; it is read all along, and its node is heard all along.
                cluster.agents["a"].end(run.id, 1)
                with pytest.raises(
                    DatabaseBusy, match=rf"is busy: process {holder.pid} \(python.*\) held it"
                ) as refused:
                    await controller.submit(job(), {})
                assert refused.value.exit_code == 6
                measured.detected()
                assert (await controller.find(str(run.id))).state is State.RUNNING
                assert [alarm.kind for alarm in controller.runtime.alarms] == ["database"]
                sent = controller.roster.nodes["a"].sync_sent
                await until(lambda: controller.roster.nodes["a"].sync_sent > sent)
                assert controller.roster.nodes["a"].up
            finally:
                holder.kill()
                holder.wait()
                holder.stdout.close()  # type: ignore[union-attr]
            measured.injected()
            await reaches(controller, run, State.SUCCEEDED)
            measured.recovered()
            await until(lambda: not list(controller.runtime.alarms))

    asyncio.run(story())


# --- the disk is full ---


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MiB."""
    if os.geteuid() != 0:
        pytest.skip("needs root, to mount a small file system")
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", folder], capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"no file system can be mounted here: {mounted.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


def fill(folder: Path) -> Path:
    """Takes all the room that is left."""
    filler = folder / "filler"
    with filler.open("wb", buffering=0) as file, suppress(OSError):
        for size in (65536, 4096, 1):
            with suppress(OSError):
                while True:
                    file.write(b"x" * size)
    return filler


@fault(26)
@pytest.mark.representative
def test_a_full_disk_stops_no_run_and_what_happened_meanwhile_is_written_once_there_is_room(
    small_disk: Path, tmp_path: Path, measured: Measured
) -> None:
    async def story() -> None:
        cluster = FakeCluster(a=2)
        url = f"sqlite:///{small_disk}/orch.db"
        async with over(url, tmp_path, cluster, 1.0) as controller:
            ends, goes_on = [(await controller.submit(job(name=name), {}))[0] for name in ("ends", "goes-on")]
            for run in (ends, goes_on):
                await reaches(controller, run, State.RUNNING)
            filler = fill(small_disk)
            measured.injected()
            refused: list[StoreError] = []
            while not refused:  # what room the log of the database has left is used up first
                try:
                    await controller.submit(job(name="x" * 60, env={"FILLS": "y" * 4000}), {})
                except StoreError as error:
                    refused.append(error)
            assert isinstance(refused[0], DatabaseUnreachable)
            assert (refused[0].exit_code, "disk is full" in str(refused[0])) == (6, True)
            measured.detected()
            cluster.agents["a"].end(ends.id, 1)
            await until(lambda: not controller.gangs.of(ends))
            assert [alarm.kind for alarm in controller.runtime.alarms] == ["database"]
            assert (await controller.find(str(goes_on.id))).state is State.RUNNING
            sent = controller.roster.nodes["a"].sync_sent
            await until(lambda: controller.roster.nodes["a"].sync_sent > sent)
            assert cluster.agents["a"].parts[goes_on.id, 1].stopped_with is None
            filler.unlink()
            measured.injected()
            await reaches(controller, ends, State.SUCCEEDED)
            measured.recovered()
            assert (await controller.find(str(goes_on.id))).state is State.RUNNING
        with closing(sqlite3.connect(small_disk / "orch.db")) as raw:
            assert raw.execute("PRAGMA integrity_check").fetchone() == ("ok",)

    asyncio.run(story())


@fault(27)
@pytest.mark.representative
def test_logs_for_which_there_is_no_room_are_dropped_and_the_run_says_so(small_disk: Path, tmp_path: Path) -> None:
    async def story() -> None:
        (tmp_path / "logs").symlink_to(small_disk)
        cluster = FakeCluster(a=1)
        async with controlling(tmp_path, cluster) as controller:
            run, _ = await controller.submit(job(), {})
            await reaches(controller, run, State.RUNNING)
            take = controller.gangs.capture.take
            take(LogChunk(run.id, 1, 0, 0, b"first\n", time.time()))
            filler = fill(small_disk)
            for number in range(3):
                take(LogChunk(run.id, 1, 0, 6 + number * 100_000, b"x" * 100_000, time.time()))
            (alarm,) = controller.runtime.alarms
            assert (alarm.kind, "No space left on device" in alarm.text) == ("logs", True)
            assert (await controller.find(str(run.id))).state is State.RUNNING
            filler.unlink()
            take(LogChunk(run.id, 1, 0, 300_006, b"last\n", time.time()))
            assert not list(controller.runtime.alarms)

            async def said() -> bool:
                events = (await controller.find(str(run.id))).events
                return events[-1].reason == "300,000 bytes of its log are lost: the controller's disk took no more"

            await until(said)
            lines = [line.text for line in controller.logs.lines(run.id, 1, 0, whole=True)]
            assert lines[0] == "first"
            assert lines[-1].endswith(" [orch] a part of the log is lost here: last")

    asyncio.run(story())


# --- two controllers ---


@fault(30)
@pytest.mark.representative
def test_a_second_controller_shuts_the_first_out_which_is_told_by_whom_and_changes_nothing_more(
    url: str, tmp_path: Path, measured: Measured
) -> None:
    async def story() -> None:
        cluster = FakeCluster(a=1)
        ended: list[bool] = []
        async with over(url, tmp_path, cluster, 5.0, superseded=lambda: ended.append(True)) as first:
            run, _ = await first.submit(job(), {})
            await reaches(first, run, State.RUNNING)
            measured.injected()
            async with over(url, tmp_path, cluster, 5.0) as second:
                with pytest.raises(
                    StaleEpoch, match=rf"Another controller \(process {os.getpid()} on .+, epoch 2\) owns"
                ):
                    await first.submit(job(), {})
                with pytest.raises(StaleEpoch):
                    await first.cancel(str(run.id))
                await until(lambda: bool(ended))
                measured.detected()
                again = await reaches(second, run, State.RUNNING)
                assert len(again.attempts) == 1
                assert len(await second.runs(RunFilter())) == 1
                await second.cancel(str(run.id))
                await reaches(second, run, State.CANCELLED)

    asyncio.run(story())


# --- a file that is not what it was ---


@fault(31)
@pytest.mark.representative
@pytest.mark.parametrize("copies", [False, True], ids=["without a copy", "with a copy"])
def test_a_damaged_database_is_refused_and_it_is_said_where_a_copy_is(
    template: Callable[[Path], str], tmp_path: Path, copies: bool
) -> None:
    url = template(tmp_path)
    copy = tmp_path / "orch.db.schema-0003.bak"
    if copies:
        shutil.copy(tmp_path / "orch.db", copy)
    with (tmp_path / "orch.db").open("r+b") as file:
        file.truncate(8 * 4096)
    before = (tmp_path / "orch.db").read_bytes()
    with pytest.raises(DatabaseDamaged) as refused:
        Store.open(url)
    assert refused.value.exit_code == 8
    assert (str(copy) if copies else ".dump") in str(refused.value)
    assert (tmp_path / "orch.db").read_bytes() == before


UPGRADES = """
import os, sys
from sqlalchemy import event
from orchestrator.history import database
from orchestrator.history.store import Store

left = int(sys.argv[2])
def count(connection, cursor, statement, parameters, context, executemany):
    global left
    left -= 1
    if left == 0:
        os.kill(os.getpid(), 9)
made = database.create_engine
def counted(*arguments, **options):
    engine = made(*arguments, **options)
    event.listen(engine, "after_cursor_execute", count)
    return engine
database.create_engine = counted
Store.open(sys.argv[1]).close()
"""


@fault(32)
@pytest.mark.parametrize("statements", [5, 25, 60])
def test_an_upgrade_that_is_killed_leaves_the_database_whole_and_a_copy_of_before(
    tmp_path: Path, raw: Any, statements: int, new_sqlite: Callable[..., str]
) -> None:
    from orchestrator.history.migrations import upgrade

    url = f"sqlite:///{tmp_path}/orch.db"
    with raw(url) as connection:
        upgrade(connection, "0003")
    killed = subprocess.run([sys.executable, "-c", UPGRADES, url, str(statements)])
    assert killed.returncode == -signal.SIGKILL
    with raw(url) as connection:
        assert connection.execute(text("PRAGMA integrity_check")).scalar() == "ok"
        assert connection.execute(text("SELECT version_num FROM orch_version")).scalar() == "0003"
    Store.open(url).close()
    copy = tmp_path / "orch.db.schema-0003.bak"
    with raw(f"sqlite:///{copy}") as connection:
        assert connection.execute(text("SELECT version_num FROM orch_version")).scalar() == "0003"
    assert copy.stat().st_mode & 0o777 == 0o600
    assert not list(tmp_path.glob(".*making*"))
