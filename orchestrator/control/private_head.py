"""The Ray head that orch starts on this machine for itself: in which environment, how it is found again, and how it ends."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from orchestrator.config import Config
from orchestrator.config_keys import HeadStorage
from orchestrator.control.cluster_error import ClusterError
from orchestrator.control.home import ClusterNote, Home, node_folder, own_node_folder
from orchestrator.control.monitoring import dashboards_folder

Say = Callable[[str], None]
"""Takes a step, for whoever waits."""

HEALTH = {
    # Ray's defaults notice a dead node after more than a minute; these after about eight seconds.
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "2000",
    "RAY_health_check_failure_threshold": "3",
}
_KEPT = frozenset(
    {"PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "LANGUAGE", "TZ", "TMPDIR", "VIRTUAL_ENV", "PYTHONPATH"}
    | {"LD_LIBRARY_PATH", "CUDA_HOME", "CUDA_PATH", "CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER"}
    | {"HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy"}
    | {"SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE"}
)
_KEPT_PREFIXES = ("LC_", "XDG_", "NCCL_", "NVIDIA_", "HF_HOME", "TORCH_HOME")


def ray_env(
    home: Home, environ: Mapping[str, str], *, local: bool, head_storage: HeadStorage = "memory"
) -> dict[str, str]:
    """The environment for Ray's processes: what a machine's programs need, and none of the submitter's secrets."""
    env = {k: v for k, v in environ.items() if k in _KEPT or k.startswith(_KEPT_PREFIXES)}
    env["RAY_USAGE_STATS_ENABLED"] = "0"
    if local:
        env |= HEALTH
        env["RAY_AUTH_MODE"] = "token"
        env["RAY_AUTH_TOKEN_PATH"] = str(home.ray_token_file())
        # No worker is wanted but for the controller and the agent: Ray would start one per CPU ahead of need.
        env["RAY_prestart_worker_first_driver"] = "0"
        env["RAY_enable_worker_prestart"] = "0"
        env["RAY_METRICS_GRAFANA_DASHBOARD_OUTPUT_DIR"] = str(dashboards_folder(home.monitoring))
        # Ray's own ports for metrics are the same on every cluster of a machine unless they are chosen.
        env["DASHBOARD_METRIC_PORT"] = str(_free_port())
        env["AUTOSCALER_METRIC_PORT"] = str(_free_port())
        # Loopback, whatever networks the machine is in: a laptop changes them (the name is Ray's, the switch works on Linux).
        env["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
        if head_storage == "rocksdb":
            env |= {"RAY_gcs_storage": "rocksdb", "RAY_gcs_storage_path": str(home.head_state)}
    else:
        env |= {k: v for k, v in environ.items() if k.startswith("RAY_")}
        env.setdefault(
            "RAY_AUTH_MODE", "token" if "RAY_AUTH_TOKEN" in env or "RAY_AUTH_TOKEN_PATH" in env else "disabled"
        )
    return env


def temp_dir(home: Home) -> Path:
    """Where the private head keeps its session."""
    return node_folder(home.namespace) / "ray"


@dataclass(frozen=True)
class Head:
    """A Ray head, and how orch's runs get onto its dashboard."""

    address: str
    dashboard_url: str | None
    dashboard_proxy: int | None


def local_head(home: Home, config: Config, environ: Mapping[str, str], say: Say, *, lost: bool) -> Head:
    """A Ray head that no other program joins by accident: own session folder, free ports, loopback, a token of its own.

    The one that runs already, unless it is `lost`. Raises ClusterError.
    """
    previous = home.read_cluster()
    if previous is not None and previous.local and _ray_processes(home):
        if not lost:
            return Head(previous.address, previous.dashboard_url, previous.dashboard_proxy)
        # The launcher and its ranks stay: the next agent takes them up if it is there before their lease is over.
        say("ending what is left of a Ray whose head has died")
        _end_ray(home)
    say("starting a private Ray on this machine")
    own_node_folder(home.namespace)
    temp_dir(home).mkdir(mode=0o700, exist_ok=True)
    port = 0
    if config.head_storage == "rocksdb":
        home.head_state.mkdir(mode=0o700, exist_ok=True)
        port = _port_again(previous)
    return _start(home, config, environ, port)


def _start(home: Home, config: Config, environ: Mapping[str, str], port: int) -> Head:
    folder = temp_dir(home)
    current = folder / "ray_current_cluster"
    current.unlink(missing_ok=True)
    dashboard, proxy = _free_port(), _free_port()
    command = [
        sys.executable, "-m", "ray.scripts.scripts", "start", "--head", f"--port={port}",
        "--node-ip-address=127.0.0.1", "--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}",
        f"--proxy-server-url=http://127.0.0.1:{proxy}",
        f"--temp-dir={folder}", f"--num-cpus={config.local_slots}", "--disable-usage-stats", "--include-dashboard=true",
        f"--dashboard-agent-listen-port={_free_port()}", f"--ray-client-server-port={_free_port()}",
        "--object-store-memory=200000000",
    ]  # fmt: skip
    started = subprocess.run(
        command,
        env=ray_env(home, environ, local=True, head_storage=config.head_storage),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        cwd="/",
    )
    if started.returncode or not current.exists():
        tail = " ".join(started.stdout.strip().splitlines()[-3:])
        hint = f"; if it is for what it kept in {home.head_state}, remove that: orch's own records are not in it"
        raise ClusterError(f"Ray did not start: {tail}{hint if config.head_storage == 'rocksdb' else ''}")
    return Head(current.read_text().strip(), f"http://127.0.0.1:{dashboard}", proxy)


def listens(address: str) -> bool:
    host, _, port = address.rpartition(":")
    with suppress(OSError), socket.create_connection((host, int(port)), timeout=2):
        return True
    return False


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _port_again(previous: ClusterNote | None) -> int:
    """The port of the head before, whose state names it; 0 (any) where there was none or somebody else has it."""
    if previous is None or not previous.local:
        return 0
    port = int(previous.address.rpartition(":")[2])
    with suppress(OSError), socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(("127.0.0.1", port))
        return port
    return 0


def _ray_processes(home: Home) -> list[psutil.Process]:
    """Those of the private Ray: that name its folder, what they started, and workers whose raylet has died under them."""
    named = _naming(temp_dir(home))
    token = f"RAY_AUTH_TOKEN_PATH={home.ray_token_file()}"
    found = {process.pid: process for one in named for process in (one, *_children(one))}
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            title = " ".join(process.cmdline())
            if title.startswith("ray::") and token.encode() in Path(f"/proc/{process.pid}/environ").read_bytes():
                found[process.pid] = process
    return list(found.values())


def _naming(folder: Path) -> list[psutil.Process]:
    """The processes with a path in `folder` on their command line."""
    mark = f"{folder}/"
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.pid != os.getpid() and any(mark in word for word in process.cmdline()):
                found.append(process)
    return found


def _end_ray(home: Home) -> None:
    # It holds nothing that the database does not, and takes more than ten seconds to end by itself.
    _kill(_ray_processes(home))


def end_local(home: Home) -> None:
    """Ends the head and what runs by it, the node's launcher and its ranks too, and drops what the head kept."""
    _end_ray(home)
    shutil.rmtree(home.head_state, ignore_errors=True)  # a cluster that was ended on purpose is not taken up again
    # The node's launcher; it ends its ranks, should a controller that is gone have left some.
    launchers = _naming(node_folder(home.namespace))
    ranks = [child for process in launchers for child in _children(process)]
    for process in launchers:
        with suppress(psutil.Error):
            process.terminate()
    _, alive = psutil.wait_procs(launchers, timeout=5)
    _kill([*alive, *ranks])


def _kill(processes: list[psutil.Process]) -> None:
    for process in processes:
        with suppress(psutil.Error):
            process.kill()
    psutil.wait_procs(processes, timeout=5)


def _children(process: psutil.Process) -> list[psutil.Process]:
    with suppress(psutil.Error):
        return process.children(recursive=True)
    return []
