"""Ray's head on a host of its own: killed or without power, back in time or late, its state on disk or gone: rows 14 to 16."""

from __future__ import annotations

import os
import signal
import time
from itertools import pairwise

import pytest
from guarded import GuardedCluster, counting, two_writers, wait_back
from hosts import wait_until
from invariants import Looked, check
from orchlab import Orch
from rows import fault

pytestmark = [pytest.mark.lab, pytest.mark.ray, pytest.mark.timeout(600)]

AWAY_S = 90.0


def started(lab, storage: str, lease: str) -> Orch:
    lab.reset()
    cluster = GuardedCluster(lab, num_cpus=2, storage=storage)
    (lab.shared / "storage").mkdir()
    for host in lab.hosts:
        host.variables |= {"ORCH_LEASE": lease, "ORCH_STORAGE": str(lab.shared / "storage")}
    orch = Orch(lab, cluster)
    wait_until(lambda: orch.ask("up").returncode == 0, 240, "orch is up", every=1)
    wait_back(orch)
    return orch


def rules_hold(orch: Orch) -> None:
    check(Looked(orch.database, orch.ask, orch.marked, orch.acknowledged, idle=True))


def longest_pause(orch: Orch, run: int) -> float:
    """Seconds between two steps of a rank."""
    taken = [[at for _, at in steps] for ranks in orch.steps(run).values() for steps in ranks.values()]
    return max(after - before for times in taken for before, after in pairwise(times))


@pytest.fixture(scope="module")
def on_disk(lab):
    """orch over a cluster whose head keeps its state on disk; leases of 90 s."""
    return started(lab, "rocksdb", "90s")


@fault(15)
def test_runs_on_other_hosts_do_not_notice_that_the_heads_host_was_without_power(on_disk: Orch, measured) -> None:
    orch, head = on_disk, on_disk.head
    run = counting(orch, "2x1", 2)
    ranks = orch.ranks(run)
    head.power_off()
    measured.injected()
    # 20 s later; nothing else is to be seen from outside.
    at = min(len(steps) for steps in orch.steps(run)[1].values())
    orch.wait_trained(run, 1, 2, steps=at + 200)
    head.power_on()
    orch.cluster.guard(head)
    wait_back(orch)
    measured.recovered()
    measured.lost(steps=0)
    assert orch.ranks(run) == ranks
    wait_until(lambda: any(e.event.value == "noted" for e in orch.recorded(run).events), 20, "the gap is on record")
    found = orch.let_end(run)
    assert len(found.attempts) == 1
    assert "the ranks went on" in next(str(e.reason) for e in found.events if e.event.value == "noted")
    assert two_writers(orch.steps(run)) == []
    measured.note(f"longest pause between two steps {longest_pause(orch, run):.1f} s")
    rules_hold(orch)


@fault(15)
def test_a_head_service_that_is_killed_is_back_by_itself_and_no_run_notices(on_disk: Orch, measured) -> None:
    orch = on_disk
    run = counting(orch, "2x1", 2)
    ranks = orch.ranks(run)
    (gcs,) = orch.head.processes("ray/gcs/gcs_server ")
    os.kill(gcs.pid, signal.SIGKILL)
    measured.injected()
    wait_until(lambda: orch.ask("status").returncode == 6, 20, "it is said", every=0.2)
    measured.detected()
    wait_back(orch)
    measured.recovered()
    measured.lost(steps=0)
    assert orch.ranks(run) == ranks
    assert len(orch.let_end(run).attempts) == 1
    rules_hold(orch)


@fault(16)
def test_a_head_that_is_back_late_finds_runs_ended_by_their_leases_and_requeues_each_once(lab, measured) -> None:
    orch = started(lab, "rocksdb", "30s")
    head = orch.head
    runs = [counting(orch, "2x1", 2), counting(orch, "1", 1)]
    waits = orch.submit("print('done')", "2x2")
    head.power_off()
    measured.injected()
    began = time.monotonic()
    wait_until(lambda: not orch.marked(), 45, "the ranks have ended by their leases")
    measured.detected()
    time.sleep(max(0.0, began + AWAY_S - time.monotonic()))
    head.power_on()
    orch.cluster.guard(head)
    wait_back(orch, 90)
    for run, ranks in zip(runs, (2, 1), strict=True):
        orch.wait_trained(run, 2, ranks)
    measured.recovered()
    for run in runs:
        found = orch.let_end(run)
        assert [str(attempt.outcome) for attempt in found.attempts] == ["infra_error", "succeeded"]
        assert two_writers(orch.steps(run)) == []
        taken = orch.steps(run)
        measured.lost(steps=max(taken[1][rank][-1][0] - taken[2][rank][0][0] + 1 for rank in taken[1]))
    orch.reaches(waits, "succeeded")
    rules_hold(orch)


@fault(14)
def test_without_its_state_the_head_is_a_new_cluster_that_the_others_join_and_the_run_is_taken_up(
    lab, measured
) -> None:
    orch = started(lab, "memory", "90s")
    run = counting(orch, "2x1", 2)
    (gcs,) = orch.head.processes("ray/gcs/gcs_server ")
    os.kill(gcs.pid, signal.SIGKILL)
    measured.injected()
    wait_until(lambda: orch.ask("status").returncode == 6, 20, "it is said", every=0.2)
    measured.detected()
    # The old cluster's controller is gone with it: this is the one command that is needed.
    wait_until(lambda: orch.ask("up").returncode == 0, 60, "orch is up on the new cluster", every=1)
    wait_back(orch, 90)
    wait_until(lambda: all(node["busy"] for node in orch.nodes().values() if node["total"]), 60, "it is taken up")
    measured.recovered()
    found = orch.let_end(run)
    assert two_writers(orch.steps(run)) == []
    assert len(found.attempts) == 1
    measured.lost(steps=0)
    rules_hold(orch)
