"""When a command starts a cluster of this machine, what it shows of that, and when it must not."""

from __future__ import annotations

import sys
import textwrap


def fake_cluster(orch, tmp_path, program):
    """Puts a program in the place of `python -m orchestrator.control.cluster`."""
    (tmp_path / "fake_cluster.py").write_text("import json, os, pathlib, sys\n" + textwrap.dedent(program))
    hook = (
        "import subprocess, sys\n"
        "real = subprocess.Popen.__init__\n"
        "def init(self, command, *args, **kwargs):\n"
        "    if 'orchestrator.control.cluster' in command:\n"
        f"        command = [sys.executable, {str(tmp_path / 'fake_cluster.py')!r}, *command[3:]]\n"
        "    real(self, command, *args, **kwargs)\n"
        "subprocess.Popen.__init__ = init\n"
        "from cli.main import main\n"
        "main()\n"
    )
    orch.command = [sys.executable, "-c", hook]


def test_a_dry_run_without_a_cluster_starts_none(orch, job):
    done = orch("submit", job, "--dry-run")
    assert (done.returncode, done.stdout) == (0, "")
    assert "no cluster is up" in done.stderr
    assert not orch.home.exists()


def test_a_configured_cluster_that_is_out_of_reach_is_exit_6_and_no_local_one_is_started(orch, job):
    done = orch("submit", job, ORCH_ADDRESS="10.255.0.1:6379")
    assert done.returncode == 6
    assert not orch.home.exists()


def test_the_local_cluster_is_started_first_with_its_progress_on_stderr(orch, stub, job, tmp_path):
    where = (stub.home / "controller.json").read_text()
    (stub.home / "controller.json").unlink()
    fake_cluster(
        orch,
        tmp_path,
        f"""
        print("noise of a library", flush=True)
        print(json.dumps({{"step": "starting Ray"}}), flush=True)
        pathlib.Path(os.environ["ORCH_HOME"], "controller.json").write_text({where!r})
        print(json.dumps({{"ok": True}}))
        """,
    )
    done = orch("submit", job)
    assert (done.returncode, done.stdout) == (0, "42\n")
    assert "starting Ray" in done.stderr
    assert "noise" not in done.stderr


def test_a_cluster_that_cannot_start_is_a_sentence_with_its_code(orch, job, tmp_path):
    fake_cluster(orch, tmp_path, 'print(json.dumps({"error": "port 6379 is taken", "code": 7})); sys.exit(1)')
    done = orch("submit", job)
    assert (done.returncode, done.stdout) == (7, "")
    assert "port 6379 is taken" in done.stderr
    fake_cluster(orch, tmp_path, "print('Segmentation', file=sys.stderr); sys.exit(9)")
    done = orch("up")
    assert done.returncode == 6
    assert "exit code 9: Segmentation" in done.stderr


def test_a_bad_job_starts_no_cluster(orch, job, tmp_path):
    fake_cluster(orch, tmp_path, f"pathlib.Path({str(tmp_path)!r}, 'started').touch()")
    job.write_text("run: gone.py\n")
    assert orch("submit", job).returncode == 2
    assert not (tmp_path / "started").exists()


def test_down_is_the_clusters_affair_and_force_is_passed_on(orch, tmp_path):
    fake_cluster(
        orch,
        tmp_path,
        """
        if "--force" not in sys.argv:
            print(json.dumps({"error": "1 run lives: 42 (resnet50)", "code": 7}))
            sys.exit(1)
        print(json.dumps({"step": " ".join([sys.argv[1], os.environ["ORCH_HOME"], os.environ["ORCH_DATABASE"]])}))
        print(json.dumps({"ok": True}))
        """,
    )
    done = orch("down")
    assert (done.returncode, "resnet50" in done.stderr) == (7, True)
    done = orch("--database", "sqlite:////elsewhere/x.db", "down", "--force")
    assert done.returncode == 0
    assert f"down {orch.home} sqlite:////elsewhere/x.db" in done.stderr
