"""One lab of three hosts for the whole run, and a fresh Ray cluster on it for each module that asks."""

import pytest
from hosts import Lab, remove_leftovers, why_not
from invariants import Looked, check
from orchlab import Orch
from raycluster import RayCluster

RUNNING: dict[int, Orch] = {}
"""By its lease: orch as `faulty` has started it on the hosts of the lab, until they are reset."""


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
    RUNNING.clear()
    lab_of_three.reset()
    return lab_of_three


@pytest.fixture(scope="module")
def ray_cluster(lab):
    """Ray on the three hosts, with 4 CPUs and 4 pretended GPUs each and a token."""
    return RayCluster(lab, num_cpus=4, num_gpus=4)


@pytest.fixture(scope="module")
def faulty(lab_of_three, request):
    """orch over three hosts of two slots each, with its checkpoints on a folder that all hosts see.

    Leases are short, or of as many seconds as the module says by LEASE_S. Modules that follow each other share it, because
    it takes a quarter of a minute to start.
    """
    lease_s = getattr(request.module, "LEASE_S", 8)
    if lease_s not in RUNNING:
        lab = request.getfixturevalue("lab")
        cluster = RayCluster(lab, num_cpus=2)
        (lab.shared / "storage").mkdir()
        for host in lab.hosts:
            host.variables |= {"ORCH_LEASE": f"{lease_s}s", "ORCH_STORAGE": str(lab.shared / "storage")}
            host.variables["ORCH_POLICY_MIN_RUNTIME"] = "1s"
            # The tests break the same few hosts again and again, and say themselves where a gang goes.
            host.variables["ORCH_POLICY_QUARANTINE"] = "0"
        RUNNING[lease_s] = Orch(lab, cluster)
        RUNNING[lease_s]("up")
    return RUNNING[lease_s]


@pytest.fixture
def orch(faulty):
    """The same for each test: its three hosts are up, and after it the rules are looked at (faults/invariants.py)."""
    faulty.mend()
    yield faulty
    for host in faulty.lab.hosts:
        if host.is_on:
            host.heal()
    check(Looked(faulty.database, faulty.ask, faulty.marked, faulty.acknowledged))
