"""Brings the cluster of one ORCH_HOME up and down: a private Ray head where none is configured, and the controller on it.

Run as `python -m orchestrator.control.cluster up|down`, it says how far it is as JSON lines on standard output: {"step": ...}, at
last {"ok": true} or {"error": ..., "code": ...}.
"""

from __future__ import annotations

import fcntl
import json
import os
import pwd
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote

from orchestrator.config import Config, load_config
from orchestrator.control.cluster_error import ClusterError
from orchestrator.control.code_version import this_code
from orchestrator.control.home import ClusterNote, Home
from orchestrator.control.private_file import InsecureHome
from orchestrator.control.private_head import Head, Say, end_local, listens, local_head, ray_env, ray_processes
from orchestrator.control.ray_auth import ray_auth
from orchestrator.document import DocumentError
from orchestrator.hardware.formats import FormatError, read_hardware
from orchestrator.history.database import open_database
from orchestrator.history.errors import DatabaseOlder, StoreError
from orchestrator.policy_text import policy_as_texts

HUNG_S = 30.0
READY_S = 60.0
UP_S = 180.0
"""Ray waits without an end for a head that hangs; `orch up` does not."""


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
    if before is not None and not listens(before.address):
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
        health, before = _health(home), home.read_cluster()
        lost = _is_lost(before, health)
        other = None if health is None or lost else _other_controller(home)
        if health is not None and not lost and other is None:
            return str(health["url"])
        if other is not None and before is not None:
            say(f"replacing the controller, which is of orch {other}")
            _refuse_newer(before)
        try:
            read_hardware([*config.fabric, *([config.hardware] if config.hardware else [])])
        except FormatError as error:
            raise ClusterError(str(error), 2) from None
        local = config.address is None
        head = local_head(home, config, environ, say, lost=lost) if local else _given_head(config)
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
        env = ray_env(home, environ, local=local, head_storage=config.head_storage)
        return _controller(home, head.address, env, replace=other is not None)


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


def _other_controller(home: Home) -> str | None:
    """The version of the controller that runs, where it is not of this code; runs go on while it is replaced."""
    note = home.read_controller() or {}
    return None if note.get("code") == this_code() else str(note.get("version"))


def _refuse_newer(note: ClusterNote) -> None:
    """Raises ClusterError where this code cannot go on from the database: before anything is ended."""
    try:
        open_database(note.database, readonly=True).close()
    except DatabaseOlder:
        pass  # the next controller upgrades it
    except StoreError as error:
        raise ClusterError(str(error), error.exit_code) from None


def _controller(home: Home, address: str, env: Mapping[str, str], *, replace: bool = False) -> str:
    with _ray(home, address, env) as ray:
        from orchestrator.control.ray_agent import CONTROLLER
        from orchestrator.control.ray_controller import ensure_controller

        if replace:
            with suppress(ValueError):  # it has ended meanwhile
                ray.kill(ray.get_actor(CONTROLLER))
            deadline = time.monotonic() + 10
            while CONTROLLER in ray.util.list_named_actors() and time.monotonic() < deadline:
                time.sleep(0.05)
        actor = ensure_controller(home, home.namespace)
        try:
            url = _when_ready(ray, actor)
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


def _when_ready(ray: Any, actor: Any) -> str:
    """The API's URL, once it answers. An actor that a head which is back starts anew is not available until then."""
    deadline = time.monotonic() + READY_S
    while True:
        try:
            url: str = ray.get(actor.ready.remote(), timeout=max(1.0, deadline - time.monotonic()))
            return url
        except ray.exceptions.ActorUnavailableError:
            if time.monotonic() >= deadline:
                raise
            time.sleep(0.2)


def _given_head(config: Config) -> Head:
    """The head of the cluster that others started. Raises ClusterError."""
    address = str(config.address)
    if config.head_storage != "memory":
        raise ClusterError(
            f"head_storage is for a head that orch starts; that of {address} was started by others, "
            "who give it RAY_gcs_storage and RAY_gcs_storage_path (docs/head.md)",
            2,
        )
    if not listens(address):
        raise ClusterError(
            f"no Ray head answers at {address}: start it there (`ray start --head --port={address.rpartition(':')[2]} ...`), "
            "then `orch up` again; runs go on until their leases end, or are tried again from their checkpoints"
        )
    return Head(address, None, config.dashboard_proxy)


def down(home: Home, environ: Mapping[str, str], *, force: bool, say: Say) -> bool:
    """Ends the controller, the agents' launchers and, where orch started it, Ray; False where nothing of them was there.

    Raises ClusterError(7) while runs live.
    """
    if not home.root.exists():
        return False
    with one_at_a_time(home):
        note = home.read_cluster()
        was_up = bool(controller_url(home))
        if was_up:
            say("asking the controller to end")
            _ask_down(home, force=force)
        if note is not None and note.local:
            if ray_processes(home):
                was_up = True
                say("ending Ray")
            end_local(home)
        elif note is not None and listens(note.address):
            was_up = True
            say("ending the controller and the agents")
            _end_actors(home, note, ray_env(home, environ, local=False))
        home.controller_file.unlink(missing_ok=True)
    return was_up


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
        changed = True
        if verb == "up":
            up(Home(config.home), config, dict(os.environ), say)
        else:
            changed = down(Home(config.home), dict(os.environ), force="--force" in sys.argv, say=say)
    except (ClusterError, InsecureHome, DocumentError) as error:
        print(json.dumps({"error": str(error), "code": getattr(error, "code", 4)}), flush=True)
        sys.exit(1)
    except OSError as error:  # a disk that is full or read-only
        print(json.dumps({"error": f"{error.filename or 'the home folder'}: {error.strerror}", "code": 4}), flush=True)
        sys.exit(1)
    print(json.dumps({"ok": True, "changed": changed, "seconds": round(time.monotonic() - began, 1)}), flush=True)


if __name__ == "__main__":
    main()
