"""One Ray cluster for the whole run: a head without GPUs and two nodes with pretended ones, all on this machine.

For what needs Ray but not separate hosts. The nodes differ in their address only: they share /tmp, /dev/shm and every
process is in reach. Where that matters, use the lab.
"""

import secrets
import shutil
import tempfile
from pathlib import Path
from typing import NamedTuple

import pytest


class RayOnOneMachine(NamedTuple):
    address: str
    gpus: dict[str, int]
    """GPUs by node name; the node names are the addresses."""


@pytest.fixture(scope="session")
def ray_cluster():
    """A running Ray cluster; its address, and the token's place in this process's environment."""
    # Ray reads the way of authentication once per process, at its first import, so it is imported after that is set.
    folder = Path(tempfile.mkdtemp(prefix="orch-ray-", dir="/tmp"))
    token = folder / "token"
    token.touch(mode=0o600)
    token.write_text(secrets.token_hex(32))
    gpus = {"127.0.0.10": 8, "127.0.0.11": 4}
    with pytest.MonkeyPatch.context() as env:
        env.setenv("RAY_AUTH_MODE", "token")
        env.setenv("RAY_AUTH_TOKEN_PATH", str(token))
        # cluster_utils writes the address to where every ray.init() of the machine would look for it.
        env.setenv("RAY_TMPDIR", str(folder))
        env.setenv("RAY_USAGE_STATS_ENABLED", "0")
        env.setenv("RAY_prestart_worker_first_driver", "0")
        env.setenv("RAY_enable_worker_prestart", "0")
        env.delenv("RAY_AUTH_TOKEN", raising=False)
        env.delenv("RAY_ADDRESS", raising=False)
        import ray
        from ray.cluster_utils import Cluster

        # The head keeps the machine's own address: a head on loopback is not found by ray.init.
        light = {"include_log_monitor": False, "dashboard_agent_listen_port": 0}
        head = {"num_cpus": 2, "num_gpus": 0, "include_dashboard": False, "no_monitor": True, **light}
        cluster = Cluster(initialize_head=True, head_node_args=head)
        try:
            for address, count in gpus.items():
                cluster.add_node(
                    wait=False, node_ip_address=address, node_name=address, num_cpus=8, num_gpus=count, **light
                )
            cluster.wait_for_nodes(timeout=60)
            yield RayOnOneMachine(cluster.address, gpus)
        finally:
            ray.shutdown()
            cluster.shutdown()
            shutil.rmtree(folder, ignore_errors=True)
