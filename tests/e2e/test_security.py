"""Who could get at a cluster that orch has started, and where a secret is to be found: with the ranks, and nowhere else."""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
import subprocess
import sys
from ipaddress import ip_address
from pathlib import Path

import psutil
import pytest
from orch_home import OrchHome, environ_of, holds, until
from rows import fault

from orchestrator.control.private_head import ray_env
from orchestrator.control.ray_auth import ray_auth

pytestmark = pytest.mark.ray

TELLS_ITS_SECRET = """
import hashlib, os, pathlib, sys, time
key, gate = os.environ["API_KEY"], pathlib.Path(sys.argv[1])
print("the key is", key)
print(hashlib.sha256(key.encode()).hexdigest(), flush=True)
while not gate.exists():
    time.sleep(0.02)
"""

FAILS_WITH_ITS_SECRET = """
import os
if os.environ["ORCH_ATTEMPT"] == "1":
    raise ValueError("denied: " + os.environ["API_KEY"])
"""

# What Ray itself can be asked about: its actors and tasks with everything it knows of them.
RAY_STATE = """
import json, ray, sys
from ray.util.state import list_actors, list_jobs, list_nodes, list_placement_groups, list_runtime_envs, list_tasks, list_workers
ray.init(address=sys.argv[1], log_to_driver=False, configure_logging=False)
for ask in (list_actors, list_tasks, list_workers, list_placement_groups, list_nodes, list_jobs, list_runtime_envs):
    for row in ask(address=sys.argv[1], detail=True, limit=10000, raise_on_missing_output=False):
        print(row)
"""


def ray_state(home: OrchHome) -> str:
    note = home.home.read_cluster()
    assert note is not None
    asked = subprocess.run(
        [sys.executable, "-c", RAY_STATE, note.address],
        env=ray_env(home.home, home.env, local=True),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert "orch-controller" in asked.stdout, asked.stderr
    return asked.stdout + asked.stderr


def cmdline(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def found_in(home: OrchHome, canary: str, *runs: int) -> list[str]:
    """Where the canary is, but for the environment of ranks: files, processes, and what Ray and orch answer."""
    ranks = home.ranks()
    found = [f"environ of {pid}" for pid in psutil.pids() if pid not in ranks and canary in environ_of(pid)]
    found += [f"cmdline of {one.pid}" for one in psutil.process_iter() if canary in " ".join(cmdline(one))]
    files = (path for folder in (home.root, home.node_folder) for path in folder.rglob("*"))
    found += [str(path) for path in files if path.is_file() and holds(path, canary)]
    report = home.folder / "report.html"
    asked = {
        "Ray's state": ray_state(home),
        "orch export": home("export", "--format", "jsonl").stdout,
        "orch report": home("report", *runs, "-o", report).stderr + report.read_text(),
        **{
            f"orch {command}": home(*command.split(), "--json").stdout
            for command in ("runs", "ps", "nodes", "status", "top")
        },
        **{
            f"orch {command} {run}": home(command, run, "--json").stdout
            for command in ("show", "why", "logs")
            for run in runs
        },
    }
    return found + [what for what, said in asked.items() if canary in said]


def test_a_secret_is_with_the_ranks_and_nowhere_else_whatever_becomes_of_the_run(home, job, gate):
    canary = f"canary-{os.urandom(8).hex()}"
    key = {"API_KEY": canary}
    tells = job(TELLS_ITS_SECRET, name="tells", folder="tells", arguments=gate, workers=2, secrets="[API_KEY]")
    fails = job(FAILS_WITH_ITS_SECRET, name="fails", folder="fails", secrets="[API_KEY]")
    failed = home.submit(fails, "--wait", code=1, env=key)
    assert "denied: " + "*" * len(canary) in home.show(failed)["reason"] + "".join(home.logs(failed))
    lives, cancelled = home.submit(tells, env=key), home.submit(tells, env=key)
    for run in (lives, cancelled):
        home.prints(run, hashlib.sha256(canary.encode()).hexdigest(), ranks=2)
    ranks = home.ranks()
    assert len(ranks) == 4
    assert all(f"API_KEY={canary}" in environ_of(pid) for pid in ranks)
    assert sum(line.endswith("the key is " + "*" * len(canary)) for line in home.logs(lives)) == 2
    home("retry", failed, env=key)
    home.end(failed)
    home("cancel", cancelled)
    home.reaches(cancelled, "cancelled")
    home.crash(home.controller())
    until(lambda: home("status", code=None).returncode == 0, 30, "a new controller")
    try:
        assert found_in(home, canary, failed, lives, cancelled) == []
    finally:
        gate.touch()
    home.end(lives)
    assert found_in(home, canary, failed, lives, cancelled) == []


def test_nobody_but_this_machine_reaches_any_port_and_ray_asks_for_its_token(home, job, gate, waiting_job):
    run = home.submit(waiting_job(workers=2))
    home.prints(run, "at the gate", ranks=2)
    found = set()
    for process in home.services():
        try:
            listening = [one for one in process.net_connections("inet") if one.status == psutil.CONN_LISTEN]
        except psutil.Error:
            continue
        title = (" ".join(cmdline(process)).split() or ["?"])[0].rpartition("/")[2]
        found |= {(title, one.laddr.ip, one.laddr.port) for one in listening}
    gate.touch()
    home.end(run)
    assert {"gcs_server", "raylet", "ray::ControllerActor"} <= {title for title, _, _ in found}
    open_to_others = [one for one in found if not ip_address(one[1].removeprefix("::ffff:")).is_loopback]
    assert open_to_others == []
    note = home.home.read_cluster()
    assert (ray_auth(note.address), note.ray_auth, home.json("status")["ray_auth"]) == ("token", "token", "token")


def test_other_users_of_the_machine_can_read_nothing_of_a_home(home, job):
    home.submit(job("print()"), "--wait")
    for root in (home.root, home.node_folder.parent):
        assert stat.S_IMODE(root.stat().st_mode) == 0o700, "nothing below it can be reached"
    # Also where somebody opens the folder itself: orch's own files are nobody else's. A socket's mode counts for nothing there.
    lax = [
        f"{path.relative_to(home.root)} {stat.S_IMODE(path.lstat().st_mode):04o}"
        for path in home.root.rglob("*")
        # What Ray writes for Grafana is a picture of itself, the same everywhere; what ranks write is theirs.
        if not {"grafana", "storage"} & set(path.parts)
        and not path.is_symlink()
        and path.is_file()
        and path.lstat().st_mode & 0o077
    ]
    assert lax == []


def test_the_audit_log_says_who_asked_for_what(home, job):
    run = home.submit(job("print()"), "--wait")
    home("cancel", run)
    told = [json.loads(line) for line in (home.root / "audit.log").read_text().splitlines()]
    mine = [(one["call"], one["user"], one["uid"]) for one in told if one.get("run") == run]
    user = home.show(run)["user"]
    assert mine == [("POST /api/v1/runs", user, os.getuid()), (f"POST /api/v1/runs/{run}/cancel", user, os.getuid())]
    assert [one for one in told if one["call"] == "controller started"]
    assert all(re.fullmatch(r"20\d\d-\d\d-\d\dT[\d:.]+Z", one["at"]) for one in told)


@fault(35)
def test_hostile_names_and_arguments_stay_text(home, job, tmp_path: Path):
    canary = tmp_path / "canary"
    hostile = [
        f"; touch {canary}",
        f"$(touch {canary})",
        f"`touch {canary}`",
        f"| touch {canary}",
        f"&& touch {canary}",
        "../../x",
    ]
    script = "import json, sys; print(json.dumps(sys.argv[1:]))"
    arguments = " ".join(f"'{word}'" for word in hostile)
    # Free for a job to set, as its ranks are its own: they load code into nothing else.
    loads = {"LD_PRELOAD": "/none.so", "PYTHONSTARTUP": str(tmp_path / "startup.py")}
    (tmp_path / "startup.py").write_text(f"open({str(canary)!r}, 'w')")
    env = json.dumps({"A": f"$(touch {canary})", "B": "x\n; rm -rf /", **loads})
    run = home.submit(job(script, arguments=arguments, env=env, tags=json.dumps({"t": hostile[0]})), "--wait")
    assert json.loads(home.logs(run)[-1]) == hostile
    assert not canary.exists()
    assert [one.pid for one in home.services() if "/none.so" in environ_of(one.pid)] == []


@fault(42)
def test_a_token_that_was_replaced_opens_at_once_and_the_old_one_no_more(home, job, measured):
    home.submit(job("print()"), "--wait")
    token, old = home.root / "token", (home.root / "token").read_text()
    measured.injected()
    token.chmod(0o644)
    assert "chmod 600" in home("ps", code=4).stderr
    token.chmod(0o600)
    token.write_text("wrong-but-well-formed")
    token.chmod(0o600)
    # The controller has seen that its own file changed: what is in it now is the token.
    assert home("ps").returncode == 0
    token.unlink()
    assert "`orch up` makes a new one" in home("ps", code=4).stderr
    measured.detected()
    home("up")
    assert home("ps").returncode == 0
    measured.recovered()
    assert token.read_text() not in (old, "wrong-but-well-formed")
