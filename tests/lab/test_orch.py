"""orch over three hosts with disks of their own: gangs across them, and what becomes of a run when a part of the cluster dies."""

from __future__ import annotations

import json
import os
import signal

import pytest
from hosts import wait_until
from orchlab import Orch, nothing_left
from raycluster import RayCluster

pytestmark = [pytest.mark.lab, pytest.mark.ray, pytest.mark.torch]

LEASE_S = 5

TRAINS = """
import os, helper, torch, torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
dist.init_process_group("gloo")
torch.manual_seed(dist.get_rank())
model = DistributedDataParallel(torch.nn.Linear(4, 1))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
for step in range(20):
    optimizer.zero_grad()
    model(torch.randn(8, 4)).pow(2).mean().backward()
    optimizer.step()
weights = torch.cat([p.flatten() for p in model.parameters()])
same = weights.clone()
dist.broadcast(same, 0)
print(os.uname().nodename, os.environ["NODE_RANK"], os.environ["LOCAL_RANK"], helper.VERSION, torch.equal(weights, same))
dist.destroy_process_group()
"""

# Every rank waits for the others all the time, as in training, until the file is there on its own host's disk.
TALKS = """
import os, pathlib, time, torch, torch.distributed as dist
dist.init_process_group("gloo")
print("joined", flush=True)
done = torch.zeros(1)
while not done:
    done = torch.tensor([float(dist.get_rank() == 0 and pathlib.Path.home().joinpath("done").exists())])
    dist.all_reduce(done)
    # The hosts share the cores of one machine.
    time.sleep(0.05)
print("done", flush=True)
dist.destroy_process_group()
"""


@pytest.fixture(scope="module")
def cluster(lab):
    return RayCluster(lab, num_cpus=2, num_gpus=0)


@pytest.fixture(scope="module")
def orch(cluster, lab):
    """orch on lab1, up on the three hosts with a short lease."""
    for host in lab.hosts:
        host.variables["ORCH_LEASE"] = f"{LEASE_S}s"
    orch = Orch(lab, cluster)
    orch("up")
    orch.wait_up(*lab.hosts)
    return orch


class TestOrch:
    """In this order: each test leaves three hosts on which nothing runs."""

    def test_ddp_trains_over_three_hosts_with_the_code_of_the_one_that_submitted(self, orch, lab):
        run = orch.submit(TRAINS, "3x2", "--wait", helper="VERSION = 'v7'")
        # Torch warns in between that the lab has no name server.
        said = [line.split("] ")[1] for line in orch("logs", run).splitlines() if " v7 " in line]
        assert said == [f"lab{node + 1} {node} {local} v7 True" for node in range(3) for local in range(2)]
        assert [part["ranks"] for part in orch.show(run)["attempts"][0]["placement"]["nodes"]] == [
            [0, 1],
            [2, 3],
            [4, 5],
        ]

    def test_cancel_ends_the_ranks_of_every_host(self, orch):
        run = orch.begins(TALKS, "3x2", "joined", 6)
        orch("cancel", run)
        assert set(orch.reaches(run, "cancelled")["attempts"][0]["exit_codes"].values()) == {-15}
        nothing_left(orch, run)

    def test_a_killed_controller_disturbs_no_rank(self, orch, lab):
        run = orch.begins(TALKS, "3x2", "joined", 6)
        before = orch.ranks(run)
        note = json.loads((lab["lab1"].disk / "home" / ".orch" / "controller.json").read_text())
        (controller,) = [p for p in lab["lab1"].processes("ray::ControllerActor") if p.inner_pid == note["pid"]]
        os.kill(controller.pid, signal.SIGKILL)
        path = lab["lab1"].disk / "home" / ".orch" / "controller.json"
        wait_until(lambda: json.loads(path.read_text())["pid"] != note["pid"], 30, "another controller runs")
        orch.wait_up(*lab.hosts)
        assert orch.ranks(run) == before
        (lab["lab1"].disk / "home" / "done").touch()
        assert len(orch.reaches(run, "succeeded")["attempts"]) == 1
        assert orch("logs", run).count("done") == 6

    def test_a_job_that_needs_more_than_there_is_waits_for_no_host_that_never_joined(self, orch):
        assert "never" in orch.head.orch("submit", "work/job.yaml", "--set", "workers=4x2").stderr
