"""jobs/notebook_server.py: Jupyter that opens to whoever has its token, on its own machine, and to nobody else."""

from __future__ import annotations

import http.client
import os
import re
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import psutil
import pytest

SCRIPT = Path(__file__).parents[2] / "jobs" / "notebook_server.py"
STUB = "import os, sys\nprint(sys.argv[1:], os.environ['JUPYTER_TOKEN'], os.environ['JUPYTER_NO_CONFIG'])\n"


def _lines(tmp_path, **env):
    done = subprocess.run(
        [sys.executable, SCRIPT], env=os.environ | env, cwd=tmp_path, capture_output=True, text=True, check=True
    )
    return done.stdout.splitlines()


def test_the_token_is_new_at_every_start_and_on_no_command_line(tmp_path):
    (tmp_path / "jupyterlab").mkdir()
    (tmp_path / "jupyterlab" / "__main__.py").write_text(STUB)
    (tmp_path / "jupyterlab" / "__init__.py").touch()
    seen = set()
    for _ in range(2):
        tunnel, link, started = _lines(tmp_path, PYTHONPATH=str(tmp_path))
        port, token = re.search(r"127\.0\.0\.1:(\d+) ", tunnel)[1], link.rpartition("token=")[2]
        arguments, in_environment, no_config = re.fullmatch(r"(\[.*\]) (\S+) (\S+)", started).groups()
        assert (in_environment, no_config) == (token, "1")
        assert "'--ip=127.0.0.1'" in arguments
        assert f"'--port={port}'" in arguments
        assert token not in arguments
        seen.add(token)
    assert len(seen) == 2
    assert min(map(len, seen)) >= 40


def test_notebooks_are_kept_in_the_checkpoint_folder(tmp_path):
    (tmp_path / "jupyterlab").mkdir()
    (tmp_path / "jupyterlab" / "__main__.py").write_text(STUB)
    (tmp_path / "jupyterlab" / "__init__.py").touch()
    kept = tmp_path / "storage" / "notebooks"
    *_, started = _lines(tmp_path, PYTHONPATH=str(tmp_path), ORCH_CHECKPOINT_DIR=str(kept))
    assert f"'--ServerApp.root_dir={kept}'" in started
    assert kept.is_dir()


def test_an_interpreter_without_jupyter_is_told_so(tmp_path):
    done = subprocess.run(
        [sys.executable, "-I", "-S", SCRIPT], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "has no Jupyter" in done.stderr


@pytest.mark.skipif(find_spec("jupyter_server") is None, reason="needs jupyter-server: pip install jupyter-server")
def test_jupyter_listens_on_the_loopback_alone_and_asks_for_its_token(tmp_path):
    config = tmp_path / ".jupyter"
    config.mkdir()
    (config / "jupyter_server_config.py").write_text("c.ServerApp.ip = '0.0.0.0'\nc.IdentityProvider.token = ''\n")
    env = os.environ | {"HOME": str(tmp_path), "JUPYTER_CONFIG_DIR": str(config), "ORCH_HOME": str(tmp_path)}
    process = subprocess.Popen(
        [sys.executable, SCRIPT], cwd=tmp_path, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    try:
        port = int(re.search(r"127\.0\.0\.1:(\d+) ", process.stdout.readline())[1])
        token = process.stdout.readline().strip().rpartition("token=")[2]
        answers = _once_up(process, port)
        assert answers({}) == 403
        assert answers({"Authorization": "token nonsense"}) == 403
        assert answers({"Authorization": f"token {token}", "Host": "evil.example"}) == 403
        assert answers({"Authorization": f"token {token}"}) == 200
        listens = [c.laddr.ip for c in psutil.Process(process.pid).net_connections("inet") if c.status == "LISTEN"]
        assert listens == ["127.0.0.1"]
        process.terminate()
        assert process.wait(20) is not None
    finally:
        process.kill()
        process.wait()


def _once_up(process, port):
    def status(headers):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
        connection.request("GET", "/api/status", headers=headers)
        return connection.getresponse().status

    deadline = time.monotonic() + 60
    while process.poll() is None and time.monotonic() < deadline:
        try:
            status({})
        except ConnectionRefusedError:
            time.sleep(0.1)
        else:
            return status
    raise AssertionError("Jupyter did not start")
