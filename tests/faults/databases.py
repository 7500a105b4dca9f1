"""A controller of a given database, as the tests of databases that fail need it."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

from orchestrator.control.controller import Controller
from orchestrator.control.runtime import Settings
from orchestrator.testing.cluster import FakeCluster
from orchestrator.testing.controlling import started


def over(
    url: str, home: Path, cluster: FakeCluster, busy_timeout_s: float, **more: Any
) -> AbstractAsyncContextManager[Controller]:
    """A controller of the database at `url`, which waits so long for others."""
    settings = Settings(home, home / "storage", sync_wait_s=0.05, watch_s=0.02, lost_after_s=0.05, preflight="quick")
    return started(cluster, settings, database=url, busy_timeout_s=busy_timeout_s, **more)
