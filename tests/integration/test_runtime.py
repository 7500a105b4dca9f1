"""Writes that come together share a transaction, and who writes alone waits for nobody."""

import asyncio
from contextlib import contextmanager
from pathlib import Path

from orchestrator.control.runtime import Runtime, Settings
from orchestrator.history.store import Store
from orchestrator.testing.controlling import job


class Counting(Store):
    """Counts its transactions."""

    groups = 0

    @contextmanager
    def group(self):
        self.groups += 1
        with super().group():
            yield


def test_those_who_were_answered_together_are_written_together_again(tmp_path: Path) -> None:
    async def story(store: Counting) -> None:
        runtime = Runtime(store, Settings(tmp_path, tmp_path))
        await runtime.take_over("test")

        async def client() -> None:
            for _ in range(5):
                await runtime.submit(job())

        await asyncio.gather(*(client() for _ in range(4)))
        # The first write goes alone, at once; from then on the four go together, where none takes longer than a moment to ask.
        assert store.groups < 20
        assert len(store.waiting()) == 20
        await runtime.close()

    with Counting.open(f"sqlite:///{tmp_path}/orch.db") as store:
        asyncio.run(story(store))


def test_who_writes_alone_waits_for_nobody(tmp_path: Path) -> None:
    async def story(store: Counting) -> None:
        runtime = Runtime(store, Settings(tmp_path, tmp_path))
        await runtime.take_over("test")
        for number in range(1, 4):
            writing = asyncio.ensure_future(runtime.submit(job()))
            await asyncio.sleep(0)
            assert runtime._gathering is None
            await writing
            assert store.groups == number
        await runtime.close()

    with Counting.open(f"sqlite:///{tmp_path}/orch.db") as store:
        asyncio.run(story(store))
