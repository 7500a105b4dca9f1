"""One lab of three hosts for the whole run, and a fresh Ray cluster on it for each module that asks."""

import pytest
from hosts import Lab, remove_leftovers, why_not
from raycluster import RayCluster


@pytest.fixture(scope="session")
def lab_of_three():
    if reason := why_not():
        pytest.skip(f"no lab: {reason}")
    remove_leftovers()
    with Lab(3) as lab:
        yield lab


@pytest.fixture(scope="module")
def lab(lab_of_three):
    """Three hosts with empty disks and nothing running: `lab.hosts`, `lab["lab1"]`."""
    lab_of_three.reset()
    return lab_of_three


@pytest.fixture(scope="module")
def ray_cluster(lab):
    """Ray on the three hosts, with 4 CPUs and 4 pretended GPUs each and a token."""
    return RayCluster(lab, num_cpus=4, num_gpus=4)
