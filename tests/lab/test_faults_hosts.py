"""Faults of whole hosts, with leases as long as they are by default: rows 6, 7."""

from __future__ import annotations

import os
import signal

import pytest
from hosts import wait_until
from orchlab import SLEEPS, Orch
from rows import fault

pytestmark = [pytest.mark.lab, pytest.mark.ray, pytest.mark.torch, pytest.mark.timeout(200)]

LEASE_S = 25


@fault(7)
def test_a_run_on_a_host_without_power_goes_on_on_the_others_and_the_host_is_used_again(orch: Orch, measured) -> None:
    run = orch.trains("2x2", 4)
    host = orch.victim(run)
    host.power_off()
    measured.injected()
    failure = orch.wait_ended(run).failure
    assert measured.detected() <= 12
    assert failure is not None
    assert (failure.kind, failure.node) == ("node_lost", host.name)
    found = orch.goes_on(run, 4, measured)
    assert host.name not in {part.node for part in found.attempts[1].placement.nodes}
    assert orch.nodes()[host.name]["state"] == "down"
    waits = orch.submit(SLEEPS, "3x2")
    wait_until(lambda: host.name in (orch.show(waits)["reason"] or ""), 10, "it is said what keeps it")
    orch.mend()
    wait_until(lambda: orch("logs", waits, code=None).count("asleep") == 6, 30, "the host is used again", every=0.3)
    orch("cancel", waits)
    wait_until(lambda: orch.recorded(waits).ended, 20, "it has ended")


@fault(6)
def test_a_run_on_a_host_whose_raylet_is_killed_goes_on_on_the_others(orch: Orch, measured) -> None:
    run = orch.trains("2x2", 4)
    host = orch.victim(run)
    (raylet,) = host.processes("raylet/raylet")
    os.kill(raylet.pid, signal.SIGKILL)
    measured.injected()
    failure = orch.wait_ended(run).failure
    measured.detected()
    assert failure is not None
    assert failure.node == host.name
    found = orch.goes_on(run, 4, measured)
    assert host.name not in {part.node for part in found.attempts[1].placement.nodes}
