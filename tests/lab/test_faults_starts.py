"""A gang of which only a part starts: row 19. What has started is ended, nothing has trained, and it starts elsewhere."""

from __future__ import annotations

import os
import signal

import pytest
from hosts import wait_until
from orchlab import Orch
from rows import fault, representative

pytestmark = [pytest.mark.lab, pytest.mark.ray, pytest.mark.torch, pytest.mark.timeout(150)]

TAKES_THE_PORT = """
import os, subprocess, sys
if os.environ["ORCH_ATTEMPT"] == "1" and os.environ["RANK"] == "0":
    listens = "import socket, sys, time; s = socket.socket(); s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1); " \\
        "s.bind(('', int(sys.argv[1]))); s.listen(); print('taken', flush=True); time.sleep(600)"
    command = [sys.executable, "-c", listens, os.environ["MASTER_PORT"]]
    subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True).stdout.readline()
"""


@pytest.fixture(autouse=True)
def _all_alike(orch: Orch) -> None:
    """What other tests did to a host's link would have it placed last."""
    orch.ask("undrain", *(host.name for host in orch.lab.hosts))


@representative
@fault(19)
def test_a_gang_of_which_one_node_cannot_start_its_part_starts_elsewhere(orch: Orch, measured) -> None:
    second = orch.lab["lab2"]
    measured.injected()
    second.run(["bash", "-c", "mount -t tmpfs -o ro tmpfs /tmp/*/*/node-lab2/runs"], check=True)
    run = orch.submit_steps("2x2")
    attempt = orch.wait_ended(run)
    assert second in orch.hosts_of(attempt)
    wait_until(lambda: not orch.of_attempt(run, 1), 15, "what had started is gone")
    assert attempt.failure is not None
    assert (attempt.failure.kind, attempt.failure.node) == ("start_failed", "lab2")
    assert "Read-only" in attempt.failure.message
    found = orch.goes_on(run, 4, measured)
    assert second not in orch.hosts_of(found.attempts[1])
    assert 1 not in orch.steps(run)
    second.run(["bash", "-c", "umount /tmp/*/*/node-lab2/runs"], check=True)


@fault(19)
def test_a_gang_whose_node_dies_while_others_have_started_trains_nowhere_and_starts_elsewhere(
    orch: Orch, measured
) -> None:
    second = orch.lab["lab2"]
    (launcher,) = [one for one in second.processes("control/launcher") if "rank.py" not in one.command]
    os.kill(launcher.pid, signal.SIGSTOP)
    run = orch.submit_steps("2x2")
    wait_until(lambda: orch.of_attempt(run, 1, orch.head), 20, "the first node's part has started")
    second.power_off()
    measured.injected()
    attempt = orch.wait_ended(run)
    measured.detected()
    assert second in orch.hosts_of(attempt)
    assert attempt.ranks_started_at is None
    wait_until(lambda: not orch.of_attempt(run, 1), 15, "what had started is gone")
    orch.goes_on(run, 4, measured)
    assert 1 not in orch.steps(run)


@fault(19)
def test_a_gang_whose_port_is_taken_gets_another(orch: Orch, measured) -> None:
    measured.injected()
    run = orch.submit_steps("2x2", before=TAKES_THE_PORT)
    failure = orch.wait_ended(run).failure
    assert failure is not None
    assert failure.kind == "port_taken"
    wait_until(lambda: not orch.of_attempt(run, 1), 15, "what had started is gone")
    assert 1 not in orch.steps(run)
    orch.goes_on(run, 4, measured)
