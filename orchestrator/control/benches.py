"""What measuring runs found, into the history and back to placement: read from rank 0's log when such a run ends."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Mapping
from dataclasses import replace
from datetime import datetime
from typing import Any

from orchestrator.bench.calibrate import LEAST_BYTES
from orchestrator.bench.compare import compare
from orchestrator.bench.results import Bench, Link, Output, Row, is_tagged, read_output
from orchestrator.control import bench_script
from orchestrator.control.gang import Gang
from orchestrator.control.logs import LogFolder
from orchestrator.control.roster import Roster
from orchestrator.control.runtime import Runtime
from orchestrator.history.benches import PAST, BenchFilter
from orchestrator.history.errors import StaleEpoch, StoreError
from orchestrator.history.render import bench_json
from orchestrator.placement.gang import Part, expected
from orchestrator.placement.tree import Topology
from orchestrator.placement.values import Placement

log = logging.getLogger("orch.bench")


class Benches:
    """One per controller."""

    def __init__(self, runtime: Runtime, logs: LogFolder, roster: Roster) -> None:
        self._runtime, self._logs, self._roster = runtime, logs, roster

    async def start(self) -> None:
        """Lets placement know what was measured so far."""
        wanted = BenchFilter(since=self._runtime.now() - PAST, collectives=("all_reduce",), least_bytes=LEAST_BYTES)
        self._roster.learn(tuple(await self._runtime.db(self._runtime.store.benches, wanted)))

    async def take(self, gang: Gang) -> None:
        """Keeps what a run that is about to be recorded as succeeded has measured, if it is a measuring one.

        Before its end is recorded: a controller that is killed in between takes the run up again and comes here again.
        """
        if not is_tagged(gang.spec.tags):
            return
        try:
            found = await self._read(gang)
        except Exception:
            log.exception("what run %s measured could not be read", gang.run)
            return
        while found:
            try:
                await self._runtime.db(self._runtime.store.record_benches, found)
                break
            except StaleEpoch:
                raise
            except StoreError as error:
                log.error("what run %s measured could not be recorded yet: %s", gang.run, error)
                await asyncio.sleep(1)
        if found:
            await self.start()
            self._runtime.wake.set()

    async def _read(self, gang: Gang) -> list[Bench]:
        run = await self._runtime.db(self._runtime.store.get, gang.run)
        ours = await asyncio.to_thread(bench_script.snapshot)
        if run is None or run.code is None or run.code.sha256 != ours.sha256:
            return []
        said = await asyncio.to_thread(self._output, gang)
        if run.attempt is not None and run.attempt.transport is not None:
            # The verdict on every attempt knows NVLink from PCIe, which NCCL's own lines do not tell apart.
            said = replace(said, transport=run.attempt.transport.get("links") or said.transport)
        drivers = {node: driver for node, driver in self._roster.drivers.items() if node in gang.parts}
        return benches_of(
            said, gang.run, gang.attempt, gang.placement, self._roster.inventory.topology, drivers, self._runtime.now()
        )

    def _output(self, gang: Gang) -> Output:
        return read_output(line.text for line in self._logs.lines(gang.run, gang.attempt, 0, whole=True))

    async def shown(self, wanted: BenchFilter) -> list[dict[str, Any]]:
        """The results, each beside the model, its link's past, and its like."""
        store, runtime = self._runtime.store, self._runtime
        shown = await runtime.db(store.benches, wanted)
        return await asyncio.to_thread(compared, shown, await runtime.db(store.related_benches, shown, runtime.now()))


def compared(shown: list[Bench], known: Iterable[Bench]) -> list[dict[str, Any]]:
    return [bench_json(bench, beside) for bench, beside in zip(shown, compare(shown, known), strict=True)]


def benches_of(
    said: Output,
    run: int,
    attempt: int,
    placement: Placement,
    topology: Topology,
    drivers: Mapping[str, str],
    now: datetime,
) -> list[Bench]:
    """What is kept of a run's output. Of nodes that have left meanwhile the links are not known: such a result is history only."""
    parts = parts_of(placement, topology)
    link = link_of(placement, topology, parts)
    versions = dict(said.versions)
    if len(told := sorted(set(drivers.values()))) == 1:
        versions["driver"] = told[0]
    gpus = {part.node: list(part.gpus) for part in placement.nodes}

    def bench(row: Row) -> Bench:
        def model(plain: bool) -> float | None:
            if parts is None:
                return None
            busbw = expected(topology, parts, row.collective, row.backend, row.bytes, plain=plain)
            return None if busbw is None else round(busbw, 4)

        return Bench(
            run, attempt, now, link, row, model(False), model(True), placement.busbw_bottleneck, gpus, versions,
            said.transport if row.backend == "nccl" else {},
        )  # fmt: skip

    return [bench(row) for row in said.rows] if said.ranks in (0, placement.world_size) else []


def parts_of(placement: Placement, topology: Topology) -> list[Part] | None:
    """The placement by the tree's numbers; None where nodes of it have left."""
    try:
        found = [(topology.index[part.node], part.gpus) for part in placement.nodes]
        return sorted((index, topology.nodes[index].kind.mask_of(gpus)) for index, gpus in found)
    except (KeyError, IndexError):
        return None


def link_of(placement: Placement, topology: Topology, parts: list[Part] | None) -> Link:
    """What a measurement on that placement is of."""
    names = tuple(sorted(part.node for part in placement.nodes))
    counts = {len(part.gpus) for part in placement.nodes}
    per_node = counts.pop() if len(counts) == 1 else 0
    models = {topology.nodes[index].kind.links.model for index, _ in parts or ()}
    model = models.pop() if len(models) == 1 else "mixed" if models else "unknown"
    kind = placement.level
    if parts is not None and len(parts) == 1:
        index, mask = parts[0]
        kind = topology.nodes[index].kind.links.intra_kind(mask)
    return Link(names, model, placement.level, kind, per_node, placement.world_size)
