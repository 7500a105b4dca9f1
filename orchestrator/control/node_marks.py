"""What was decided about each node, as it is in the database: drained, quarantined, on probation; and its history."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from orchestrator.control.runtime import Runtime
from orchestrator.health.marks import Mark
from orchestrator.history.nodes import NodeEvent

_NONE = Mark()


class NodeMarks:
    """By node, those that are not in the cluster now included."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._marks: dict[str, Mark] = {}
        self.lock = asyncio.Lock()
        """Held by whoever looks at a mark and changes it."""

    async def load(self) -> dict[str, dict[str, Any]]:
        """Reads them; gives what the health of each node is judged by."""
        self._marks, pasts = await self._runtime.read(self._runtime.store.node_marks)
        return pasts

    def of(self, node: str) -> Mark:
        return self._marks.get(node, _NONE)

    def __iter__(self) -> Iterator[tuple[str, Mark]]:
        return iter(list(self._marks.items()))

    async def change(self, new: Mapping[str, Mark], events: Sequence[NodeEvent]) -> None:
        """Sets marks. Raises StoreError; then nothing was changed.

        They hold from this moment on: a placement that is written later has seen them, and one that was written earlier is
        known once this returns.
        """
        before = {node: self.of(node) for node in new}
        self._marks |= new
        try:
            await self._runtime.write(self._runtime.store.mark_nodes, dict(new), list(events))
        except BaseException:
            self._marks |= before
            raise
        self._runtime.wake.set()
