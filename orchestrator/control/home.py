"""ORCH_HOME: the folder, the token, and the notes by which the CLI, the cluster and the controller find each other."""

from __future__ import annotations

import hashlib
import json
import os
import stat
import tempfile
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from orchestrator.config_keys import Preflight
from orchestrator.control.private_file import InsecureHome, private_token
from orchestrator.control.ray_auth import RayAuth

_DEEPEST = "/ray/session_2026-01-01_00-00-00_000000_4194304/sockets/plasma_store"
_SOCKET_PATH = 107
"""Bytes that the path of a Unix socket may have."""


def node_folder(namespace: str) -> Path:
    """Where a home's Ray session and agent keep their files on a node, below a folder that is this user's alone.

    /tmp where the machine's temporary folder has so long a name that no socket fits into it, as batch systems make them.
    """
    below = Path(f"orch-{os.getuid()}") / namespace
    folder = Path(tempfile.gettempdir()) / below
    return folder if len(os.fsencode(folder)) + len(_DEEPEST) <= _SOCKET_PATH else Path("/tmp") / below  # noqa: S108


def own_node_folder(namespace: str) -> Path:
    """As `node_folder`, there and this user's alone from /tmp down. Raises InsecureHome where somebody was there before.

    Whoever owns a folder above can put another in its place, and with it a launcher of their own.
    """
    folder = node_folder(namespace)
    for one in (folder.parent, folder):
        with suppress(FileExistsError):
            one.mkdir(mode=0o700)
        info = one.lstat()
        if not stat.S_ISDIR(info.st_mode) or info.st_uid != os.getuid():
            raise InsecureHome(
                f"{one} is not this user's own folder (uid {info.st_uid} has made it): it must be removed"
            )
        if info.st_mode & 0o077:
            one.chmod(0o700)
    return folder


@dataclass(frozen=True)
class ClusterNote:
    """How this home's cluster is run: written by `orch up`, read by the controller. The database's URL may hold a password."""

    namespace: str
    address: str
    database: str
    storage: str
    lease_s: float
    log_limit: int
    code_limit: int
    fabric: list[str] = field(default_factory=list)
    hardware: str | None = None
    preflight: Preflight = "on"
    policy: dict[str, str] = field(default_factory=dict)
    """Teams and the scheduler's settings, as texts."""
    prices: dict[str, float] = field(default_factory=dict)
    dashboard_url: str | None = None
    dashboard_proxy: int | None = None
    """The port on which Ray's dashboard asks for orch's runs."""
    local: bool = True
    ray_auth: RayAuth = "unknown"
    keep_runs: float | None = None
    keep_series: float | None = None
    keep_logs: float | None = None


class Home:
    """One ORCH_HOME."""

    def __init__(self, root: Path) -> None:
        self.root = root

    @property
    def namespace(self) -> str:
        """Two homes never meet: their actors, holds and folders on the nodes are named by this."""
        return "orch-" + hashlib.sha256(str(self.root.resolve()).encode()).hexdigest()[:8]

    @property
    def cluster_file(self) -> Path:
        return self.root / "cluster.json"

    @property
    def controller_file(self) -> Path:
        return self.root / "controller.json"

    @property
    def audit_file(self) -> Path:
        """Who asked for what (audit.py)."""
        return self.root / "audit.log"

    @property
    def head_state(self) -> Path:
        """What Ray's head knows, where it keeps that on disk. Nothing of orch's is in it."""
        return self.root / "head"

    @property
    def monitoring(self) -> Path:
        """The files for Prometheus and Grafana."""
        return self.root / "monitoring"

    def make(self) -> None:
        """The folder, for this user alone. Raises InsecureHome."""
        try:
            self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise InsecureHome(f"{self.root} cannot be made: {error.strerror}; choose another ORCH_HOME") from None
        info = self.root.stat()
        if info.st_uid != os.getuid():
            raise InsecureHome(f"{self.root} belongs to another user")
        if info.st_mode & 0o077:
            self.root.chmod(0o700)

    def token(self) -> str:
        """The API's token, made at first. Raises InsecureHome where others may read it."""
        return private_token(self.token_file())

    def token_file(self) -> Path:
        return self.root / "token"

    def metrics_token_file(self) -> Path:
        """The token that Prometheus scrapes with: it opens /metrics and nothing else."""
        private_token(self.root / "metrics_token")
        return self.root / "metrics_token"

    def ray_token_file(self) -> Path:
        """Ray's own token for clusters that orch starts (Ray itself would write one that everybody can read)."""
        private_token(self.root / "ray_token")
        return self.root / "ray_token"

    def read_cluster(self) -> ClusterNote | None:
        note = _read(self.cluster_file)
        return ClusterNote(**note) if note else None

    def write_cluster(self, note: ClusterNote) -> None:
        _write(self.cluster_file, asdict(note))

    def read_controller(self) -> dict[str, Any] | None:
        return _read(self.controller_file)

    def write_controller(self, url: str, version: str) -> None:
        _write(self.controller_file, {"url": url, "pid": os.getpid(), "version": version})

    def controller_lives(self) -> None:
        """The controller's sign of life, on the head's disk: it needs no database, and a new head finds it."""
        with suppress(OSError):
            os.utime(self.controller_file)

    def controller_last_alive(self) -> datetime | None:
        with suppress(OSError):
            return datetime.fromtimestamp(self.controller_file.stat().st_mtime, UTC)
        return None


def _read(path: Path) -> dict[str, Any] | None:
    with suppress(OSError, ValueError):
        value = json.loads(path.read_text())
        return value if isinstance(value, dict) else None
    return None


def _write(path: Path, value: dict[str, Any]) -> None:
    temporary = path.with_suffix(".tmp")
    with open(os.open(temporary, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600), "w") as file:
        json.dump(value, file)
    temporary.replace(path)
