"""Rows 28 and 29: a PostgreSQL server that is restarted, killed, stopped or blocked."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
from databases import over
from measuring import Measured
from rows import fault
from served import Answer, Served, serving
from sqlalchemy import text

from orchestrator.history.errors import (
    DatabaseBusy,
    DatabaseUnreachable,
    StoreError,
)
from orchestrator.history.filters import RunFilter
from orchestrator.scheduling.lifecycle import State
from orchestrator.testing.cluster import FakeCluster
from orchestrator.testing.controlling import job, reaches, until


@pytest.fixture
def server(postgres: str) -> Callable[..., None]:
    """Runs pg_ctl on the server of this session."""
    folder = Path(postgres.partition("?host=")[2])
    programs = next(iter(sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)), Path("/usr/bin"))
    found = shutil.which("pg_ctl") or str(programs / "pg_ctl")
    run_as: dict[str, Any] = {"user": "postgres", "group": "postgres"} if os.geteuid() == 0 else {}

    def ctl(*words: str) -> None:
        command = [found, "-D", str(folder / "data"), "-w", "-l", str(folder / "log"), *words]
        subprocess.run(command, check=True, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.STDOUT, **run_as)

    def options() -> str:
        return f"-k {folder} -c listen_addresses= -c fsync=off -c max_connections=50"

    def act(what: str) -> None:
        pid = int((folder / "data" / "postmaster.pid").read_text().split()[0])
        if what == "restarted":
            ctl("-m", "fast", "-o", options(), "restart")
        elif what == "killed":
            os.kill(pid, signal.SIGKILL)
            deadline = time.monotonic() + 30
            while True:  # it is refused as long as a backend of the one that was killed lives
                try:
                    ctl("-o", options(), "start")
                    return
                except subprocess.CalledProcessError:
                    assert time.monotonic() < deadline
                    time.sleep(0.2)

    return act


@pytest.mark.postgres
@pytest.mark.parametrize("what", [pytest.param("restarted", marks=fault(28)), pytest.param("killed", marks=fault(29))])
def test_a_server_that_comes_back_has_lost_nothing_that_was_acknowledged_and_hears_of_what_happened(
    new_postgres: Callable[[], str], server: Callable[[str], None], tmp_path: Path, measured: Measured, what: str
) -> None:
    async def story() -> None:
        cluster = FakeCluster(a=2)
        acknowledged: list[int] = []
        refused: list[StoreError] = []
        async with over(new_postgres(), tmp_path, cluster, 1.0) as controller:
            run, _ = await controller.submit(job(name="first"), {})
            await reaches(controller, run, State.RUNNING)
            gone = asyncio.create_task(asyncio.to_thread(server, what))
            measured.injected()
            number = 0
            while not gone.done() or number < 20:
                number += 1
                try:
                    acknowledged.append((await controller.submit(job(name=f"n{number}"), {}))[0].id)
                except (DatabaseUnreachable, DatabaseBusy) as error:
                    refused.append(error)
                    await asyncio.sleep(0.05)
                if number == 3:
                    cluster.agents["a"].end(run.id, 1)
            await gone
            measured.recovered()
            measured.note(f"{len(refused)} of {number} submissions refused with exit code 6 while it was away")
            await reaches(controller, run, State.SUCCEEDED)
            there = {run.id for run in await controller.runs(RunFilter(limit=10_000))}
            assert there >= set(acknowledged)
            for one in acknowledged:
                assert controller.runtime.store.verify(one)

    asyncio.run(story())


@pytest.mark.postgres
@fault(29)
def test_a_server_that_answers_nothing_is_an_alarm_and_stops_no_heartbeat(
    new_postgres: Callable[[], str], raw: Any, tmp_path: Path, measured: Measured
) -> None:
    async def story() -> None:
        cluster = FakeCluster(a=2)
        url = new_postgres()
        async with over(url, tmp_path, cluster, 1.0) as controller:
            run, _ = await controller.submit(job(), {})
            await reaches(controller, run, State.RUNNING)
            with raw(url) as connection:
                connection.execute(text("BEGIN"))
                connection.execute(text("LOCK TABLE control IN ACCESS EXCLUSIVE MODE"))
                measured.injected()
                with pytest.raises(DatabaseBusy) as refused:
                    await controller.submit(job(), {})
                measured.detected()
                assert refused.value.exit_code == 6
                assert [alarm.kind for alarm in controller.runtime.alarms] == ["database"]
                sent = controller.roster.nodes["a"].sync_sent
                await until(lambda: controller.roster.nodes["a"].sync_sent > sent)
                connection.execute(text("COMMIT"))
            measured.injected()
            await controller.submit(job(), {})
            measured.recovered()
            assert not list(controller.runtime.alarms)

    asyncio.run(story())


@contextmanager
def frozen(postgres: str) -> Iterator[None]:
    """Every process of the server of this session stands still."""
    folder = Path(postgres.partition("?host=")[2])
    head = psutil.Process(int((folder / "data" / "postmaster.pid").read_text().split()[0]))
    # The one that would fork others first.
    stopped = [head]
    head.suspend()
    try:
        for process in head.children():
            process.suspend()
            stopped.append(process)
        yield
    finally:
        for process in reversed(stopped):
            process.resume()


def follow_to_the_end(api: Served, run: int) -> dict[str, Any]:
    last: dict[str, Any] = json.loads(api("GET", f"/api/v1/runs/{run}/follow").text.splitlines()[-1])["end"]
    return last


@pytest.mark.postgres
@fault(29)
def test_while_a_server_stands_still_each_call_ends_with_6_and_what_happened_is_written_once_it_goes_on(
    postgres: str, new_postgres: Callable[[], str], tmp_path: Path, measured: Measured
) -> None:
    url = new_postgres()
    cluster = FakeCluster(a=2)
    agent = cluster.agents["a"]
    with serving(tmp_path, cluster, url) as api:
        controller = api.controller

        def submit(name: str) -> Answer:
            spec = {"name": name, "run": "train.py", "workers": 1}
            return api("POST", "/api/v1/runs", {"spec": spec, "user": "ana", "key": name})

        def wait(condition: Callable[[], object]) -> None:
            api.do(lambda: until(condition))

        runs = [submit(name).json["id"] for name in ("ends", "goes-on")]
        wait(lambda: all((run, 1) in agent.parts for run in runs))
        sent = controller.roster.nodes["a"].sync_sent
        with frozen(postgres):
            measured.injected()
            with ThreadPoolExecutor(4) as threads:
                asked = time.monotonic()
                answers = [threads.submit(submit, "new")] + [
                    threads.submit(api, *call)
                    for call in (
                        ("POST", f"/api/v1/runs/{runs[1]}/cancel"),
                        ("GET", f"/api/v1/runs/{runs[0]}"),
                        ("GET", "/api/v1/status"),
                    )
                ]
                api.loop.call_soon_threadsafe(agent.end, runs[0], 1)
                refused = [answer.result() for answer in answers[:3]]
                assert answers[3].result().status == 200
                assert time.monotonic() - asked < 10
            measured.detected()
            assert {(one.status, one.json["code"]) for one in refused} == {(503, 6)}
            assert "has not answered for 8 s; what was asked may still be done" in refused[0].json["error"]
            # Heartbeats wait for no write: no lease runs out.
            wait(lambda: controller.roster.nodes["a"].sync_sent > sent and controller.roster.nodes["a"].up)
            wait(lambda: [alarm.kind for alarm in controller.runtime.alarms] == ["database"])
        measured.injected()
        # Nothing is lost: not the end of a run, and neither what was asked meanwhile, though nobody was told that it was done.
        for run, state in zip(runs, ("succeeded", "cancelled"), strict=True):
            assert follow_to_the_end(api, run)["state"] == state
            measured.recovered()
        assert submit("new").status == 200
        assert len(api("GET", "/api/v1/runs").json) == 3
        assert not list(controller.runtime.alarms)
