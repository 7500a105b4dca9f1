"""How a run looks from outside: the JSON of `orch show` and `orch runs`, whose keys are promised to scripts."""

from __future__ import annotations

from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from typing import Any

from orchestrator.bench.compare import Comparison
from orchestrator.bench.results import Bench
from orchestrator.health.reading import reading
from orchestrator.placement.values import Placement
from orchestrator.scheduling.lifecycle import Outcome
from orchestrator.scheduling.run import Attempt, Run, RunEvent


def show_json(run: Run, now: datetime | None = None) -> dict[str, Any]:
    """One run whole. `now` is the time up to which an attempt that has not ended is counted; without it, it is not."""
    code = run.code
    return {
        **_head(run),
        "spec": run.spec.model_dump(mode="json"),
        "code": None if code is None else {"sha256": code.sha256, "git": code.git, "dirty": code.dirty},
        "workdir": run.workdir,
        "attempts": [_attempt(run, one, ranks=True) for one in run.attempts],
        "throughput": None,
        "gpu_seconds": gpu_seconds(run, now),
        "events": [_event(one) for one in run.events],
    }


def list_json(run: Run, now: datetime | None = None) -> dict[str, Any]:
    """The same without spec, events, and what there is one of for each rank."""
    return {
        **_head(run),
        "attempts": [_attempt(run, one, ranks=False) for one in run.attempts],
        "throughput": None,
        "gpu_seconds": gpu_seconds(run, now),
    }


def gpu_seconds(run: Run, now: datetime | None = None) -> dict[str, float]:
    """Where the GPU time of a run went; the parts sum to `allocated` exactly, in whatever order they are added.

    This knows only how attempts ended: all of a successful one after its start is productive, all of another is lost.
    The ledger that will know checkpoints and idle GPUs takes its place.
    """
    parts = dict.fromkeys(("productive", "starting", "lost", "idle", "checkpoint"), 0.0)
    for attempt in run.attempts:
        gpus = attempt.placement.world_size
        end = attempt.ended_at or now
        if end is None:
            continue
        # Where the start of the ranks was never heard of, a success has run all along and anything else never has.
        succeeded = attempt.outcome is Outcome.SUCCEEDED
        ran_from = attempt.ranks_started_at or (attempt.started_at if succeeded else end)
        so_far = attempt.ended_at is None
        parts["starting"] += gpus * _eighths(ran_from - attempt.started_at)
        parts["productive" if succeeded or so_far else "lost"] += gpus * _eighths(end - ran_from)
    return {"allocated": sum(parts.values()), **parts}


def bench_json(bench: Bench, beside: Comparison) -> dict[str, Any]:
    """One result of `orch bench` beside the model, its link's past, and its like."""
    row, link = bench.row, bench.link
    return {
        "run": bench.run,
        "attempt": bench.attempt,
        "at": time_json(bench.at),
        "backend": row.backend,
        "collective": row.collective,
        "bytes": row.bytes,
        "in_place": row.in_place,
        "iterations": row.iterations,
        "time_us": row.time_us,
        "algbw": row.algbw,
        "busbw": row.busbw,
        "predicted": bench.predicted,
        "modelled": bench.modelled,
        "of_predicted": None if not bench.predicted else round(row.busbw / bench.predicted, 4),
        "ranks": link.ranks,
        "nodes": list(link.nodes),
        "gpus": bench.gpus,
        "model": link.model,
        "level": link.level,
        "kind": link.kind,
        "bottleneck": bench.bottleneck,
        "versions": bench.versions,
        "transport": bench.transport or None,
        "earlier_median": beside.earlier_median,
        "earlier": beside.earlier,
        "change": None if beside.change is None else round(beside.change, 4),
        "like_median": beside.like_median,
        "of_like": None if not beside.like_median else round(row.busbw / beside.like_median, 4),
        "likes": beside.likes,
        "suspect": beside.suspect,
    }


def time_json(at: datetime | None) -> str | None:
    """RFC 3339 in UTC, with Z."""
    return None if at is None else at.astimezone(UTC).isoformat().replace("+00:00", "Z")


def _eighths(span: timedelta) -> float:
    """Seconds to the nearest eighth, which floats add without error; none where a clock was set back."""
    return max(0, round(span / timedelta(milliseconds=125))) / 8


def _head(run: Run) -> dict[str, Any]:
    return {
        "id": run.id,
        "name": run.name,
        "user": run.user,
        "team": run.spec.team,
        "state": run.state.value,
        "reason": run.reason,
        "submitted_at": time_json(run.submitted_at),
        "started_at": time_json(run.started_at),
        "finished_at": time_json(run.finished_at),
        "priority": run.spec.priority,
    }


def transport(run: Run, attempt: Attempt) -> dict[str, Any] | None:
    """What is known of the attempt's transport; None before it is. Where no log can tell it, that is known from the start."""
    placement = attempt.placement
    known = reading(placement.device, run.spec.backend, placement.world_size, run.spec.env).to_json()
    return attempt.transport if known is None else known


def _attempt(run: Run, attempt: Attempt, ranks: bool) -> dict[str, Any]:
    drawn = {
        "number": attempt.number,
        "outcome": None if attempt.outcome is None else attempt.outcome.value,
        "failure": None if attempt.failure is None else asdict(attempt.failure),
        "placement": _placement(attempt.placement, ranks),
        "transport": transport(run, attempt),
        "started_at": time_json(attempt.started_at),
        "ranks_started_at": time_json(attempt.ranks_started_at),
        "ended_at": time_json(attempt.ended_at),
    }
    if ranks:
        drawn["environment"] = attempt.environment
        drawn["exit_codes"] = {str(rank): code for rank, code in sorted(attempt.exit_codes.items())}
    return drawn


def _placement(placement: Placement, ranks: bool) -> dict[str, Any]:
    drawn = {"busbw_predicted": None, "busbw_bottleneck": None, **asdict(placement)}
    if not ranks:
        drawn["nodes"] = [{key: value for key, value in node.items() if key != "ranks"} for node in drawn["nodes"]]
    return drawn


def _event(event: RunEvent) -> dict[str, Any]:
    return {
        "at": time_json(event.at),
        "event": event.event.value,
        "state": event.state.value,
        "reason": event.reason,
        "attempt": event.attempt,
        "by": event.by,
    }
