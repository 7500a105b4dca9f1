"""Ray's own calls get lost between hosts, requests and replies: row 38."""

from __future__ import annotations

import importlib
import json
import pkgutil
from collections.abc import Iterator

import pytest
from guarded import COUNTS, GuardedCluster, two_writers
from hosts import wait_until
from invariants import Looked, check
from orchlab import Orch
from rows import fault

pytestmark = [pytest.mark.lab, pytest.mark.ray, pytest.mark.timeout(600)]

NEVER_LOST = {"NodeManagerService.grpc_client.PrepareBundleResources"}
"""By this one a placement group takes a node. Where one is lost, the request or its answer, Ray 2.60 takes the node for full from
then on, though the group is removed (one of each, on a cluster of one node: 3 of 3 CPUs gone for good; pull request 66188 of Ray is
about the like). The group's other calls may be lost: after CommitBundleResources another group is given the node, and
RemovePlacementGroupBundles is tried again by Ray."""


def calls_of_ray() -> Iterator[str]:
    """Every call between Ray's processes, as RAY_testing_rpc_failure names it.

    One by one: beside "*" Ray reads no other name (src/ray/rpc/rpc_chaos.cc), and nothing could be left out.
    """
    import ray.core.generated as generated

    for module in pkgutil.iter_modules(generated.__path__):
        if module.name.endswith("_pb2"):
            for service in importlib.import_module(
                f"{generated.__name__}.{module.name}"
            ).DESCRIPTOR.services_by_name.values():
                # Some clients name their service whole, and some by its last part.
                for name in (service.name, service.full_name.replace(".", "::")):
                    yield from (f"{name}.grpc_client.{method.name}" for method in service.methods)


@fault(38)
def test_20_runs_succeed_while_one_call_in_ten_gets_lost(lab, measured) -> None:
    each = {"num_failures": -1, "req_failure_prob": 5, "resp_failure_prob": 5}
    lost = json.dumps({name: each for name in calls_of_ray() if name not in NEVER_LOST})
    cluster = GuardedCluster(lab, num_cpus=3, storage="memory", env={"RAY_testing_rpc_failure": lost})
    for folder in ("storage", "steps"):
        (lab.shared / folder).mkdir()
    for host in lab.hosts:
        host.variables |= {"ORCH_LEASE": "15s", "ORCH_STORAGE": str(lab.shared / "storage")}
    orch = Orch(lab, cluster)
    wait_until(lambda: orch.ask("up").returncode == 0, 90, "orch is up", every=1)
    measured.injected()
    env = f"env: {{SHARED: {lab.shared}, STEPS: '20', NUMBER: '{{n}}'}}"
    for workers in ("1", "2", "2x1", "2x2"):
        orch.write_job(COUNTS, workers, f"checkpoint: ckpt\narray: {{n: 0..4}}\n{env}")
        orch.acknowledged += map(int, orch("submit", "work/job.yaml", "-o", "name").split())
    assert len(set(orch.acknowledged)) == 20
    with orch.store() as store:
        wait_until(lambda: all(store.get(run).ended for run in orch.acknowledged), 150, "all have ended", every=0.5)
    measured.recovered()
    runs = [orch.recorded(run) for run in orch.acknowledged]
    assert {str(run.state) for run in runs} == {"succeeded"}
    assert [found for run in runs if (found := two_writers(orch.steps(run.id)))] == []
    measured.note(f"20 runs in {sum(len(run.attempts) for run in runs)} attempts")
    check(Looked(orch.database, orch.ask, orch.marked, orch.acknowledged, idle=True))
