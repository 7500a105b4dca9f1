"""Jupyter on the run's GPUs, locked: it listens on the loopback alone, and opens to a token made anew at every start.

The token goes by the environment, which other users cannot read, and not by the command line, which they can. Configuration
files are left out, so that none of them opens what is locked here.
"""

import getpass
import os
import platform
import secrets
import socket
import sys
from importlib.util import find_spec

SERVERS = ("jupyterlab", "notebook", "jupyter_server")


def main() -> None:
    server = next((name for name in SERVERS if find_spec(name)), None)
    if server is None:
        sys.exit(f"{sys.executable} has no Jupyter: name one under python: that has, or `pip install jupyterlab`")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    token = secrets.token_urlsafe(32)
    print(f"on your own machine:  ssh -N -L 8888:127.0.0.1:{port} {getpass.getuser()}@{platform.node()}")
    print(f"then open             http://127.0.0.1:8888/?token={token}", flush=True)
    command = [
        sys.executable,
        "-m",
        server,
        "--ip=127.0.0.1",
        f"--port={port}",
        "--ServerApp.port_retries=0",
        "--no-browser",
    ]
    if kept := os.environ.get("ORCH_CHECKPOINT_DIR"):
        # What is written beside the script goes with the run's copy of the code.
        os.makedirs(kept, exist_ok=True)
        command.append(f"--ServerApp.root_dir={kept}")
    if os.geteuid() == 0:
        command.append("--allow-root")
    # The ranks' launcher asks for the end with SIGTERM, which Jupyter takes as its own.
    os.execve(sys.executable, command, os.environ | {"JUPYTER_TOKEN": token, "JUPYTER_NO_CONFIG": "1"})


main()
