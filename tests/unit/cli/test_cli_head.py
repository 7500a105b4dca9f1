"""What commands say while Ray's head, or the storage, does not answer the controller."""

import json

import pytest

HEAD = "10.0.0.1:6379"


@pytest.fixture
def lost(stub):
    """The controller answers, and cannot reach Ray's head."""
    code, answer = stub.answers["GET /status"]
    why = f"Ray's head at {HEAD} does not answer"
    stub.answers["GET /status"] = code, answer | {"cluster": {"state": "lost", "for_s": 12.3, "why": why}}


@pytest.mark.parametrize(
    ("address", "do"), [("local", "`orch up` starts it again"), (HEAD, "start it again there (`ray start --head ...`)")]
)
def test_status_ends_with_6_and_says_since_when_and_what_to_do(address, do, lost, orch):
    done = orch("--address", address, "status", "--json")
    assert done.returncode == 6
    assert json.loads(done.stdout)["cluster"]["state"] == "lost"
    assert done.stderr == f"Error: Ray's head at {HEAD} does not answer, for 12 s now: {do}\n"


def test_a_job_for_a_cluster_that_others_run_is_taken_and_told_that_it_waits(lost, orch, stub, job):
    done = orch("--address", HEAD, "submit", job)
    assert (done.returncode, done.stdout) == (0, "42\n")
    assert "what is submitted meanwhile waits until it answers" in done.stderr


def test_a_dry_run_starts_no_cluster(lost, orch, stub, job):
    assert orch("submit", job, "--dry-run").returncode == 0
    assert "POST /runs" in stub.calls()


def test_a_storage_that_stalls_is_said_beside_the_status(orch, stub):
    code, answer = stub.answers["GET /status"]
    stub.answers["GET /status"] = code, answer | {"storage": {"state": "stalled", "for_s": 40.2, "folder": "/mnt/ckpt"}}
    done = orch("status")
    assert done.returncode == 0
    assert done.stderr == "storage stalled 40 s: /mnt/ckpt does not answer; runs that touch it wait\n"
