"""What is measured while the database takes nothing is kept in memory, within a bound, and written once it does: row 26."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, closing, contextmanager, nullcontext
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from rows import fault, representative

from orchestrator.control.backend import GpuLook, Report
from orchestrator.control.gpu_usage import GpuUse
from orchestrator.control.measuring import Measuring
from orchestrator.control.runtime import Runtime, Settings
from orchestrator.history.measurements import Measured
from orchestrator.history.store import Store
from orchestrator.scheduling.run import Run
from orchestrator.testing import START, ManualClock, a_new_run, a_placement
from orchestrator.testing.controlling import until

GPUS, MOST_KEPT = 100, 2_000
LARGEST = MOST_KEPT + 2 * GPUS
"""What waits at most while a write is under way: the bound, and what comes in a turn."""


class Stuck(Store):
    """A history whose measurements wait for a server that stands still."""

    goes_on: threading.Event | None = None

    def measure(self, taken: Sequence[Measured], now: datetime) -> None:
        if self.goes_on is not None:
            assert self.goes_on.wait(30)
        super().measure(taken, now)


@asynccontextmanager
async def measuring(folder: Path) -> AsyncIterator[tuple[Measuring, Stuck, Runtime, Callable[[], Any]]]:
    """One that measures a run; what it is over; and a minute of looks at all GPUs, told and written down."""
    store, clock = Stuck.open(f"sqlite:///{folder}/orch.db", busy_timeout_s=0.05), ManualClock(START)
    runtime = Runtime(store, Settings(folder, folder), now=clock)
    await runtime.take_over("test")
    run: Run = store.place(store.submit(a_new_run(workers=1), START)[0].id, a_placement(a=(0,)), START)
    found = Measuring(runtime, every_s=0.05, most_kept=MOST_KEPT)
    found.begin(run)

    async def a_minute() -> None:
        looks = tuple(GpuLook(run.id, 1, gpu, GpuUse(utilization=50.0)) for gpu in range(GPUS))
        found.take_in("a", Report(1, (), gpus=looks))
        clock.advance(61)
        await found.write_down()

    try:
        yield found, store, runtime, a_minute
    finally:
        await runtime.close()
        store.close()


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    with closing(sqlite3.connect(folder / "orch.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        yield
        other.execute("ROLLBACK")


def minutes_of_gpus(folder: Path) -> list[int]:
    """How many GPUs have a row, for each minute that has any."""
    with closing(sqlite3.connect(folder / "orch.db")) as raw:
        return [count for (count,) in raw.execute("SELECT count(*) FROM gpu_samples GROUP BY at ORDER BY at")]


@fault(26)
@representative
@pytest.mark.parametrize("stuck", [False, True], ids=["refused", "not answered"])
def test_what_waits_for_the_database_is_bounded_and_the_newest_of_it_is_written(tmp_path: Path, stuck: bool) -> None:
    async def story() -> None:
        async with measuring(tmp_path) as (found, store, runtime, a_minute):
            alarms = runtime.alarms
            await a_minute()
            store.goes_on = threading.Event() if stuck else None
            with nullcontext() if stuck else locked(tmp_path):
                for _ in range(26):
                    await a_minute()
                    assert found.kept_rows <= LARGEST
            (alarm,) = [alarm for alarm in alarms if alarm.kind == "measurements"]
            assert "rows of measurements are lost" in alarm.text
            if store.goes_on is not None:
                store.goes_on.set()

            async def all_written() -> bool:
                await found.write_down()
                return found.kept_rows < GPUS

            await until(all_written, 60)
            assert not [alarm for alarm in alarms if alarm.kind == "measurements"]
            minutes = minutes_of_gpus(tmp_path)
            assert set(minutes) == {GPUS}
            assert MOST_KEPT // GPUS - 2 <= len(minutes) <= MOST_KEPT // GPUS + 3

    asyncio.run(story())
