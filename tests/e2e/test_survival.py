"""What dies without harm to a run: the controller, an agent, a client."""

from __future__ import annotations

import time

import pytest
from orch_home import until
from rows import fault, representative

pytestmark = pytest.mark.ray

COUNTS = """
import pathlib, sys, time
gate, number = pathlib.Path(sys.argv[1]), 0
while not gate.exists():
    print(f"line {number}", flush=True)
    number += 1
    time.sleep(0.02)
print(f"{number} lines", flush=True)
"""


@fault(17)
@representative
@pytest.mark.parametrize("title", ["ray::ControllerActor", "ray::AgentActor"])
def test_a_run_is_not_disturbed_when_it_is_killed_and_no_line_is_lost_or_told_twice(title, home, job, gate, tmp_path):
    path = job(COUNTS, arguments=gate, workers=2)
    shown = tmp_path / "shown"
    with shown.open("w") as out, home.popen("submit", path, "--follow", stdout=out) as client:
        until(lambda: "[rank 1] line 5\n" in shown.read_text(), 60, "the follower shows lines")
        run = int(shown.read_text().split()[0])
        ranks = home.ranks(run)
        killed = home.service(title)
        home.crash(killed.pid)
        until(lambda: _is_another(home, title, killed.pid), 30, f"another {title} runs")
        seen = len(shown.read_text())
        until(lambda: len(shown.read_text()) > seen + 200, 30, "the follower shows lines again")
        assert home.ranks(run) == ranks
        gate.touch()
        assert client.wait(60) == 0
    lines = shown.read_text().splitlines()[1:]
    for rank in (0, 1):
        own = [line.removeprefix(f"[rank {rank}] ") for line in lines if line.startswith(f"[rank {rank}] ")]
        count = int(own[-1].split()[0])
        assert own[:-1] == [f"line {number}" for number in range(count)]
        assert home.logs(run, "--rank", rank) == own
    found = home.show(run)
    assert (found["state"], len(found["attempts"])) == ("succeeded", 1)


def _is_another(home, title, pid):
    try:
        return home.service(title).pid != pid
    except ValueError:
        return False


@fault(17)
@representative
def test_a_run_that_ends_while_there_is_no_controller_is_accounted_for(home, job, waiting_job, gate):
    run = home.submit(waiting_job())
    home.prints(run, "at the gate")
    pid = home.controller()
    home.crash(pid)
    gate.touch()
    began = time.monotonic()
    # What is asked meanwhile is answered from the database.
    assert home.show(run)["id"] == run
    until(lambda: home.json("status", code=None)["controller"] == "up", 30, "the controller is back")
    home.end(run)
    assert home.logs(run) == ["at the gate", "through"]
    assert time.monotonic() - began < 40
