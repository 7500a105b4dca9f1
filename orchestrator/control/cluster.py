"""Brings the cluster of one ORCH_HOME up and down: a private Ray head where none is configured, and the controller on it.

Run as `python -m orchestrator.control.cluster up|down`, it says how far it is as JSON lines on standard output: {"step": ...}, at
last {"ok": true} or {"error": ..., "code": ...}.
"""

from __future__ import annotations

import fcntl
import json
import os
import pwd
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import psutil

from orchestrator.config import Config, load_config
from orchestrator.config_keys import HeadStorage
from orchestrator.control.home import ClusterNote, Home, node_folder, own_node_folder
from orchestrator.control.monitoring import dashboards_folder
from orchestrator.control.private_file import InsecureHome
from orchestrator.control.ray_auth import ray_auth
from orchestrator.document import DocumentError
from orchestrator.hardware.formats import FormatError, read_hardware
from orchestrator.policy_text import policy_as_texts

Say = Callable[[str], None]

HEALTH = {
    # Ray's defaults notice a dead node after more than a minute; these after about eight seconds.
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "2000",
    "RAY_health_check_failure_threshold": "3",
}
HUNG_S = 30.0
UP_S = 180.0
"""Ray waits without an end for a head that hangs; `orch up` does not."""
_KEPT = frozenset(
    {"PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "LANGUAGE", "TZ", "TMPDIR", "VIRTUAL_ENV", "PYTHONPATH"}
    | {"LD_LIBRARY_PATH", "CUDA_HOME", "CUDA_PATH", "CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER"}
    | {"HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy"}
    | {"SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE"}
)
_KEPT_PREFIXES = ("LC_", "XDG_", "NCCL_", "NVIDIA_", "HF_HOME", "TORCH_HOME")


class ClusterError(Exception):
    """The cluster could not be brought up or down; `code` is the exit code."""

    def __init__(self, sentence: str, code: int = 6) -> None:
        super().__init__(sentence)
        self.code = code


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


@contextmanager
def one_at_a_time(home: Home) -> Iterator[None]:
    """Two submissions at once start one cluster, not two."""
    with open(os.open(home.root / "cluster.lock", os.O_CREAT | os.O_RDWR, 0o600)) as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _health(home: Home, timeout_s: float = 2.0) -> dict[str, Any] | None:
    """What the controller says of itself, with its URL; None if it does not answer."""
    note = home.read_controller()
    if note is None:
        return None
    with suppress(OSError, ValueError), urllib.request.urlopen(f"{note['url']}/healthz", timeout=timeout_s) as answer:  # noqa: S310
        return {**json.loads(answer.read()), "url": str(note["url"])} if answer.status == 200 else None
    return None


def _is_lost(before: ClusterNote | None, health: Mapping[str, Any] | None) -> bool:
    """Whether the head is dead, or has hung for so long that it is to be ended: a moment's silence on a busy machine is neither."""
    if before is not None and not _listens(before.address):
        return True  # the controller outlives it by a minute
    return health is not None and health["cluster"].get("for_s", 0.0) >= HUNG_S


def controller_url(home: Home) -> str | None:
    """Where the controller answers; None if it does not."""
    health = _health(home)
    return None if health is None else health["url"]


def up(home: Home, config: Config, environ: Mapping[str, str], say: Say) -> str:
    """Starts what is not running yet; the API's URL. Raises ClusterError, InsecureHome."""
    home.make()
    home.token()
    with one_at_a_time(home):
        health = _health(home)
        lost = _is_lost(home.read_cluster(), health)
        if health is not None and not lost:
            return str(health["url"])
        try:
            read_hardware([*config.fabric, *([config.hardware] if config.hardware else [])])
        except FormatError as error:
            raise ClusterError(str(error), 2) from None
        local = config.address is None
        head = _local_head(home, config, environ, say, lost=lost) if local else _given_head(config)
        home.write_cluster(
            ClusterNote(
                namespace=home.namespace,
                address=head.address,
                database=config.database,
                storage=str(config.storage),
                lease_s=config.lease,
                log_limit=config.log_limit,
                keep_runs=config.history_keep_runs,
                keep_series=config.history_keep_series,
                keep_logs=config.history_keep_logs,
                code_limit=config.code_limit,
                fabric=[str(path) for path in config.fabric],
                hardware=str(config.hardware) if config.hardware else None,
                dashboard_url=head.dashboard_url,
                dashboard_proxy=head.dashboard_proxy,
                preflight=config.preflight,
                policy=policy_as_texts(config.policy),
                prices=dict(config.prices),
                ray_auth=ray_auth(head.address),
                local=local,
            )
        )
        say("starting the controller")
        return _controller(home, head.address, ray_env(home, environ, local=local, head_storage=config.head_storage))


@contextmanager
def _ray(home: Home, address: str, env: Mapping[str, str]) -> Iterator[Any]:
    """This process as a driver of the Ray cluster at `address`, in the home's namespace. Raises ClusterError."""
    # Ray reads its way of authentication once per process, when it is imported.
    os.environ.clear()
    os.environ.update(env)
    import ray
    from ray.exceptions import RayError
    from ray.job_config import JobConfig

    # The dashboard lists every driver: this one is gone in a second, and named by what it did.
    named = JobConfig(metadata={"job_name": "orch up or down"})
    try:
        ray.init(
            address=address,
            namespace=home.namespace,
            log_to_driver=False,
            configure_logging=False,
            job_config=named,
        )
    except (ConnectionError, RayError, RuntimeError, ValueError) as error:
        raise ClusterError(f"no Ray cluster at {address} lets us in: {str(error).splitlines()[0]}") from None
    try:
        yield ray
    finally:
        ray.shutdown()


def _controller(home: Home, address: str, env: Mapping[str, str]) -> str:
    with _ray(home, address, env) as ray:
        from orchestrator.control.ray_backend import ensure_controller

        actor = ensure_controller(home, home.namespace)
        try:
            url: str = ray.get(actor.ready.remote(), timeout=60)
        except ray.exceptions.RayError as error:
            ray.kill(actor)
            cause = getattr(error, "cause", None) or error
            code = getattr(cause, "exit_code", 6)
            raise ClusterError(f"the controller did not start: {str(cause).strip().splitlines()[-1]}", code) from None
    if controller_url(home) is None:
        raise ClusterError(
            f"the controller runs at {url} on the head node of {address}, which is not this machine: run orch there"
        )
    return url


@dataclass(frozen=True)
class _Head:
    """A Ray head, and how orch's runs get onto its dashboard."""

    address: str
    dashboard_url: str | None
    dashboard_proxy: int | None


def _given_head(config: Config) -> _Head:
    """The head of the cluster that others started. Raises ClusterError."""
    address = str(config.address)
    if config.head_storage != "memory":
        raise ClusterError(
            f"head_storage is for a head that orch starts; that of {address} was started by others, "
            "who give it RAY_gcs_storage and RAY_gcs_storage_path (docs/head.md)",
            2,
        )
    if not _listens(address):
        raise ClusterError(
            f"no Ray head answers at {address}: start it there (`ray start --head --port={address.rpartition(':')[2]} ...`), "
            "then `orch up` again; runs go on until their leases end, or are tried again from their checkpoints"
        )
    return _Head(address, None, config.dashboard_proxy)


def _local_head(home: Home, config: Config, environ: Mapping[str, str], say: Say, *, lost: bool) -> _Head:
    """A Ray head that no other program joins by accident: own session folder, free ports, loopback, a token of its own."""
    previous = home.read_cluster()
    if previous is not None and previous.local and _ray_processes(home):
        if not lost:
            return _Head(previous.address, previous.dashboard_url, previous.dashboard_proxy)
        # The launcher and its ranks stay: the next agent takes them up if it is there before their lease is over.
        say("ending what is left of a Ray whose head has died")
        _end_ray(home)
    say("starting a private Ray on this machine")
    folder = temp_dir(home)
    own_node_folder(home.namespace)
    folder.mkdir(mode=0o700, exist_ok=True)
    port = 0
    if config.head_storage == "rocksdb":
        home.head_state.mkdir(mode=0o700, exist_ok=True)
        port = _port_again(previous)
    (folder / "ray_current_cluster").unlink(missing_ok=True)
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
    current = folder / "ray_current_cluster"
    if started.returncode or not current.exists():
        tail = " ".join(started.stdout.strip().splitlines()[-3:])
        hint = f"; if it is for what it kept in {home.head_state}, remove that: orch's own records are not in it"
        raise ClusterError(f"Ray did not start: {tail}{hint if config.head_storage == 'rocksdb' else ''}")
    return _Head(current.read_text().strip(), f"http://127.0.0.1:{dashboard}", proxy)


def _listens(address: str) -> bool:
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


def down(home: Home, environ: Mapping[str, str], *, force: bool, say: Say) -> None:
    """Ends the controller, the agents' launchers and, where orch started it, Ray. Raises ClusterError(7) while runs live."""
    if not home.root.exists():
        return
    with one_at_a_time(home):
        note = home.read_cluster()
        if controller_url(home):
            say("asking the controller to end")
            _ask_down(home, force=force)
        if note is not None and note.local:
            say("ending Ray")
            _end_local(home)
        elif note is not None and _listens(note.address):
            say("ending the controller and the agents")
            _end_actors(home, note, ray_env(home, environ, local=False))
        home.controller_file.unlink(missing_ok=True)


def _ask_down(home: Home, *, force: bool) -> None:
    note = home.read_controller()
    assert note is not None
    request = urllib.request.Request(  # noqa: S310
        f"{note['url']}/api/v1/down?by={quote(_user(), safe='')}",
        data=json.dumps({"force": force}).encode(),
        headers={"Authorization": f"Bearer {home.token()}"},
        method="POST",
    )
    try:
        with urllib.request.urlopen(request, timeout=60):  # noqa: S310
            pass
    except urllib.error.HTTPError as error:
        answer = json.loads(error.read() or b"{}")
        raise ClusterError(answer.get("error", str(error)), answer.get("code", 6)) from None
    except OSError:
        pass  # it ended while it answered, or hangs: what follows ends it all the same


def _user() -> str:
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return str(os.getuid())


def _end_ray(home: Home) -> None:
    # It holds nothing that the database does not, and takes more than ten seconds to end by itself.
    _kill(_ray_processes(home))


def _end_local(home: Home) -> None:
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


def _end_actors(home: Home, note: ClusterNote, env: Mapping[str, str]) -> None:
    """Takes what is orch's off a Ray cluster that goes on without it; that cluster may have no dashboard to ask."""
    with _ray(home, note.address, env) as ray:
        from ray.util.placement_group import get_placement_group, placement_group_table, remove_placement_group

        from orchestrator.control.ray_backend import hold_name

        for name in ray.util.list_named_actors():
            with suppress(ValueError):
                ray.kill(ray.get_actor(name))
        for row in placement_group_table().values():
            if row["name"].startswith(hold_name(home.namespace, "")) and row["state"] != "REMOVED":
                with suppress(ValueError):
                    remove_placement_group(get_placement_group(row["name"]))


def main() -> None:
    """`up` and `down [--force]` for the CLI, which imports neither Ray nor this; the configuration is read as the CLI reads it."""
    verb = sys.argv[1]

    def say(step: str) -> None:
        print(json.dumps({"step": step}), flush=True)

    def give_up() -> None:
        error = f"`orch {verb}` was not done within {UP_S:.0f} s: Ray's head hangs. `orch down` ends a private one"
        print(json.dumps({"error": error, "code": 6}), flush=True)
        os._exit(1)

    began = time.monotonic()
    limit = threading.Timer(UP_S, give_up)
    limit.daemon = True
    limit.start()
    try:
        config = load_config(os.environ, Path.cwd(), {})
        if verb == "up":
            up(Home(config.home), config, dict(os.environ), say)
        else:
            down(Home(config.home), dict(os.environ), force="--force" in sys.argv, say=say)
    except (ClusterError, InsecureHome, DocumentError) as error:
        print(json.dumps({"error": str(error), "code": getattr(error, "code", 4)}), flush=True)
        sys.exit(1)
    except OSError as error:  # a disk that is full or read-only
        print(json.dumps({"error": f"{error.filename or 'the home folder'}: {error.strerror}", "code": 4}), flush=True)
        sys.exit(1)
    print(json.dumps({"ok": True, "seconds": round(time.monotonic() - began, 1)}), flush=True)


if __name__ == "__main__":
    main()
