"""One short collective between the ranks of a gang on two of its nodes (or on one): started, waited for, ended, read."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from datetime import datetime

from orchestrator.bench.results import MARK, read_output
from orchestrator.bench.trial import Pair, Tried
from orchestrator.control import bench_script
from orchestrator.control.aside import Aside, number_of
from orchestrator.control.backend import AgentGone, RankStart, StartFailed, StartPart
from orchestrator.control.benches import benches_of
from orchestrator.control.gang import Gang, PartState
from orchestrator.control.gangs import Gangs
from orchestrator.control.runtime import Runtime
from orchestrator.health.failure import Failure
from orchestrator.placement.values import NodePlacement, Placement
from orchestrator.scheduling.run import Run

END_S = 5.0
"""How long what was killed may take to be gone, its GPUs' memory included."""
BYTES = {"nccl": 128 << 20, "gloo": 8 << 20}
"""Large enough that bandwidth decides and not latency; orch bench takes figures from 32 MiB on as telling."""
_KILLED = (-9, -14, -15)
"""SIGALRM is the script's own deadline."""


def placed_on(placement: Placement, pair: Pair) -> Placement:
    """The gang's part on these nodes as a gang of its own, with ranks from 0 on."""
    nodes, rank = [], 0
    for part in placement.nodes:
        if part.node in pair:
            nodes.append(NodePlacement(part.node, part.gpus, tuple(range(rank, rank + len(part.gpus)))))
            rank += len(part.gpus)
    return replace(placement, nodes=tuple(nodes))


class TrialRanks:
    """Starts them by the agents as a gang that is no attempt."""

    def __init__(self, runtime: Runtime, gangs: Gangs) -> None:
        self._runtime, self._gangs = runtime, gangs
        self._count = 0
        self._unknown: list[tuple[int, str, tuple[int, ...], datetime]] = []
        """Run, node, GPUs: of ranks that may live until then, by their lease."""

    def may_live(self) -> dict[str, dict[int, int]]:
        """The GPUs that ranks of a trial may still have, though nobody knows of them: node -> GPU -> the run that was tried."""
        now = self._runtime.now()
        self._unknown = [one for one in self._unknown if one[3] > now]
        found: dict[str, dict[int, int]] = {}
        for run, node, gpus, _ in self._unknown:
            found.setdefault(node, {}).update(dict.fromkeys(gpus, run))
        return found

    async def run(
        self, run: Run, whole: Placement, pair: Pair, deadline: float, given_up: Callable[[Run], bool]
    ) -> tuple[Tried, Mapping[str, object]] | None:
        """What came of it, and the ranks' versions; None where they were not there in time. `deadline` is monotonic."""
        self._count += 1
        number = number_of(self._runtime.epoch, self._count)
        aside = Aside(Gang(run.id, number, run.spec, placed_on(whole, pair)))
        self._gangs.aside[run.id, number] = aside
        try:
            refused = await self._start(aside, run, whole, deadline)
            hung = not refused and await self._hangs(aside, deadline, lambda: given_up(run))
            await self._end(aside)
        finally:
            del self._gangs.aside[run.id, number]
        if refused:
            failure = "; ".join(f"{node}: {text}" for node, text in sorted(refused.items()))
            return Tried(pair, failure=failure, culprits=frozenset(refused)), {}
        return self._read(aside, pair, hung)

    # -- running ---------------------------------------------------------------------------------------------------

    async def _start(self, aside: Aside, run: Run, whole: Placement, deadline: float) -> dict[str, str]:
        """Starts the parts; by node, why one could not be."""
        gang, roster = aside.gang, self._gangs.roster
        parts = gang.placement.nodes
        first, port = parts[0].node, 0
        try:
            if len(parts) > 1:
                port = await roster.agent(first).reserve_port(self._runtime.epoch, gang.run, gang.attempt)
            address = roster.nodes[first].facts.address
        except AgentGone as error:
            gang.lose(first, Failure("node_lost", str(error), node=first), fenced=True)
            return {first: str(error)}
        names = [part.node for part in whole.nodes]
        orders = self._gangs.orders.parts(Gang(run.id, gang.attempt, run.spec, whole), run, address, port)
        refused: dict[str, str] = {}

        async def start(at: int, part: NodePlacement) -> None:
            order = orders[names.index(part.node)]
            try:
                status = await roster.agent(part.node).start(
                    self._runtime.epoch, self._made_trial(order, gang, at, deadline)
                )
            except (StartFailed, AgentGone) as error:
                refused[part.node] = str(error)
                gang.lose(part.node, Failure("start_failed", str(error), node=part.node), fenced=False)
            else:
                aside.observe(part.node, status)

        await asyncio.gather(*(start(at, part) for at, part in enumerate(parts)))
        return refused

    def _made_trial(self, order: StartPart, gang: Gang, at: int, deadline: float) -> StartPart:
        """The job's own order, network settings and interpreter included, but for what it runs."""
        part = gang.placement.nodes[at]
        size = BYTES.get(order.env["ORCH_BACKEND"], BYTES["nccl"])
        within = max(1.0, deadline + 1 - self._runtime.monotonic())
        argv = (bench_script.SCRIPT.name, "--least", str(size), "--most", str(size), "--within", f"{within:.1f}")
        return replace(
            order,
            argv=argv,
            code=bench_script.snapshot().sha256,
            env={name: value for name, value in order.env.items() if name != "ORCH_CHECKPOINT_DIR"},
            secrets={},
            ranks=tuple(RankStart(r, i, g) for i, (r, g) in enumerate(zip(part.ranks, part.gpus, strict=True))),
            world_size=gang.world_size,
            node_rank=at,
            cudnn=None,
            nccl_log=None,
        )

    async def _hangs(self, aside: Aside, deadline: float, given_up: Callable[[], bool]) -> bool:
        """Waits until it is over; whether every rank was there, and it had time enough, and is not."""
        gang, now = aside.gang, self._runtime.monotonic
        settled = self._settled
        await self._wait(aside, deadline, lambda: settled(aside) or given_up() or len(_here(aside)) == gang.world_size)
        late = now() + self._runtime.settings.trial_hang_s
        await self._wait(aside, min(late, deadline), lambda: settled(aside) or given_up())
        return not settled(aside) and not given_up() and now() >= late

    async def _wait(self, aside: Aside, deadline: float, done: Callable[[], bool]) -> None:
        while not done() and (left := deadline - self._runtime.monotonic()) > 0:
            aside.news.clear()
            with suppress(TimeoutError):
                await asyncio.wait_for(aside.news.wait(), min(left, 0.5))

    def _settled(self, aside: Aside) -> bool:
        """All is over, or it has failed and no rank is still on its way to the others."""
        gang = aside.gang
        there = _here(aside) | gang.exit_codes.keys()
        return gang.over or (gang.failure is not None and len(there) == gang.world_size)

    async def _end(self, aside: Aside) -> None:
        gang, epoch = aside.gang, self._runtime.epoch
        roster = self._gangs.roster
        if not gang.over:
            up = [node for node, part in gang.parts.items() if part.state is PartState.UP]
            for node in up:
                with suppress(AgentGone):
                    await roster.agent(node).stop(epoch, gang.run, gang.attempt, 0.0)
            await self._wait(aside, self._runtime.monotonic() + END_S, lambda: gang.over)
        for node, part in gang.parts.items():
            # Ranks of which nobody knows may live, or still start: their node tells of them, and they are cleared away.
            if part.state is PartState.ENDED:
                with suppress(AgentGone):
                    await roster.agent(node).forget(epoch, gang.run, gang.attempt)
            else:
                gpus = next(one.gpus for one in gang.placement.nodes if one.node == node)
                self._unknown.append((gang.run, node, gpus, roster.lease_end(node)))

    # -- reading ---------------------------------------------------------------------------------------------------

    def _read(self, aside: Aside, pair: Pair, hung: bool) -> tuple[Tried, Mapping[str, object]] | None:
        gang = aside.gang
        codes, here = gang.exit_codes, _here(aside)
        if len(codes) == gang.world_size and not any(codes.values()):
            return self._figure(aside, pair)
        # What we, or its own deadline, have ended says nothing of itself.
        own = {rank: code for rank, code in codes.items() if code not in (0, *_KILLED)}
        early = {rank for rank in own if rank not in here}
        if early:
            culprits = frozenset(part.node for part in gang.placement.nodes if early.intersection(part.ranks))
            return Tried(pair, failure=f"ended before it began: {_last(aside, min(early))}", culprits=culprits), {}
        if own:
            return Tried(pair, failure=f"failed: {_last(aside, min(own))}"), {}
        return (Tried(pair, failure="hung"), {}) if hung else None

    def _figure(self, aside: Aside, pair: Pair) -> tuple[Tried, Mapping[str, object]]:
        gang, roster = aside.gang, self._gangs.roster
        said = read_output(aside.lines(0))
        drivers = {node: driver for node, driver in roster.drivers.items() if node in gang.parts}
        topology = roster.inventory.topology
        found = benches_of(said, gang.run, gang.attempt, gang.placement, topology, drivers, self._runtime.now())
        if not found:
            # Its values were wrong, or its collective was skipped; a single rank has no bandwidth.
            wrong = "; ".join(why for _, _, why in said.skipped) or "gave wrong values"
            return Tried(pair, failure=None if gang.world_size == 1 else wrong), said.versions
        bench = found[-1]
        promised = bench.predicted if pair[0] != pair[1] else None
        return Tried(pair, bench.row.busbw, promised), bench.versions


def _here(aside: Aside) -> set[int]:
    """The ranks that have imported torch and gone on to meet the others."""
    mark = MARK + '{"here": '
    return {rank for rank in aside.output if any(line.startswith(mark) for line in aside.lines(rank))}


def _last(aside: Aside, rank: int) -> str:
    lines = [line.strip() for line in aside.lines(rank) if line.strip() and not line.startswith(MARK)]
    return lines[-1][:200] if lines else f"rank {rank} ended with exit code {aside.gang.exit_codes.get(rank)}"
