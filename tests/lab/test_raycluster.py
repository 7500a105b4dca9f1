"""Ray and Gloo over the hosts of the lab."""

import sys

import pytest
from hosts import wait_until

GANG = """
import os, sys
import torch, torch.distributed as dist
dist.init_process_group("gloo")
total = torch.tensor([float(dist.get_rank() + 1)])
dist.all_reduce(total)
print(dist.get_rank(), os.uname().nodename, int(total))
dist.destroy_process_group()
"""

TASK_PER_NODE = """
import socket, ray
ray.init(address=ADDRESS, log_to_driver=False, logging_level="error")

@ray.remote(num_cpus=0)
def where():
    return socket.gethostname()

from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy as On
nodes = {node["NodeID"]: node["NodeName"] for node in ray.nodes()}
found = {name: where.options(scheduling_strategy=On(id, soft=False)).remote() for id, name in nodes.items()}
print(sorted((name, ray.get(at)) for name, at in found.items()), ray.cluster_resources()["GPU"])
"""


@pytest.mark.lab
@pytest.mark.torch
def test_a_gloo_gang_runs_across_three_hosts(lab):
    ranks = [
        host.popen(
            [sys.executable, "-c", GANG],
            env={
                "RANK": str(rank),
                "WORLD_SIZE": "3",
                "MASTER_ADDR": lab.hosts[0].address,
                "MASTER_PORT": "29500",
                "GLOO_SOCKET_IFNAME": "eth0",
                "OMP_NUM_THREADS": "1",
            },
        )
        for rank, host in enumerate(lab.hosts)
    ]
    said = [rank.communicate(timeout=60) for rank in ranks]
    assert [out for out, _ in said] == ["0 lab1 6\n", "1 lab2 6\n", "2 lab3 6\n"], said


@pytest.mark.lab
@pytest.mark.ray
class TestRay:
    """On one cluster and in this order: a test leaves three live nodes behind, but for the last."""

    def test_a_node_of_ray_is_on_each_host_with_the_gpus_it_was_given(self, ray_cluster):
        done = ray_cluster.head.python(TASK_PER_NODE.replace("ADDRESS", repr(ray_cluster.address)), check=True)
        assert done.stdout == "[('lab1', 'lab1'), ('lab2', 'lab2'), ('lab3', 'lab3')] 12.0\n"

    def test_a_command_without_the_token_is_refused(self, ray_cluster, lab):
        done = lab.hosts[1].python(
            f"from ray._raylet import GcsClient; GcsClient('{ray_cluster.address}').get_all_node_info(timeout=5)",
            env={"RAY_AUTH_TOKEN": "0" * 64},
        )
        assert done.returncode != 0
        assert "Unauthenticated" in done.stderr or "InvalidAuthToken" in done.stderr

    def test_ray_sees_a_powered_off_host_as_dead_within_15_s_and_takes_it_back(self, ray_cluster, lab):
        lab3 = lab.hosts[2]
        lab3.power_off()
        ray_cluster.wait_dead(lab3, timeout=15)
        assert ray_cluster.alive() == {"lab1", "lab2"}
        lab3.restart()
        ray_cluster.join(lab3)
        ray_cluster.wait_alive(lab3)

    def test_ray_sees_a_cut_off_host_as_dead_and_its_node_ends_when_the_cable_is_back(self, ray_cluster, lab):
        lab2 = lab.hosts[1]
        lab2.link("down")
        ray_cluster.wait_dead(lab2, timeout=15)
        assert lab2.processes("raylet")
        lab2.link("up")
        wait_until(lambda: not lab2.processes("raylet/raylet"), 30, "the raylet that was taken for dead has ended")
