"""What scripts depend on: the keys of the JSON, the exit codes, and that a refused command has changed nothing."""

from __future__ import annotations

import os
import signal
import sqlite3
from datetime import datetime

import pytest
from orch_home import OrchHome
from rows import fault, representative

pytestmark = pytest.mark.ray

PRINTS = "print('done')"
LISTED = {
    "id", "name", "user", "team", "state", "reason", "submitted_at", "started_at", "finished_at", "priority", "attempts",
    "throughput", "gpu_seconds",
}  # fmt: skip
ATTEMPT = {"number", "outcome", "failure", "placement", "transport", "started_at", "ended_at"}
PLACEMENT = {"level", "busbw_predicted", "busbw_bottleneck", "nodes"}


@pytest.fixture
def elsewhere():
    """An ORCH_HOME that is not there yet and must not be brought up by what the test does."""
    other = OrchHome()
    yield other
    started = other.root.exists() and other.services()
    other.remove()
    assert not started


def test_show_has_the_keys_of_the_contract(home, job):
    run = home.submit(job(PRINTS, team="vision", tags="{sweep: a}"), "--wait")
    found = home.show(run)
    assert found.keys() >= LISTED | {"spec", "code", "events"}
    assert found["code"].keys() >= {"sha256", "git"}
    (attempt,) = found["attempts"]
    assert attempt.keys() >= ATTEMPT | {"exit_codes"}
    assert attempt["placement"].keys() >= PLACEMENT
    assert attempt["placement"]["nodes"][0].keys() == {"node", "gpus", "ranks"}
    assert [event["state"] for event in found["events"]] == ["queued", "starting", "running", "succeeded"]
    parts = dict(found["gpu_seconds"])
    assert parts.pop("allocated") == sum(parts.values())
    assert parts.keys() == {"productive", "starting", "lost", "idle", "checkpoint"}
    times = [datetime.fromisoformat(found[key]) for key in ("submitted_at", "started_at", "finished_at")]
    assert times == sorted(times)
    assert all(time.utcoffset() is not None for time in times)


def test_ps_lists_what_lives_and_runs_the_history_with_the_same_keys(home, waiting_job, gate):
    run = home.submit(waiting_job(workers=12))
    waits = home.submit(waiting_job())
    home.reaches(run, "running")
    live = home.json("ps")
    assert [(row["id"], row["state"], row["position"]) for row in live] == [
        (run, "running", None),
        (waits, "queued", 1),
    ]
    assert "room for 0 of 1 workers" in live[1]["reason"]
    assert all(row.keys() >= LISTED and "spec" not in row and "events" not in row for row in live)
    assert home("ps", "-o", "name").stdout.split() == [str(run), str(waits)]
    gate.touch()
    home.end(run)
    home.end(waits)
    assert home.json("ps") == []
    latest = home.json("runs", "--name", "gate", "--limit", 2)
    assert [row["id"] for row in latest] == [waits, run]
    assert all(
        row.keys() >= LISTED and row["attempts"][0]["placement"]["nodes"][0].keys() == {"node", "gpus"}
        for row in latest
    )


def test_submit_prints_an_id_or_one_object(home, job):
    path = job(PRINTS)
    run = home.submit(path)
    assert home("submit", path).stdout == f"{run + 1}\n"
    assert home("submit", path, "-o", "name").stdout == f"{run + 2}\n"
    assert home.json("submit", path) == {"id": run + 3, "name": "train", "state": "queued"}
    assert home.json("submit", path, "--wait") == {"id": run + 4, "name": "train", "state": "succeeded"}


def test_status_says_where_the_controller_is_and_how_busy(home, job, waiting_job, gate):
    home.submit(job(PRINTS), "--wait")
    run = home.submit(waiting_job(workers=3))
    home.reaches(run, "running")
    status = home.json("status")
    assert status.keys() >= {"controller", "address", "api_url", "dashboard_url", "nodes", "gpus"}
    assert (status["controller"], status["nodes"], status["gpus"]) == ("up", 1, {"total": 0, "busy": 0})
    assert status["cpu_slots"] == {"total": 12, "busy": 3}


def test_a_run_that_does_not_exist_is_3(home, job):
    home.submit(job(PRINTS), "--wait")
    for command in ("show", "logs", "cancel", "retry"):
        assert "no such run" in home(command, 99999, code=3).stderr
    assert "Did you mean train?" in home("show", "trian", code=3).stderr


def test_a_job_that_can_never_fit_is_5_and_leaves_no_run(home, job):
    last = home.submit(job(PRINTS), "--wait")
    refused = home("submit", job(PRINTS, workers=13), code=5)
    assert "room for 12 of 13 workers" in refused.stderr
    assert "no node of the cluster has a GPU" in home("submit", job(PRINTS, device="cuda"), code=5).stderr
    assert home.json("runs", "--limit", 1)[0]["id"] == last


def test_a_bad_file_is_2_and_starts_nothing(elsewhere, job):
    done = elsewhere("submit", job(PRINTS, workrs=2), code=2)
    assert "train.yaml:2:1: workrs: unknown key. Did you mean 'workers'?" in done.stderr
    assert elsewhere("submit", job(PRINTS, secrets="[NO_SUCH_SECRET]"), code=2).stderr.count("NO_SUCH_SECRET") > 0
    assert not elsewhere.root.exists()


def test_only_a_run_that_has_not_succeeded_is_tried_again(home, job):
    run = home.submit(job(PRINTS), "--wait")
    assert "succeeded" in home("retry", run, code=7).stderr


def test_a_key_makes_a_repeat_harmless(home, job):
    path = job(PRINTS)
    first = home.submit(path, "--key", "nightly 2026-11-23")
    assert home.submit(path, "--key", "nightly 2026-11-23", "--wait") == first
    assert home.submit(path, "--wait") == first + 1


@fault(18)
@representative
def test_an_interrupted_wait_is_130_and_a_late_one_124_and_the_run_goes_on(home, waiting_job, gate):
    path = waiting_job()
    with home.popen("submit", path, "--follow") as client:
        run = int(client.stdout.readline())
        assert client.stdout.readline() == "at the gate\n"
        client.send_signal(signal.SIGINT)
        _, said = client.communicate(timeout=20)
    assert client.returncode == 130
    assert f"the run goes on; `orch cancel {run}` ends it" in said
    late = home("submit", path, "--wait", "--timeout", "1s", code=124)
    assert "goes on" in late.stderr
    assert home.show(run)["state"] == "running"
    gate.touch()
    home.end(run)
    home.end(int(late.stdout))


def test_down_refuses_while_a_run_lives(home, waiting_job, gate):
    run = home.submit(waiting_job())
    refused = home("down", code=7)
    assert f"{run} (gate)" in refused.stderr
    gate.touch()
    home.end(run)


class TestStateThatOrchDoesNotTrust:
    """Every command ends with a sentence and the code of the contract, and starts nothing."""

    COMMANDS = (["ps"], ["runs"], ["show", "1"], ["logs", "1"])

    def test_help_and_what_needs_no_cluster_work_without_any_state(self, elsewhere):
        for arguments in (["--help"], ["submit", "--help"], ["schema"], ["config"], ["--version"]):
            elsewhere(*arguments)
        for arguments in (*self.COMMANDS, ["status"], ["cancel", "1"]):
            assert "orch up" in elsewhere(*arguments, code=6).stderr
        assert not elsewhere.root.exists()

    def test_a_damaged_database_is_8(self, elsewhere, job):
        elsewhere.root.mkdir(mode=0o700)
        (elsewhere.root / "orch.db").write_bytes(b"SQLite format 3\0" + os.urandom(8192))
        for arguments in self.COMMANDS:
            elsewhere(*arguments, code=8)

    def test_a_database_of_a_newer_version_is_8(self, elsewhere, home, job):
        home.submit(job(PRINTS), "--wait")
        elsewhere.root.mkdir(mode=0o700)
        with sqlite3.connect(home.root / "orch.db") as source, sqlite3.connect(elsewhere.root / "orch.db") as copy:
            source.backup(copy)
            copy.execute("UPDATE orch_version SET version_num = '9999'")
        copy.close()
        source.close()
        for arguments in self.COMMANDS:
            assert "newer" in elsewhere(*arguments, code=8).stderr

    def test_a_token_that_others_can_read_is_4(self, elsewhere, job):
        elsewhere.root.mkdir(mode=0o700)
        (elsewhere.root / "token").write_text("secret")
        (elsewhere.root / "token").chmod(0o644)
        refused = elsewhere("submit", job(PRINTS), code=4)
        assert f"chmod 600 {elsewhere.root}/token" in refused.stderr

    def test_a_home_that_cannot_be_made_is_4(self, elsewhere, job):
        elsewhere.root.write_text("a file is in the way")
        for root in (elsewhere.root, "/proc/orch"):
            refused = elsewhere("submit", job(PRINTS), env={"ORCH_HOME": str(root)}, code=4)
            assert f"{root} cannot be made" in refused.stderr
