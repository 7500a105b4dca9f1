"""Row 39: many short runs on four hosts, and something breaks every 10 to 30 s. `make soak` runs 200, `make faults` fewer."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator

import pytest
from guarded import GuardedCluster, two_writers, wait_back
from hosts import Lab, remove_leftovers, wait_until, why_not
from invariants import Looked, check
from measuring import Measured
from orchlab import Orch
from rows import fault
from soak import Soak

pytestmark = [pytest.mark.lab, pytest.mark.ray, pytest.mark.timeout(2400)]

RUNS = int(os.environ.get("ORCH_SOAK_RUNS", 30))
SEED = int(os.environ.get("ORCH_SOAK_SEED", 7))
LONG = RUNS >= 100

CPUS = """
import json, os, sys
import ray
ray.init(address=sys.argv[1], log_to_driver=False, configure_logging=False)
print(json.dumps([ray.available_resources().get("CPU", 0), ray.cluster_resources().get("CPU", 0)]))
"""


@pytest.fixture
def orch() -> Iterator[Orch]:
    """A head without CPUs for work and three hosts of four; leases of 15 s."""
    if reason := why_not():
        pytest.skip(f"no lab: {reason}")
    remove_leftovers()
    with Lab(4) as lab:
        (lab.shared / "storage").mkdir()
        cluster = GuardedCluster(lab, num_cpus=4, storage="rocksdb")
        for host in lab.hosts:
            host.variables |= {"ORCH_LEASE": "15s", "ORCH_STORAGE": str(lab.shared / "storage")}
            # All hosts are broken again and again here: none is worse than the others, and gangs of three need every one.
            host.variables["ORCH_POLICY_QUARANTINE"] = "0"
        orch = Orch(lab, cluster)
        wait_until(lambda: orch.ask("up").returncode == 0, 240, "orch is up", every=1)
        wait_back(orch)
        yield orch


@fault(39)
def test_every_rule_holds_after_many_runs_and_many_faults(orch: Orch, measured: Measured) -> None:
    soak = Soak(orch, RUNS, SEED, (10, 30) if LONG else (5, 12), limit_s=1800 if LONG else 420)
    measured.seed(SEED)
    soak.run()
    print(soak.told())  # shown where the test fails
    wait_back(orch)
    runs = [orch.recorded(run) for run in orch.acknowledged]
    assert len(runs) == len(set(orch.acknowledged)) == RUNS
    given_up = [run for run in runs if str(run.state) != "succeeded"]
    # Only a run that met fault after fault may be given up, and says so.
    assert [run.reason for run in given_up if "attempts" not in str(run.reason)] == []
    assert len(given_up) <= RUNS / 50
    wrong = {run.id: found for run in runs if (found := two_writers(orch.steps(run.id)))}
    assert wrong == {}
    short = {
        run.id: last
        for run in runs
        if run not in given_up and (last := _last_steps(orch, run.id)) != {soak.steps_of[run.id]}
    }
    assert short == {}
    assert soak.complaints == []
    wait_until(lambda: _all_free(orch), 30, "Ray has every CPU back", every=2)
    check(Looked(orch.database, orch.ask, orch.marked, orch.acknowledged, idle=True))
    measured.note(_said(soak, sum(len(run.attempts) for run in runs), len(given_up)))
    grown = {name: (first, last) for name, (first, last) in soak.steady().items() if last > first * 1.05 + 2}
    assert grown == {}
    assert soak.steady() or not LONG


def _last_steps(orch: Orch, run: int) -> set[int]:
    """Of each rank, over all attempts, the last step."""
    last: dict[int, int] = {}
    for _, ranks in sorted(orch.steps(run).items()):
        last |= {rank: taken[-1][0] for rank, taken in ranks.items() if taken}
    return set(last.values())


def _all_free(orch: Orch) -> bool:
    done = orch.head.run([sys.executable, "-c", CPUS, orch.cluster.address], timeout=60)
    if done.returncode != 0:
        return False
    free, total = json.loads(done.stdout.splitlines()[-1])
    return free == total == 12


def _said(soak: Soak, attempts: int, given_up: int) -> str:
    faults = ", ".join(f"{count} × {name}" for name, count in soak.faults.most_common())
    grown = ", ".join(f"{name} {first:.0f} to {last:.0f}" for name, (first, last) in soak.steady().items())
    return (
        f"{soak.runs} runs, {attempts} attempts, {given_up} given up, in {soak.took_s:.0f} s; {sum(soak.faults.values())} faults "
        f"({faults}); slowest command {soak.slowest_s:.1f} s; the controller after warming up: {grown or 'not long enough'}"
    )
