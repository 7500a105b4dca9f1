"""Forgetting what is old, as `history:` of the configuration says: runs, series, logs and code, a little at a time."""

from __future__ import annotations

import asyncio
import logging
import shutil
import time
from datetime import timedelta
from pathlib import Path

from orchestrator.control.code_store import SHA256
from orchestrator.control.runtime import Runtime

log = logging.getLogger("orch.expiry")

EVERY_S = 3600.0
RUNS_AT_ONCE = 50
"""Of a transaction, which the controller's other writes wait for."""
NODE_EVENTS_AT_ONCE = 1000
BREATH_S = 0.05
UNSENT_S = 86_400.0
"""A snapshot that no run names yet may be about to be submitted."""


class Expiry:
    """One per controller."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime, self._keep = runtime, runtime.settings.keep
        self._logs, self._code = runtime.settings.home / "logs", runtime.settings.home / "code"

    def start(self) -> None:
        if any(limit is not None for limit in (self._keep.runs, self._keep.series, self._keep.logs)):
            self._runtime.forever("forgetting what is old", self.sweep, EVERY_S)

    async def sweep(self) -> None:
        """Once through everything that may go."""
        if self._keep.series is not None:
            await self._drop_series(self._keep.series)
        if self._keep.runs is not None:
            await self._expire_runs(self._keep.runs)
            await self._expire_node_events(self._keep.runs)
        # The logs of runs that have expired go in any case.
        limits = [limit for limit in (self._keep.logs, self._keep.runs) if limit is not None]
        if limits:
            await self._remove_logs(min(limits))
        if self._keep.runs is not None:
            await self._remove_code()

    async def _expire_runs(self, keep_s: float) -> None:
        runtime, count = self._runtime, 0
        while gone := await runtime.write(
            runtime.store.expire_runs, runtime.now() - timedelta(seconds=keep_s), runtime.now(), RUNS_AT_ONCE
        ):
            count += len(gone)
            await asyncio.sleep(BREATH_S)
        if count:
            log.info("%d runs have expired", count)

    async def _expire_node_events(self, keep_s: float) -> None:
        runtime = self._runtime
        before = runtime.now() - timedelta(seconds=keep_s)
        while await runtime.write(runtime.store.expire_node_events, before, NODE_EVENTS_AT_ONCE):
            await asyncio.sleep(BREATH_S)

    async def _drop_series(self, keep_s: float) -> None:
        runtime, after, more = self._runtime, 0, True
        while more:
            before = runtime.now() - timedelta(seconds=keep_s)
            after, more = await runtime.write(runtime.store.drop_series, before, after, RUNS_AT_ONCE)
            await asyncio.sleep(BREATH_S)

    async def _remove_logs(self, keep_s: float) -> None:
        runtime = self._runtime
        runs = sorted(await asyncio.to_thread(_numbered, self._logs))
        before = runtime.now() - timedelta(seconds=keep_s)
        for start in range(0, len(runs), 500):
            chosen = await runtime.read(runtime.store.whose_logs_may_go, runs[start : start + 500], before)
            for run in chosen:
                await asyncio.to_thread(shutil.rmtree, self._logs / str(run), ignore_errors=True)
            await asyncio.sleep(BREATH_S)

    async def _remove_code(self) -> None:
        runtime = self._runtime
        old = await asyncio.to_thread(_snapshots, self._code, time.time() - UNSENT_S)
        for sha256 in await runtime.read(runtime.store.unused_code, old):
            await asyncio.to_thread((self._code / f"{sha256}.tar.gz").unlink, missing_ok=True)


def _numbered(folder: Path) -> list[int]:
    return [int(one.name) for one in folder.iterdir() if one.name.isdecimal()] if folder.is_dir() else []


def _snapshots(folder: Path, before: float) -> list[str]:
    """The hashes of those that were last asked for before a time."""
    if not folder.is_dir():
        return []
    files = [(one, one.name.removesuffix(".tar.gz")) for one in folder.iterdir() if one.name.endswith(".tar.gz")]
    return [name for one, name in files if SHA256.match(name) and one.stat().st_mtime < before]
