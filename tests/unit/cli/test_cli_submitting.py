"""submit, plan, cancel, retry, init, schema: what is sent, what is printed, and what is refused before anything happens."""

from __future__ import annotations

import io
import json
import os
import pwd
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest


def last_run(stub):
    return next(body for call, _, body in reversed(stub.asked) if call == "POST /runs")


def test_submit_prints_the_id_and_sends_spec_code_and_user(orch, stub, job):
    done = orch("submit", job)
    assert (done.returncode, done.stdout) == (0, "42\n")
    body = last_run(stub)
    assert body["spec"]["workers"] == 2
    assert body["user"] == pwd.getpwuid(os.getuid()).pw_name
    assert body["workdir"] == str(job.parent)
    assert body["dry_run"] is False
    archive = stub.code[body["code"]["sha256"]]
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        assert tar.getnames() == ["job.yaml", "train.py"]


def test_code_that_is_there_is_not_sent_again(orch, stub, job):
    orch("submit", job)
    orch("submit", job)
    assert stub.calls().count("PUT /code") == 1
    assert stub.calls().count("POST /runs") == 2


def test_a_key_is_passed_on_and_two_submissions_without_one_are_two(orch, stub, job):
    orch("submit", job, "--key", "mine")
    assert last_run(stub)["key"] == "mine"
    orch("submit", job)
    first = last_run(stub)["key"]
    orch("submit", job)
    assert last_run(stub)["key"] != first


def test_an_answer_that_gets_lost_does_not_make_two_runs(orch, stub, job):
    """The controller takes the run and dies before it answers; the same key is sent again."""
    keys = []

    def answer(handler):
        keys.append(stub.asked[-1][2]["key"])
        if len(keys) == 1:
            handler.close_connection = True
        else:
            handler.answer(200, {"id": 42, "name": "train", "state": "queued", "notices": []})

    stub.answers["POST /runs"] = answer
    done = orch("submit", job)
    assert (done.returncode, done.stdout) == (0, "42\n")
    assert len(keys) == 2
    assert len(set(keys)) == 1


def test_set_overrides_the_file(orch, stub, job):
    orch("submit", job, "--set", "workers=1x4", "--set", "env.LR=0.1")
    spec = last_run(stub)["spec"]
    assert spec["workers"] == "1x4"
    assert spec["env"] == {"LR": "0.1"}


def test_json_of_submit_is_what_the_contract_says(orch, stub, job):
    assert json.loads(orch("submit", job, "--json").stdout) == {"id": 42, "name": "train", "state": "queued"}
    assert orch("submit", job, "-o", "name").stdout == "42\n"


def test_a_bad_file_is_refused_with_all_its_mistakes_before_anything_is_asked(orch, stub, job):
    job.write_text("run: train.py\nworkres: 2\ngrace: soon\n")
    done = orch("submit", job)
    assert (done.returncode, done.stdout, stub.asked) == (2, "", [])
    assert "job.yaml:2:1" in done.stderr
    assert "job.yaml:3:8" in done.stderr


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("run: gone.py\n", "gone.py"),
        ("run: train.py\nworkdir: gone\n", "there is no folder"),
        ("run: hidden.py\n", ".orchignore"),
    ],
)
def test_a_script_that_would_not_be_there_is_refused(orch, stub, job, text, named):
    (job.parent / "hidden.py").write_text("")
    (job.parent / ".gitignore").write_text("hidden.py\n")
    job.write_text(text)
    done = orch("submit", job)
    assert (done.returncode, stub.asked) == (2, [])
    assert named in done.stderr


def test_a_link_out_of_the_folder_is_refused(orch, stub, job):
    (job.parent / "data").symlink_to("/etc")
    done = orch("submit", job)
    assert (done.returncode, stub.asked) == (2, [])
    assert "data is a link to /etc" in done.stderr


def test_secrets_come_from_the_environment_and_all_that_are_missing_are_named(orch, stub, job):
    job.write_text("run: train.py\nsecrets: [KEY_ONE, KEY_TWO, KEY_THREE]\n")
    done = orch("submit", job, KEY_TWO="2")
    assert (done.returncode, stub.asked) == (2, [])
    assert "KEY_ONE, KEY_THREE" in done.stderr
    done = orch("submit", job, KEY_ONE="1", KEY_TWO="2", KEY_THREE="3")
    assert done.returncode == 0
    assert last_run(stub)["secrets"] == {"KEY_ONE": "1", "KEY_TWO": "2", "KEY_THREE": "3"}
    assert "KEY_ONE" not in json.dumps(last_run(stub)["spec"]["env"])


def test_a_dry_run_sends_no_code_and_says_where_it_would_go(orch, stub, job):
    placement = {"level": "node", "nodes": [{"node": "gpu-01", "gpus": [0, 1], "ranks": [0, 1]}]}
    drawing = ["gpu-01: GPU 0-1 = rank 0-1"]
    answer = {"fits_now": True, "reason": None, "placement": placement, "drawing": drawing}
    stub.answers["POST /runs"] = (200, answer)
    done = orch("submit", job, "--dry-run", "--json")
    assert done.returncode == 0
    answer = json.loads(done.stdout)
    assert (answer["id"], answer["state"], answer["placement"]) == (None, "valid", placement)
    assert "would start now, within one node" in done.stderr
    assert drawing[0] in done.stderr
    assert "PUT /code" not in stub.calls()
    assert last_run(stub)["dry_run"] is True


def test_the_controller_checks_the_file_where_one_runs_and_the_command_loads_no_checker(orch, stub, job):
    probe = """
import sys, cli.main
try:
    cli.main.main()
except SystemExit:
    print(sorted({"pydantic", "yaml"} & set(sys.modules)), file=sys.stderr)
"""
    command = [sys.executable, "-c", probe, "submit", str(job)]
    env = orch.env | {"PYTHONPATH": str(Path(__file__).parents[3])}
    # In the job's folder: a cluster.yaml in the current one would be read.
    done = subprocess.run(command, cwd=job.parent, env=env, capture_output=True, text=True, timeout=30, check=False)
    assert done.stdout == "42\n"
    assert done.stderr.splitlines()[-1] == "[]"
    assert stub.checked == 1


def test_a_plan_says_where_the_job_would_go_what_else_there_is_and_what_to_know(orch, stub, job):
    placement = {"level": "leaf", "busbw_predicted": 231.4, "busbw_bottleneck": "a <-> b: 400 Gb/s x 8", "nodes": []}
    others = [{"level": "node", "answer": "node: never: no node has 16 GPUs", "busbw_predicted": None}]
    answer = {"fits_now": True, "reason": None, "placement": placement, "drawing": ["a: GPU 0-7 = rank 0-7"]}
    stub.answers["POST /runs"] = (200, answer | {"alternatives": others, "notices": ["NCCL_ALGO: forces an algorithm"]})
    done = orch("plan", job)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [
        "train would start now, within one leaf, all-reduce at 231 GB/s predicted, bounded by a <-> b: 400 Gb/s x 8",
        "  a: GPU 0-7 = rank 0-7",
        "held to one level:",
        "  node: never: no node has 16 GPUs",
        "note: NCCL_ALGO: forces an algorithm",
    ]
    assert json.loads(orch("plan", job, "--json").stdout)["placement"] == placement
    assert last_run(stub)["dry_run"] is True


def test_a_job_that_never_fits_is_exit_5(orch, stub, job):
    stub.answers["POST /runs"] = (422, {"error": "can never fit this cluster: 2 of 1", "code": 5})
    done = orch("submit", job)
    assert (done.returncode, done.stdout) == (5, "")
    assert "can never fit this cluster: 2 of 1" in done.stderr


def test_cancel_goes_on_after_a_run_that_is_not_there(orch, stub):
    stub.answers["GET /runs"] = (200, [])
    stub.answers["POST /runs/42/cancel"] = (200, {"id": 42, "name": "resnet50", "state": "stopping"})
    stub.answers["POST /runs/41/cancel"] = (200, {"id": 41, "name": "old", "state": "failed", "already": True})
    done = orch("cancel", "nope", "42", "41", "42")
    assert done.returncode == 3
    assert done.stdout == "42\tresnet50\tstopping\n41\told\tfailed\n"
    assert "run 41 (old) had ended already: failed" in done.stderr
    assert stub.calls().count("POST /runs/42/cancel") == 1


def test_retry_takes_the_secrets_again(orch, stub, a_run):
    spec = {"secrets": ["WANDB_API_KEY"], "workers": 2}
    stub.answers["GET /runs/42"] = (200, a_run(state="failed", spec=spec))
    stub.answers["POST /runs/42/retry"] = (200, {"id": 42, "name": "resnet50", "state": "queued"})
    done = orch("retry", "42")
    assert (done.returncode, "WANDB_API_KEY" in done.stderr) == (2, True)
    assert orch("retry", "42", WANDB_API_KEY="x").stdout == "42\tresnet50\tqueued\n"
    assert stub.asked[-1][2] == {"secrets": {"WANDB_API_KEY": "x"}}


def test_only_what_failed_is_retried(orch, stub, a_run):
    stub.answers["GET /runs/42"] = (200, a_run())
    done = orch("retry", "42")
    assert (done.returncode, "is succeeded" in done.stderr) == (7, True)


def test_a_file_that_cannot_be_written_is_bad_usage(orch, tmp_path):
    refused = orch("init", "--file", tmp_path / "no" / "such.yaml")
    assert (refused.returncode, "cannot be written" in refused.stderr) == (2, True)


def test_init_names_its_own_file(orch, tmp_path):
    orch("init", "--file", tmp_path / "mine.yaml")
    assert "orch submit mine.yaml" in (tmp_path / "mine.yaml").read_text()


def test_init_writes_a_job_that_can_be_submitted_and_overwrites_nothing(orch, stub, job, monkeypatch):
    monkeypatch.chdir(job.parent)
    target = job.parent / "new.yaml"
    assert orch("init", "train.py", "--file", target).returncode == 0
    written = target.read_text()
    assert orch("submit", target).returncode == 0
    again = orch("init", "train.py", "--file", target)
    assert again.returncode == 7
    assert target.read_text() == written


def test_the_schema_is_json(orch):
    assert "run" in json.loads(orch("schema").stdout)["properties"]
