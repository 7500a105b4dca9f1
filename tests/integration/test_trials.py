"""Links that were never measured are tried before a gang starts: real processes, launchers, agents, controller and database.

Only the GPUs are pretended, and what is wrong with a node is the job's interpreter there. Torch costs seconds of a core for each
rank: one test runs the real collective, by Gloo on CPUs; in the others the ranks meet over a socket and say what it would.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from orchestrator.control import bench_script
from orchestrator.control.agent import NodeAgent
from orchestrator.control.backend import Agent, NodeFacts
from orchestrator.control.controller import Controller
from orchestrator.control.runtime import Settings
from orchestrator.control.snapshot import Snapshot, take
from orchestrator.history.render import show_json
from orchestrator.scheduling.lifecycle import State
from orchestrator.scheduling.run import Code, NewRun, Run
from orchestrator.spec import JobSpec
from orchestrator.spec_values import Workers
from orchestrator.testing.controlling import started, until
from orchestrator.testing.hardware import cluster, node

PYTHON = """#!{python}
import json, os, socket, sys, time
node = os.environ.get("ORCH_MARK", "").rpartition(".")[2]
argv = [word for word in sys.argv[1:] if word != "-u"]
if argv[0].endswith("tell_versions.py"):
    print("orch-versions: " + json.dumps({{"version": "3", "torch": "2", "nccl": "2.28.9"}}))
    sys.exit()
if argv[0] == "collectives.py":
    open("{folder}/tried", "a").write(node + chr(10))
    how = {ill!r}.get(node)
    if how == "fails":
        sys.exit("ModuleNotFoundError: No module named 'torch'")
    if not {gloo}:
        rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        print('ORCH_BENCH ' + json.dumps({{"here": rank}}), flush=True)
        if how == "hangs" and world > 1:
            time.sleep(1000)
        port = int(os.environ["MASTER_PORT"])
        if rank:
            while True:
                try:
                    meet = socket.create_connection(("127.0.0.1", port))
                    break
                except OSError:
                    time.sleep(0.02)
            meet.sendall(b"s" if how == "slow" else b"w")
            meet.recv(1)
        else:
            with socket.create_server(("127.0.0.1", port)) as server:
                others = [server.accept()[0] for _ in range(world - 1)]
            said = [other.recv(1) for other in others]
            speed = 0.05 if how == "slow" or b"s" in said else 0.9
            row = {{"collective": "all_reduce", "backend": "gloo", "bytes": 8 << 20, "time_us": 1.0, "algbw": speed}}
            print("ORCH_BENCH " + json.dumps({{"ranks": world, "versions": {{"torch": "2"}}}}))
            print("ORCH_BENCH " + json.dumps(row | {{"busbw": speed, "iterations": 3, "wrong": 0}}), flush=True)
        sys.exit()
os.execv("{python}", ["{python}", *sys.argv[1:]])
"""


@cache
def code() -> Snapshot:
    with TemporaryDirectory() as folder:
        (Path(folder) / "train.py").write_text("print('trained')\n")
        return take(Path(folder), 1 << 20)


async def fetch(sha256: str) -> AsyncIterator[bytes]:
    yield next(one.archive for one in (code(), bench_script.snapshot()) if one.sha256 == sha256)


class Machines:
    """A cluster of this machine alone: each node is an agent of its own, with GPUs that are declared and not there."""

    def __init__(self, folder: Path, names: str) -> None:
        self.names = names
        # No warm ranks: they would import torch in every agent.
        (folder / "none").mkdir(exist_ok=True)
        (folder / "none" / "torch.py").write_text("raise ImportError('not in this test')")
        environ = os.environ | {"PYTHONPATH": str(folder / "none")}
        self.agents = {
            name: NodeAgent("orch-test", name, "127.0.0.1", folder / name, fetch, lambda: {}, dict(environ))
            for name in names
        }

    def is_dead(self, node: NodeFacts) -> bool:
        return False

    async def nodes(self) -> list[NodeFacts]:
        return [NodeFacts(name, f"id-{name}", "127.0.0.1", "cuda", 1) for name in self.names]

    async def agent(self, node: NodeFacts) -> Agent:
        return self.agents[node.name]

    async def hold(self, node: NodeFacts) -> None: ...
    async def release(self, node_name: str) -> None: ...


@asynccontextmanager
async def controlling(folder: Path, names: str, **limits: float) -> AsyncIterator[Controller]:
    machines = Machines(folder, names)
    times = {"trial_s": 100.0, "trial_hang_s": 2.0} | limits
    settings = Settings(folder, folder / "storage", sync_wait_s=0.5, watch_s=0.1, **times)  # type: ignore[arg-type]
    declared = cluster(*(node(name, gpus=1) for name in names))
    try:
        async with started(machines, settings, declared=declared) as controller:
            known = controller.roster.nodes

            async def all_up() -> bool:
                return all(one in known and known[one].up for one in names)

            await until(all_up, 60)
            yield controller
    finally:
        for agent in machines.agents.values():
            await agent.close(1000)


def job(folder: Path, nodes: int, gloo: bool = False, **ill: str) -> NewRun:
    """`ill`: by node, what becomes of a trial there: hangs, slow or fails."""
    python = folder / "python"
    python.write_text(PYTHON.format(python=sys.executable, folder=folder, ill=ill, gloo=gloo))
    python.chmod(0o755)
    spec = JobSpec(name="job", run="train.py", workers=Workers(total=nodes, nodes=nodes), python=str(python))
    return NewRun(spec, "ana", Code(code().sha256), "/w")


async def ended(controller: Controller, run: Run) -> dict[str, Any]:
    async def over() -> bool:
        return (await controller.find(str(run.id))).ended

    await until(over, 90)
    found = await controller.find(str(run.id))
    assert found.state is State.SUCCEEDED
    return show_json(found)


def notes(run: dict[str, Any]) -> list[str]:
    return [event["reason"] for event in run["events"] if event["event"] == "noted"]


def placed(run: dict[str, Any]) -> list[str]:
    (attempt,) = run["attempts"]
    return [part["node"] for part in attempt["placement"]["nodes"]]


def test_a_pair_is_tried_once_and_its_figure_is_kept(tmp_path: Path) -> None:
    async def story() -> None:
        async with controlling(tmp_path, "ab") as controller:
            run, _ = await controller.submit(job(tmp_path, 2), {})
            assert placed(await ended(controller, run)) == ["a", "b"]
            (kept,) = await controller.runtime.db(controller.runtime.store.trials, run.submitted_at)
            assert (kept.nodes, kept.run, kept.ranks, kept.failure) == (("a", "b"), run.id, 2, None)
            assert kept.busbw is not None
            assert kept.busbw > 0
            assert (tmp_path / "tried").read_text().split() in (["a", "b"], ["b", "a"])
            again, _ = await controller.submit(job(tmp_path, 2), {})
            await ended(controller, again)
            assert len((tmp_path / "tried").read_text().split()) == 2
        # Nor does the next controller try it again.
        (tmp_path / "tried").unlink()
        async with controlling(tmp_path, "ab") as controller:
            run, _ = await controller.submit(job(tmp_path, 2), {})
            await ended(controller, run)
            assert not (tmp_path / "tried").exists()

    asyncio.run(story())


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("hangs", "all-reduce with a and c hung"),
        ("slow", "all-reduce with a and c reaches"),
        ("fails", "ended before it began: ModuleNotFoundError: No module named 'torch'"),
    ],
)
def test_a_bad_node_is_found_and_another_taken_without_an_attempt(tmp_path: Path, how: str, words: str) -> None:
    async def story() -> None:
        async with controlling(tmp_path, "abcd") as controller:
            run, _ = await controller.submit(job(tmp_path, 3, b=how), {})
            shown = await ended(controller, run)
            assert placed(shown) == ["a", "c", "d"]
            (note, *_) = notes(shown)
            assert note.startswith(f"placed again without b: {words}")
            assert list((tmp_path / "logs" / str(run.id)).iterdir()) == [tmp_path / "logs" / str(run.id) / "1"]

    asyncio.run(story())


def test_when_the_time_is_over_the_run_starts_with_a_note(tmp_path: Path) -> None:
    async def story() -> None:
        async with controlling(tmp_path, "ab", trial_s=4, trial_hang_s=9) as controller:
            run, _ = await controller.submit(job(tmp_path, 2, b="hangs"), {})
            assert notes(await ended(controller, run)) == ["before the start: not every pair could be tried in time"]

    asyncio.run(story())


def test_the_real_collective_measures_a_pair_by_gloo(tmp_path: Path) -> None:
    async def story() -> None:
        async with controlling(tmp_path, "ab", trial_hang_s=60) as controller:
            run, _ = await controller.submit(job(tmp_path, 2, gloo=True), {})
            await ended(controller, run)
            (kept,) = await controller.runtime.db(controller.runtime.store.trials, run.submitted_at)
            assert (kept.failure, kept.nodes) == (None, ("a", "b"))
            assert kept.busbw is not None
            assert kept.busbw > 0
            assert kept.versions["torch"]

    asyncio.run(story())
