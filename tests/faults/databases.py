"""A controller of a given database, as the tests of databases that fail need it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from orchestrator.control.controller import Controller
from orchestrator.control.runtime import Settings
from orchestrator.history.store import Store
from orchestrator.testing.cluster import FakeCluster


@asynccontextmanager
async def over(
    url: str, home: Path, cluster: FakeCluster, busy_timeout_s: float, **more: Any
) -> AsyncIterator[Controller]:
    """A controller of the database at `url`, which waits so long for others."""
    settings = Settings(home, home / "storage", sync_wait_s=0.05, watch_s=0.02, lost_after_s=0.05, preflight="quick")
    store = Store.open(url, busy_timeout_s=busy_timeout_s)
    controller = Controller(store, cluster, settings, **more)
    await controller.start()
    try:
        yield controller
    finally:
        await controller.close()
        store.close()
