"""What a rank finds in its environment, and what nobody else finds: the values of secrets."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys

import psutil
import pytest
from orch_home import environ_of, holds

from orchestrator.control.cluster import ray_env

pytestmark = pytest.mark.ray

PRINTS_ENVIRONMENT = """
import json, os
print(json.dumps(dict(os.environ)))
"""

FAILS_AT_FIRST = """
import os, pathlib, sys
folder = pathlib.Path(os.environ["ORCH_CHECKPOINT_DIR"])
print(folder, os.environ["ORCH_ATTEMPT"])
state = folder / "state"
if not state.exists():
    state.write_text("step 100")
    sys.exit(3)
print(state.read_text())
"""

SHOWS_A_HASH = """
import hashlib, os, pathlib, sys, time
print(hashlib.sha256(os.environ["API_KEY"].encode()).hexdigest(), flush=True)
while not pathlib.Path(sys.argv[1]).exists():
    time.sleep(0.02)
"""

# What Ray itself can be asked about: its actors and tasks with everything it knows of them.
RAY_STATE = """
import json, ray, sys
from ray.util.state import list_actors, list_nodes, list_placement_groups, list_tasks, list_workers
ray.init(address=sys.argv[1], log_to_driver=False, configure_logging=False)
for ask in (list_actors, list_tasks, list_workers, list_placement_groups, list_nodes):
    for row in ask(address=sys.argv[1], detail=True, limit=10000, raise_on_missing_output=False):
        print(row)
"""


def test_a_rank_finds_what_torchrun_and_orch_promise_and_nothing_of_ray(home, job):
    run = home.submit(job(PRINTS_ENVIRONMENT, workers=2, env="{LR: 1e-3, ANSWER: no}", checkpoint="ckpt"), "--wait")
    first, second = (json.loads(home.logs(run, "--rank", rank)[0]) for rank in (0, 1))
    same = {
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2",
        "NODE_RANK": "0",
        "GROUP_RANK": "0",
        "MASTER_ADDR": "127.0.0.1",
        "ORCH_RUN": str(run),
        "ORCH_ATTEMPT": "1",
        "ORCH_BACKEND": "gloo",
        "CUDA_VISIBLE_DEVICES": "",
        "LR": "1e-3",
        "ANSWER": "no",
    }
    for env, rank in ((first, "0"), (second, "1")):
        assert env.items() >= (same | {"RANK": rank, "LOCAL_RANK": rank}).items()
        assert 1024 < int(env["MASTER_PORT"]) < 65536
        assert env["ORCH_CHECKPOINT_DIR"].startswith(str(home.root / "storage"))
        assert [name for name in env if "RAY" in name.upper().split("_")] == []
        assert {name for name in env if name.startswith("ORCH_")} == {
            *("ORCH_RUN", "ORCH_ATTEMPT", "ORCH_BACKEND", "ORCH_CHECKPOINT_DIR", "ORCH_MARK"),
            *("ORCH_RUN_KEY", "ORCH_TENSORBOARD_DIR", "ORCH_PROGRESS"),
        }
    assert first["MASTER_PORT"] == second["MASTER_PORT"]


def test_the_checkpoint_folder_is_the_same_on_every_attempt(home, job):
    run = home.submit(job(FAILS_AT_FIRST, checkpoint="ckpt"), "--wait", code=1)
    home("retry", run)
    home.end(run)
    folder, number = home.logs(run, "--attempt", 1)[0].split()
    assert number == "1"
    assert home.logs(run) == [f"{folder} 2", "step 100"]


def test_a_secret_reaches_the_ranks_and_is_written_down_nowhere(home, job, gate):
    canary = f"canary-{os.urandom(8).hex()}"
    run = home.submit(job(SHOWS_A_HASH, arguments=gate, workers=2, secrets="[API_KEY]"), env={"API_KEY": canary})
    home.prints(run, hashlib.sha256(canary.encode()).hexdigest(), ranks=2)
    ranks = home.ranks(run)
    assert len(ranks) == 2
    assert all(f"API_KEY={canary}" in environ_of(pid) for pid in ranks)
    try:
        told = [pid for pid in psutil.pids() if pid not in ranks and canary in environ_of(pid)]
        shown = [process.pid for process in psutil.process_iter() if canary in " ".join(_cmdline(process))]
        state = subprocess.run(
            [sys.executable, "-c", RAY_STATE, home.home.read_cluster().address],
            env=ray_env(home.home, home.env, local=True),
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert "orch-controller" in state.stdout, state.stderr
        written = [
            path
            for folder in (home.root, home.node_folder)
            for path in folder.rglob("*")
            if path.is_file() and holds(path, canary)
        ]
        api = json.dumps([home.show(run), home.json("runs"), home.json("ps"), home.json("nodes")])
    finally:
        gate.touch()
    assert (told, shown, written) == ([], [], [])
    assert canary not in state.stdout + state.stderr + api
    home.end(run)
    after = home.submit(job(PRINTS_ENVIRONMENT, folder="other"), "--wait")
    assert canary not in "".join(home.logs(after))


def _cmdline(process):
    try:
        return process.cmdline()
    except psutil.Error:
        return []
