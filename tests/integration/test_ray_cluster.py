"""The cluster that the other tests here run on."""

from pathlib import Path

import pytest

pytestmark = pytest.mark.ray


@pytest.fixture
def ray(ray_cluster):
    import ray

    ray.init(address=ray_cluster.address, log_to_driver=False)
    yield ray
    ray.shutdown()


def test_the_nodes_have_the_gpus_they_pretend(ray, ray_cluster):
    gpus = {n["NodeName"]: int(n["Resources"]["GPU"]) for n in ray.nodes() if n["Alive"] and "GPU" in n["Resources"]}
    assert gpus == ray_cluster.gpus


def test_an_actor_runs_on_the_node_that_was_named(ray, ray_cluster):
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    class Where:
        def node(self):
            return ray.get_runtime_context().get_node_id(), ray.get_gpu_ids()

    last = next(node["NodeID"] for node in ray.nodes() if node["NodeName"] == "127.0.0.11")
    where = ray.remote(num_gpus=4)(Where).options(scheduling_strategy=NodeAffinitySchedulingStrategy(last, soft=False))
    assert ray.get(where.remote().node.remote(), timeout=60) == (last, [0, 1, 2, 3])


def test_other_programs_of_the_machine_are_not_led_to_this_cluster(ray_cluster):
    note = Path("/tmp/ray/ray_current_cluster")
    assert not note.exists() or note.read_text() != ray_cluster.address
