"""How a run looks from outside: the JSON of `orch show` and `orch runs`, whose keys are promised to scripts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, fields
from datetime import UTC, datetime
from typing import Any

from orchestrator.bench.compare import Comparison
from orchestrator.bench.results import Bench
from orchestrator.health.failure import Failure
from orchestrator.health.reading import reading
from orchestrator.history import ledger
from orchestrator.placement.values import Placement
from orchestrator.progress.values import Progress
from orchestrator.scheduling.lifecycle import Event, State
from orchestrator.scheduling.run import Attempt, Run, RunEvent


def show_json(run: Run, now: datetime | None = None) -> dict[str, Any]:
    """One run whole. `now` is the time up to which an attempt that has not ended is counted; without it, it is not."""
    return {
        **_head(run),
        "spec": run.spec.model_dump(mode="json"),
        "workdir": run.workdir,
        "attempts": [_attempt(run, one, ranks=True) for one in run.attempts],
        "after": [asdict(need) for need in run.after],
        "throughput": throughput(run),
        "gpu_seconds": gpu_seconds(run, now),
        **_worth(run, now),
        "events": [_event(one) for one in run.events],
        "waits": [{"attempt": wait.number, "until": time_json(wait.until), **wait.summary} for wait in run.waits],
    }


def why_json(run: Run) -> dict[str, Any]:
    """What is on record of why a run waited, and ended as it did: the JSON of `orch why` but for a wait that goes on."""
    last = run.attempt
    ended = {
        "at": time_json(run.finished_at),
        "reason": run.reason,
        "attempts": len(run.attempts),
        "outcome": None if last is None or last.outcome is None else last.outcome.value,
        "failure": None if last is None or last.failure is None else asdict(last.failure),
        "by": next((one.by for one in reversed(run.events) if one.event is Event.CANCEL_ASKED), None)
        if run.state is State.CANCELLED
        else None,
    }
    broke = [
        {"attempt": one.attempt, "at": time_json(one.at), "reason": one.reason}
        for one in run.events
        if one.event is Event.REQUEUED
    ]
    return {
        "id": run.id,
        "name": run.label,
        "state": run.state.value,
        "reason": run.reason,
        "waits": None,
        "waited": [{"attempt": one.number, "until": time_json(one.until), **one.summary} for one in run.waits],
        "broke": broke,
        "ended": ended if run.ended else None,
        "noted": [
            {"at": time_json(one.at), "text": one.reason}
            for one in run.events
            if one.event is Event.NOTED and last is not None and one.attempt == last.number
        ],
    }


def list_json(run: Run, now: datetime | None = None) -> dict[str, Any]:
    """The same without spec, events, and what there is one of for each rank."""
    return {
        **_head(run),
        "attempts": [_attempt(run, one, ranks=False) for one in run.attempts],
        "throughput": throughput(run),
        "gpu_seconds": gpu_seconds(run, now),
    }


def gpu_seconds(run: Run, now: datetime | None = None) -> dict[str, float]:
    """Where the GPU time of a run went, in seconds to the nearest eighth, which floats add without error.

    The parts sum to `allocated` exactly, in whatever order they are added.
    """
    used = ledger.gpu_time(run, now)
    parts = {part.name: round(getattr(used, part.name) / 125) / 8 for part in fields(used)}
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


def throughput(run: Run) -> dict[str, Any] | None:
    """How fast the run is: of its newest attempt that was seen to get on; None where nothing was seen.

    `steps` are those of all attempts, without the ones that were done again after a restart.
    """
    seen = [attempt.progress for attempt in run.attempts if attempt.progress is not None]
    if not seen:
        return None
    newest = seen[-1]
    return {
        "samples_per_s": _significant(newest.samples_per_s),
        "step_time": _significant(newest.step_time),
        "steps": sum(one.steps for one in seen) - sum(one.repeated_steps or 0 for one in seen),
        "source": newest.source,
        "step_time_p50": _significant(newest.step_time_p50),
        "step_time_p99": _significant(newest.step_time_p99),
        "samples": sum(one.samples or 0 for one in seen) or None,
        "repeated_steps": sum(one.repeated_steps or 0 for one in seen),
        "metrics": {name: _significant(value) for name, value in newest.metrics.items()},
    }


def scaling_json(sizes: Sequence[ledger.Scale]) -> list[dict[str, Any]]:
    """How the runs of a name scale, by size."""
    return [
        asdict(one) | {"samples_per_s": _significant(one.samples_per_s), "efficiency": _significant(one.efficiency)}
        for one in sizes
    ]


def _progress(progress: Progress | None) -> dict[str, Any] | None:
    if progress is None:
        return None
    times = ("first_step_at", "last_step_at", "saved_at")
    told = {name: _significant(v) if isinstance(v, float) else v for name, v in asdict(progress).items()}
    return told | {name: time_json(getattr(progress, name)) for name in times}


def _significant(value: float | None) -> float | None:
    """To five digits: more would say how precise a measurement is not."""
    return None if value is None or value != value else float(f"{value:.5g}")


def _worth(run: Run, now: datetime | None) -> dict[str, Any]:
    waited, cost = ledger.queue_ms(run, now), ledger.cost(run)
    return {
        "goodput": _significant(ledger.gpu_time(run, now).goodput),
        "effective_training_time_ratio": _significant(ledger.effective_ratio(run, now)),
        "queue_seconds": None if waited is None else waited / 1000,
        "cost": None if cost is None else round(cost, 2),
    }


def time_json(at: datetime | None) -> str | None:
    """RFC 3339 in UTC, with Z."""
    return None if at is None else at.astimezone(UTC).isoformat().replace("+00:00", "Z")


def _head(run: Run) -> dict[str, Any]:
    code = run.code
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
        "array": None if run.element is None else asdict(run.element),
        "code": None if code is None else {"sha256": code.sha256, "git": code.git, "dirty": code.dirty},
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
        "failure": None if attempt.failure is None else _failure(attempt.failure, ranks),
        "placement": _placement(attempt.placement, ranks),
        "transport": transport(run, attempt),
        "stop": None if attempt.stop is None else asdict(attempt.stop),
        "started_at": time_json(attempt.started_at),
        "ranks_started_at": time_json(attempt.ranks_started_at),
        "ended_at": time_json(attempt.ended_at),
    }
    if ranks:
        drawn["environment"] = attempt.environment
        drawn["progress"] = _progress(attempt.progress)
        drawn["exit_codes"] = {str(rank): code for rank, code in sorted(attempt.exit_codes.items())}
    return drawn


def _failure(failure: Failure, whole: bool) -> dict[str, Any]:
    drawn = asdict(failure)
    return drawn if whole else {key: value for key, value in drawn.items() if key not in ("ranks", "detail")}


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
