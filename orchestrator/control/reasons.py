"""`orch why` as data: why a run waits, when it should start, what would start it now; or what it waited for and why it ended."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime
from typing import Any

from orchestrator.control.queue import Queue
from orchestrator.control.waits import reason_json, since_when
from orchestrator.history.render import time_json, why_json
from orchestrator.scheduling.lifecycle import State
from orchestrator.scheduling.run import Run
from orchestrator.scheduling.suggestions import Suggestion
from orchestrator.scheduling.why import Explanation, Preview

AHEAD = 10
"""Runs that are named of those which are before it."""


async def why(queue: Queue, run: Run, now: datetime) -> dict[str, Any]:
    """The JSON of `orch why`."""
    return why_json(run) | {"waits": await _waits(queue, run, now) if run.state is State.QUEUED else None}


async def _waits(queue: Queue, run: Run, now: datetime) -> dict[str, Any]:
    since = since_when(run)
    found: dict[str, Any] = {"since": time_json(since), "seconds": round((now - since).total_seconds(), 3)}
    order = queue.waiting()
    position = (queue.position(run.id) or len(order) + 1) - 1
    found["position"] = position + 1
    if (explanation := await queue.explain(run.id)) is not None:
        return found | explanation_json(explanation)
    reason = queue.waits.reason(run.id)
    return found | {
        "reasons": [] if reason is None else [reason_json(reason)],
        "ahead": _named(order[:position][:AHEAD]),
        "ahead_count": position,
        "start": None,
        "sure": None,
        "choice": None,
        "suggestions": [],
    }


def explanation_json(said: Explanation) -> dict[str, Any]:
    return {
        "reasons": [reason_json(reason) for reason in said.reasons],
        "ahead": _named(said.ahead[:AHEAD]),
        "ahead_count": said.ahead_count,
        "start": time_json(said.start),
        "sure": said.sure.value,
        "choice": None if said.choice is None else asdict(said.choice) | {"waits": said.choice.waits},
        "suggestions": [_suggestion(one) for one in said.suggestions],
    }


def preview_json(said: Preview) -> dict[str, Any]:
    """What `orch plan` says beside the place: when, and at whose cost."""
    return {
        "waits": None if said.explanation.starts is not None else explanation_json(said.explanation),
        "delays": [
            {
                "id": delay.run.id,
                "name": delay.run.label,
                "before": time_json(delay.before),
                "after": time_json(delay.after),
                "seconds": delay.seconds,
            }
            for delay in said.delays
        ],
        "preempts": _named(said.preempted),
    }


def _suggestion(one: Suggestion) -> dict[str, Any]:
    return {"text": one.text, "changes": dict(one.changes), "ends": one.ends}


def _named(runs: Sequence[Run]) -> list[dict[str, Any]]:
    return [{"id": run.id, "name": run.label, "priority": run.spec.priority, "user": run.user} for run in runs]
