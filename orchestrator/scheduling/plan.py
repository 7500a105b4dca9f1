"""Which waiting runs start now: a snapshot in, a Plan out; nothing is done here."""

from __future__ import annotations

from datetime import datetime

from orchestrator.placement.search import place
from orchestrator.placement.values import Rejection
from orchestrator.scheduling.ask import patience_left, request_of
from orchestrator.scheduling.decision import Kind, Plan, Reason, Start, Wait
from orchestrator.scheduling.memory import Memory
from orchestrator.scheduling.run import Run
from orchestrator.scheduling.snapshot import Snapshot


def plan(snapshot: Snapshot, now: datetime, memory: Memory | None = None) -> Plan:
    """In order of priority and age; a run that does not fit holds back the ones behind it."""
    free = snapshot.free.copy()
    starts: list[Start] = []
    waits: list[Wait] = []
    ahead: Run | None = None
    patience = []
    for run in sorted(snapshot.waiting, key=lambda run: (-run.spec.priority, run.queued_at, run.id)):
        if (block := snapshot.blocked.get(run.id)) is not None:
            waits.append(Wait(run, Reason(Kind(block.kind), block.text)))
            continue
        if ahead is not None:
            text = f"behind run {ahead.id} ({ahead.name}), which waits for its place"
            waits.append(Wait(run, Reason(Kind.AGE, text)))
            continue
        left = patience_left(run, now)
        had = {part.node for part in run.attempt.placement.nodes} if run.attempt else ()
        unfit = snapshot.unfit.get(run.id, {})
        answer = place(
            request_of(run.spec, free.topology, patient=left > 0, prefer=had, exclude=unfit), free.topology, free
        )
        if isinstance(answer, Rejection):
            text = answer.reason + (f"; waits {left:.0f} s more for it" if left else "")
            waits.append(Wait(run, Reason(Kind.NEVER if answer.never else Kind.HINT if left else Kind.SHAPE, text)))
            patience.append(left)
            # A run that no longer fits the cluster at all does not hold the others back.
            ahead = None if answer.never or left else run
            continue
        starts.append(Start(run, answer))
        for part in answer.nodes:
            free.take(part.node, part.gpus)
    return Plan(tuple(starts), tuple(waits), look_again_s=min((left for left in patience if left), default=None))
