"""Faults of the network, and a raylet that freezes: rows 8 to 13. Whatever is cut off ends by itself; nobody writes twice."""

from __future__ import annotations

import os
import signal
import time

import pytest
from hosts import wait_until
from invariants import one_writer
from orchlab import Orch
from rows import fault, representative

pytestmark = [pytest.mark.lab, pytest.mark.ray, pytest.mark.torch, pytest.mark.timeout(200)]

LEASE_S = 8


@representative
@fault(9)
def test_ranks_that_are_cut_off_end_by_their_lease_and_the_run_goes_on_elsewhere(orch: Orch, measured) -> None:
    run = orch.trains("2x2", 4)
    host = orch.victim(run)
    host.link("down")
    measured.injected()
    took = wait_until(lambda: not orch.of_attempt(run, 1, host), 30, "the ranks that are cut off have ended")
    measured.note(f"its ranks ended {took:.1f} s after it was cut off, by a lease of {LEASE_S} s")
    assert took < LEASE_S + 3
    failure = orch.wait_ended(run).failure
    measured.detected()
    assert failure is not None
    assert failure.node == host.name
    orch.wait_trained(run, 2, 4)
    # Whoever comes back finds another at work.
    host.link("up")
    wait_until(lambda: not host.processes("raylet/raylet"), 30, "the raylet that was taken for dead has ended")
    orch.goes_on(run, 4, measured)


@fault(8)
def test_a_raylet_that_freezes_is_as_good_as_dead_and_what_wakes_up_ends(orch: Orch, measured) -> None:
    run = orch.trains("2x2", 4)
    host = orch.victim(run)
    (raylet,) = host.processes("raylet/raylet")
    os.kill(raylet.pid, signal.SIGSTOP)
    measured.injected()
    failure = orch.wait_ended(run).failure
    measured.detected()
    assert failure is not None
    assert failure.node == host.name
    orch.wait_trained(run, 2, 4)
    os.kill(raylet.pid, signal.SIGCONT)
    wait_until(lambda: not host.processes("raylet/raylet"), 15, "it ends when it wakes up")
    wait_until(lambda: not orch.of_attempt(run, 1), 15, "nothing of the first attempt is left")
    orch.goes_on(run, 4, measured)


@fault(10)
@pytest.mark.parametrize("what", ["from the head", "to the head", "Ray's port", "the ranks' port"])
def test_a_run_goes_on_or_is_tried_again_whatever_part_of_the_traffic_is_lost(orch: Orch, measured, what: str) -> None:
    run = orch.trains("2x2", 4)
    host = orch.victim(run)
    match what:
        case "from the head":
            host.drop_from(orch.head)
        case "to the head":
            orch.head.drop_from(host)
        case "Ray's port":
            orch.head.drop("tcp dport 6379")
        case "the ranks' port":
            orch.head.drop(f"tcp dport {orch.master_port(run)}")
    measured.injected()
    cut_off_at = time.monotonic()
    wait_until(
        lambda: time.monotonic() > cut_off_at + 15, 16, "15 s have passed: more than Ray's patience, and than the lease"
    )
    # Nobody is said to be well of whom nothing can be heard.
    if what in ("from the head", "to the head"):
        assert orch.nodes()[host.name]["state"] == "down"
    for one in orch.lab.hosts:
        one.heal()
    number = len(orch.recorded(run).attempts)
    before = len(orch.steps(run).get(number, {}).get(0, ()))
    orch.mend()
    orch.wait_trained(run, number, 4, steps=before + 20, timeout=90)
    measured.recovered()
    one_writer(orch.steps(run))
    found = orch.let_end(run)
    measured.note(f"{what}: {'goes on' if len(found.attempts) == 1 else 'tried again'}")


@fault(11)
def test_a_run_succeeds_in_one_attempt_though_5_percent_of_packets_are_lost(orch: Orch, measured) -> None:
    for host in orch.lab.hosts:
        host.drop("numgen random mod 100 < 5")
    measured.injected()
    run = orch.trains("3x2", 6, steps=60)
    assert len(orch.let_end(run).attempts) == 1


def flaps(orch: Orch, node: str) -> int:
    """How often its link has gone down within an hour, as `orch nodes` says."""
    return next((one["numbers"]["flaps"] for one in orch.nodes()[node]["findings"] if one["what"] == "flaps"), 0)


@fault(12)
def test_a_run_outlives_a_link_that_flaps(orch: Orch, measured) -> None:
    run = orch.trains("2x2", 4)
    host = orch.victim(run)
    measured.injected()
    for _ in range(5):
        host.link("down")
        time.sleep(2)
        host.link("up")
        time.sleep(8)
    attempts = len(orch.recorded(run).attempts)
    before = len(orch.steps(run)[attempts][0])
    orch.wait_trained(run, attempts, 4, steps=before + 20)
    measured.recovered()
    # The kernel has counted, and the agent looks every 30 s.
    wait_until(lambda: flaps(orch, host.name) >= 3, 45, f"it is said of {host.name} that its link flaps", every=1)
    found = orch.let_end(run)
    assert len(found.attempts) <= 2
    one_writer(orch.steps(run))
    measured.note("in one attempt" if len(found.attempts) == 1 else "with one retry")


@fault(13)
def test_a_slow_network_shows_in_the_steps_and_ends_nothing(orch: Orch, measured) -> None:
    run = orch.trains("2x2", 4, environ=", WIDTH: '100000'", steps=20)
    host = orch.victim(run)
    host.throttle("8mbit")
    measured.injected()
    began = len(orch.steps(run)[1][0])
    orch.wait_trained(run, 1, 4, steps=began + 20, timeout=90)
    at = [at for _, at in orch.steps(run)[1][0]]
    before, after = (at[began - 1] - at[began - 11]) / 10, (at[began + 19] - at[began + 9]) / 10
    assert after > 2 * before
    host.heal()
    found = orch.let_end(run)
    assert len(found.attempts) == 1
    attempt = found.attempts[0]
    assert attempt.progress is not None
    assert attempt.progress.step_time_p99 > 2 * before
    measured.note(f"{before:.2f} s a step before, {after:.2f} s with 8 Mbit/s")
