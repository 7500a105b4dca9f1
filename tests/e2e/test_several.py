"""Several clusters on one machine: two homes, a user's own Ray, and a Ray that was there before and is joined."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import psutil
import pytest
from orch_home import OrchHome, holds, until

pytestmark = pytest.mark.ray

# A user's program: every line on its standard input is answered with what a task of its own Ray saw.
USERS_RAY = """
import sys, ray
ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False, configure_logging=False)

@ray.remote
def nodes():
    return len(ray.nodes())

for _ in sys.stdin:
    print(ray.get_runtime_context().gcs_address, ray.get(nodes.remote()), flush=True)
"""

PRINTS_ENVIRONMENT = """
import json, os, pathlib, sys, time
print(json.dumps(dict(os.environ)), flush=True)
while not pathlib.Path(sys.argv[1]).exists():
    time.sleep(0.02)
"""


ENDS_LATER_ON_THE_SECOND_NODE = """
import os, time
time.sleep(2 * int(os.environ["NODE_RANK"]))
"""


def test_homes_and_a_users_own_ray_do_not_meet(home, job):
    first = home.submit(job("print('first')"), "--wait")
    controller = home.controller()
    # One temporary folder, as programs of one user have it; short, since sockets are in it.
    temporary = tempfile.mkdtemp(prefix="oe", dir="/tmp")
    other = OrchHome(ORCH_LOCAL_SLOTS="2", TMPDIR=temporary)
    users = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_enable_worker_prestart": "0", "TMPDIR": temporary}
    environ = {name: value for name, value in home.env.items() if not name.startswith("ORCH_")} | users
    program = subprocess.Popen(
        [sys.executable, "-c", USERS_RAY], env=environ, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )

    def ask() -> list[str]:
        program.stdin.write("?\n")
        program.stdin.flush()
        return program.stdout.readline().split()

    try:
        with program:
            address, nodes = ask()
            assert nodes == "1"
            assert other.submit(job("print('second')", folder="other"), "--wait") == 1
            addresses = {address, home.json("status")["address"], other.json("status")["address"]}
            assert len(addresses) == 3
            assert [node["runs"] for node in other.json("nodes")] == [[]]
            assert home.show(first)["code"]["sha256"] != other.show(1)["code"]["sha256"]
            assert ask() == [address, "1"]
            left = other.close()
            assert left == []
            assert ask() == [address, "1"]
            program.stdin.close()
            assert program.wait(30) == 0
    finally:
        program.kill()
        shutil.rmtree(temporary)
    assert home.json("status")["controller"] == "up"
    assert home.controller() == controller
    home.submit(job("print('third')"), "--wait")


@pytest.fixture(scope="module")
def attach(ray_cluster):
    """A function that brings up a home on the Ray cluster that was there before it; it is ended with the module."""
    ray = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": os.environ["RAY_AUTH_TOKEN_PATH"]}
    homes = []

    def up(**variables: str) -> OrchHome:
        homes.append(OrchHome(ORCH_ADDRESS=ray_cluster.address, **ray, **variables))
        homes[-1]("up")
        # Until the agent of both has answered, a smaller run is rightly placed before a gang that needs both.
        until(lambda: all(node["state"] == "up" for node in homes[-1].json("nodes")), 60, "the nodes are up")
        return homes[-1]

    yield up
    assert [home.close() for home in homes] == [[] for _ in homes]


@pytest.fixture(scope="module")
def attached(attach):
    return attach()


@pytest.fixture(scope="module")
def other_work(ray_cluster):
    """Ray as another program of the same cluster has it: this process."""
    import ray

    ray.init(address=ray_cluster.address, namespace="other", log_to_driver=False, configure_logging=False)
    yield ray
    ray.shutdown()


def held(home: OrchHome) -> int:
    """How many nodes of the Ray cluster the home holds."""
    from ray.util import placement_group_table

    start = f"orch-hold-{home.home.namespace}-"
    rows = placement_group_table().values()
    return sum(row["name"].startswith(start) and row["state"] == "CREATED" for row in rows)


def environ_of_rank(home: OrchHome, run: int, rank: int) -> dict[str, str]:
    """As PRINTS_ENVIRONMENT tells it."""
    env: dict[str, str] = json.loads(home.logs(run, "--rank", rank)[0])
    return env


class TestAttached:
    """To a Ray cluster of two nodes with 8 and 4 pretended GPUs; in this order, since the last one ends orch on it."""

    def test_gpus_are_chosen_by_index_and_taken_from_ray_until_the_last_run_ends(self, attached, other_work, job, gate):
        path = job(PRINTS_ENVIRONMENT, arguments=gate, workers="2x4", device="cuda")
        gang = attached.submit(path)
        small = attached.submit(path, "--set", "workers=2")
        attached.reaches(gang, "running")
        attached.reaches(small, "running")
        nodes = attached.show(gang)["attempts"][0]["placement"]["nodes"]
        assert [(part["gpus"], part["ranks"]) for part in nodes] == [
            ([0, 1, 2, 3], [0, 1, 2, 3]),
            ([0, 1, 2, 3], [4, 5, 6, 7]),
        ], attached.show(gang)["events"]
        (part,) = attached.show(small)["attempts"][0]["placement"]["nodes"]
        assert (part["gpus"], part["node"] in {part["node"] for part in nodes}) == ([4, 5], True)
        assert sorted((node["total"], node["busy"]) for node in attached.json("nodes") if node["device"] == "cuda") == [
            (4, 4),
            (8, 6),
        ]
        assert attached.json("status")["gpus"] == {"total": 12, "busy": 10}
        assert held(attached) == 2
        # The two GPUs that orch has not given to anybody are not free to others either: Ray would choose their indices.
        theirs = other_work.remote(num_gpus=1)(lambda: "ran").remote()
        assert other_work.wait([theirs], timeout=1)[0] == []
        gate.touch()
        attached.end(gang)
        attached.end(small)
        assert other_work.get(theirs, timeout=30) == "ran"
        until(lambda: held(attached) == 0, 10, "the nodes are given back")
        seen = [environ_of_rank(attached, gang, rank) for rank in range(8)]
        assert {env["CUDA_VISIBLE_DEVICES"] for env in seen} == {"0,1,2,3"}
        assert len({env["MASTER_ADDR"] for env in seen}) == 1
        assert environ_of_rank(attached, small, 0)["CUDA_VISIBLE_DEVICES"] == "4,5"
        until(lambda: other_work.available_resources().get("GPU") == 12, 10, "Ray has all of its GPUs again")

    def test_a_part_that_ends_first_leaves_the_ranks_of_the_other_node_alone(self, attached, job):
        # Both nodes are on this machine, and every process of both can be seen from either.
        run = attached.submit(job(ENDS_LATER_ON_THE_SECOND_NODE, workers="2x1", device="cuda"))
        assert attached.end(run)["attempts"][0]["exit_codes"] == {"0": 0, "1": 0}

    def test_a_run_waits_for_the_gpus_of_other_ray_work_and_says_so(self, attached, other_work, job, gate):
        @other_work.remote(num_gpus=1, resources={"node:127.0.0.11": 0.01})
        class Other:
            def there(self):
                return True

        actor = Other.remote()
        assert other_work.get(actor.there.remote(), timeout=30)
        gate.touch()
        run = attached.submit(job(PRINTS_ENVIRONMENT, arguments=gate, workers="2x4", device="cuda"))
        # At first it may say that Ray refused: orch looks once a second at what others hold.
        told = "1 of 4 held by other work of the Ray cluster"
        until(lambda: told in (attached.show(run)["reason"] or ""), 10, "it says who holds what")
        shown = attached.show(run)
        assert shown["state"] == "queued"
        assert "room for 4 of 8 workers" in shown["reason"]
        other_work.kill(actor)
        attached.end(run)

    @pytest.mark.postgres
    def test_the_history_is_kept_in_postgresql_and_its_password_shown_nowhere(self, attach, postgres, job, gate):
        password = f"canary-{os.urandom(8).hex()}"
        url = postgres.format(name="postgres").replace("postgres@", f"postgres:{password}@")
        home = attach(ORCH_DATABASE=url)
        run = home.submit(job(PRINTS_ENVIRONMENT, arguments=gate))
        home.reaches(run, "running")
        shown = [process.pid for process in psutil.process_iter() if password in " ".join(_cmdline(process))]
        gate.touch()
        home.end(run)
        assert not (home.root / "orch.db").exists()
        said = [home("config"), home("config", "--json"), home("show", run, "--json"), home("status")]
        home("down")
        # Without the controller the history is read from PostgreSQL itself.
        said.append(home("runs", "--json"))
        assert [row["state"] for row in json.loads(said[-1].stdout)] == ["succeeded"]
        assert "postgresql://postgres:***@/postgres" in said[0].stdout
        assert [password in one.stdout + one.stderr for one in said] == [False] * len(said)
        session = Path(os.environ["RAY_TMPDIR"])
        files = [
            path for folder in (home.root, home.node_folder, session) for path in folder.rglob("*") if path.is_file()
        ]
        # The controller reads it where `orch up` has left it, for this user's eyes alone.
        assert [path for path in files if holds(path, password)] == [home.home.cluster_file]
        assert home.home.cluster_file.stat().st_mode & 0o777 == 0o600
        assert shown == []

    def test_down_ends_what_is_orchs_and_leaves_the_ray_cluster_running(self, attached, other_work, ray_cluster):
        attached("down")
        attached("status", code=6)
        named = other_work.util.list_named_actors(all_namespaces=True)
        assert [actor for actor in named if actor["namespace"] == attached.home.namespace] == []
        assert attached.services() == []
        assert other_work.get(other_work.remote(num_gpus=1)(lambda: "ran").remote(), timeout=30) == "ran"
        assert other_work.cluster_resources()["GPU"] == sum(ray_cluster.gpus.values())


def _cmdline(process):
    try:
        return process.cmdline()
    except psutil.Error:
        return []
