"""What a follower of a run sees, as it happens: its state and place in the queue, progress, log lines, the end."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from orchestrator.control.controller import Controller
from orchestrator.control.logs import Line
from orchestrator.history import render
from orchestrator.scheduling.lifecycle import Event, State
from orchestrator.scheduling.run import Run

HEARTBEAT_S = 5.0


@dataclass
class Positions:
    """How far a follower has read: by (attempt, rank), the byte after its last line."""

    at: dict[tuple[int, int], int] = field(default_factory=dict)

    @classmethod
    def parse(cls, text: str) -> Positions:
        """From `attempt:rank:offset,...`, as a client says it when it comes back; what is not of that form is ignored."""
        rows = (row.split(":") for row in text.split(",") if row)
        return cls(
            {(int(a), int(r)): int(o) for a, r, o in (r for r in rows if len(r) == 3 and all(map(str.isdigit, r)))}
        )


def _object(line: Line) -> dict[str, Any]:
    return {"rank": line.rank, "attempt": line.attempt, "offset": line.offset, "line": line.text}


def _new_lines(
    controller: Controller, run: Run, positions: Positions, rank: int | None = None, attempt: int | None = None
) -> Iterator[Line]:
    """The lines beyond `positions`, which move on; attempt by attempt, the first failing rank of each first."""
    for past in run.attempts:
        if attempt is not None and past.number != attempt:
            continue
        whole = past.ended_at is not None
        first = past.failure.rank if past.failure is not None else None
        ranks = controller.logs.ranks(run.id, past.number)
        for number in sorted(ranks, key=lambda r: (r != first, r)):
            if rank is not None and number != rank:
                continue
            at = (past.number, number)
            start = positions.at.get(at, 0)
            for line in controller.logs.lines(run.id, past.number, number, start, whole=whole):
                if line.offset > start or line.offset == 0:
                    positions.at[at] = line.offset
                    yield line


class _Notes:
    """What was noted of a run, each told once to a follower."""

    def __init__(self) -> None:
        self._last = -1

    def new(self, run: Run) -> list[dict[str, Any]]:
        fresh = [one for one in run.events if one.event is Event.NOTED and one.sequence > self._last]
        self._last = max((one.sequence for one in run.events), default=self._last)
        return [{"notice": one.reason} for one in fresh]


async def log_lines(
    controller: Controller,
    run: Run,
    *,
    rank: int | None,
    attempt: int | None,
    since_s: float | None,
    positions: Positions,
    keep_on: bool,
) -> AsyncIterator[dict[str, Any] | None]:
    """The logs that are asked for: by default of the latest attempt; with `keep_on` until the run has ended."""
    if attempt is None and run.attempts and not keep_on:
        attempt = run.attempts[-1].number
    if since_s is not None:
        when = time.time() - since_s
        for past in run.attempts:
            for number in controller.logs.ranks(run.id, past.number):
                start = controller.logs.since(run.id, past.number, number, when)
                positions.at.setdefault((past.number, number), start)
    notes, pulse = _Notes(), _Pulse()
    while True:
        changed = controller.runtime.watch(run.id)
        run = await controller.find(str(run.id))
        if keep_on:
            for note in notes.new(run):
                yield note
        for line in _new_lines(controller, run, positions, rank, attempt):
            yield _object(line)
        if run.ended or not keep_on:
            return
        if await pulse.due(changed):
            yield None


Lines = Callable[[int, int, int | None], Iterator[Line]]


async def kept_lines(
    lines: Lines, run: Run, *, rank: int | None, attempt: int | None, positions: Positions
) -> AsyncIterator[dict[str, Any] | None]:
    """What is kept beside the ranks' logs of one attempt, by default the latest: what NCCL said, say."""
    if attempt is None and run.attempts:
        attempt = run.attempts[-1].number
    if attempt is not None:
        for line in lines(run.id, attempt, rank):
            if line.offset > positions.at.get((attempt, line.rank), 0):
                yield _object(line)


async def follow(controller: Controller, run_id: int, positions: Positions) -> AsyncIterator[dict[str, Any] | None]:
    """Everything about one run from now to its end."""
    said: dict[str, Any] = {}
    notes, pulse = _Notes(), _Pulse()
    while True:
        changed = controller.runtime.watch(run_id)
        run = await controller.find(str(run_id))
        for part in await _news(controller, run):
            key = next(iter(part))
            if said.get(key) != part:
                said[key] = part
                yield part
        for note in notes.new(run):
            yield note
        for line in _new_lines(controller, run, positions):
            yield _object(line)
        if run.ended:
            yield {"end": render.show_json(run)}
            return
        if await pulse.due(changed):
            yield None


async def _news(controller: Controller, run: Run) -> list[dict[str, Any]]:
    if run.state is State.QUEUED:
        return [{"state": run.state, "position": controller.queue.position(run.id), "reason": run.reason}]
    parts: list[dict[str, Any]] = [{"state": run.state, "position": None, "reason": run.reason}]
    if (gang := controller.gangs.of(run)) is not None:
        nodes = ", ".join(part.node for part in gang.placement.nodes[:4])
        more = len(gang.placement.nodes) - 4
        where = nodes + (f" and {more} more" if more > 0 else "")
        parts.append(
            {"progress": f"attempt {gang.attempt}: {gang.started} of {gang.world_size} ranks started on {where}"}
        )
    return parts


class _Pulse:
    """When a follower is to hear that it is still connected, however much happens that it need not hear of."""

    def __init__(self) -> None:
        self._clock = asyncio.get_running_loop().time
        self._next = self._clock() + HEARTBEAT_S

    async def due(self, changed: asyncio.Event) -> bool:
        """Waits for news, or until it is time; whether it is."""
        with suppress(TimeoutError):
            await asyncio.wait_for(changed.wait(), max(0.0, self._next - self._clock()))
        if self._clock() < self._next:
            return False
        self._next = self._clock() + HEARTBEAT_S
        return True
