"""Runs side by side, where they differ, and what explains how their speeds differ: `orch compare`, and the line in `orch show`.

A run's like are the runs of its name with as many ranks on the same kind of GPU: only their speeds mean the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from sqlalchemy import Connection, and_, select

from orchestrator.history import queries
from orchestrator.history.explain import Explanation, Factors, Past, evidence, explain, kind_of, name, sentence
from orchestrator.history.factors import Surroundings, factors_of
from orchestrator.history.models import RunRow
from orchestrator.history.neighbours import beside
from orchestrator.history.render import time_json
from orchestrator.history.summaries import so_far
from orchestrator.history.summary_models import RunSummaryRow
from orchestrator.scheduling.run import Run

LOOKED_AT = 50
"""So many of the newest earlier runs of a run's like are its past."""
NEIGHBOURS_SHOWN = 10


@dataclass(frozen=True)
class _Seen:
    """A run with what the history knows about it."""

    run: Run
    around: Surroundings
    gpus: int | None
    device: str | None
    speed: float | None
    step_time_s: float | None
    steps: int | None


def against_its_like(connection: Connection, run: Run) -> dict[str, Any] | None:
    """How fast the run is beside the newest earlier ones of its like, and why; None where either speed is not known."""
    seen = _see(connection, [run])[run.id]
    found = _explained(connection, seen)
    return None if found is None else explanation_json(found)


def compare(connection: Connection, runs: Sequence[Run]) -> dict[str, Any]:
    """Several runs side by side; one alone is held against the newest earlier ones of its like."""
    seen = list(_see(connection, runs).values())
    nodes = sorted({part.node for one in runs if one.attempt for part in one.attempt.placement.nodes})
    if len(seen) == 1:
        found = _explained(connection, seen[0])
        others = _see(connection, queries.by_ids(connection, found.baseline)) if found else {}
        shown = [seen[0], *others.values()]
    else:
        found, shown = _between(connection, seen), seen
    factors = [factors_of(one.run, one.around, nodes) for one in shown]
    return {
        "runs": [_run_json(one) for one in shown],
        "differs": differing(factors),
        "neighbours": [_neighbours(connection, one.run) for one in seen],
        "explanation": None if found is None else explanation_json(found),
    }


def differing(factors: Sequence[Factors]) -> list[dict[str, Any]]:
    """The factors that are not the same for all, with the value of each run; None where it is not known."""
    names = dict.fromkeys(factor for one in factors for factor in one)
    rows = [(factor, [one.get(factor) for one in factors]) for factor in names]
    return [
        {"factor": factor, "kind": kind_of(factor).value, "values": values}
        for factor, values in rows
        if len(set(values)) > 1
    ]


def explanation_json(found: Explanation) -> dict[str, Any]:
    """The explanation with its sentence, and each suspect in words."""
    drawn = asdict(found)
    drawn["suspects"] = [asdict(one) | {"text": name(one), "evidence": evidence(one)} for one in found.suspects]
    drawn["baseline"] = list(found.baseline)
    return {"text": sentence(found), **drawn}


def _explained(connection: Connection, one: _Seen) -> Explanation | None:
    if one.speed is None:
        return None
    likes = _likes(connection, one, before=one.run.id)
    nodes = [part.node for part in one.run.attempt.placement.nodes] if one.run.attempt else []
    return explain(_past(one, nodes), [_past(like, nodes) for like in likes])


def _between(connection: Connection, seen: Sequence[_Seen]) -> Explanation | None:
    """Why the slowest of these runs is slower than the others, with the past of all of them as witness."""
    known = [one for one in seen if one.speed is not None]
    if len(known) < 2:
        return None
    # Of runs of different sizes the speed of a rank is what can be compared.
    per_rank = len({one.gpus for one in known}) > 1
    slowest = min(known, key=lambda one: (_speed(one, per_rank), -one.run.id))
    history = {like.run.id: like for one in known for like in _likes(connection, one, before=None)}
    history |= {one.run.id: one for one in known}
    del history[slowest.run.id]
    nodes = [part.node for part in slowest.run.attempt.placement.nodes] if slowest.run.attempt else []
    earlier = [_past(one, nodes, per_rank) for _, one in sorted(history.items())]
    return explain(
        _past(slowest, nodes, per_rank), earlier, baseline=[one.run.id for one in known if one is not slowest]
    )


def _past(one: _Seen, nodes: Iterable[str], per_rank: bool = False) -> Past:
    return Past(one.run.id, _speed(one, per_rank), factors_of(one.run, one.around, nodes))


def _speed(one: _Seen, per_rank: bool) -> float:
    assert one.speed is not None
    return one.speed / (one.gpus or 1) if per_rank else one.speed


def _likes(connection: Connection, one: _Seen, before: int | None) -> list[_Seen]:
    """The newest runs of the run's like whose speed is known, oldest first."""
    like = and_(
        RunRow.name == one.run.name,
        RunSummaryRow.gpus == one.gpus,
        RunSummaryRow.device == one.device,
        RunSummaryRow.gpu.is_not_distinct_from(one.around.gpu),
        RunSummaryRow.samples_per_s > 0,
        RunRow.id != one.run.id,
    )
    question = select(RunRow.id).join(RunSummaryRow, RunSummaryRow.run_id == RunRow.id).where(like)
    if before is not None:
        question = question.where(RunRow.id < before)
    ids = list(connection.execute(question.order_by(RunRow.id.desc()).limit(LOOKED_AT)).scalars())
    return list(_see(connection, queries.by_ids(connection, ids)).values())


def _see(connection: Connection, runs: Sequence[Run]) -> dict[int, _Seen]:
    """By id, in the order of `runs`."""
    rows: dict[int, Mapping[str, Any]] = {
        row["run_id"]: dict(row)
        for row in connection.execute(
            select(RunSummaryRow).where(RunSummaryRow.run_id.in_([run.id for run in runs]))
        ).mappings()
    }
    found = {}
    for run in runs:
        # The summary is made when an attempt has ended; of one that lives it is made here.
        row = rows.get(run.id, {}) if run.ended else so_far(connection, run)
        around = Surroundings(row.get("leaves"), row.get("neighbours"), row.get("gpu"))
        speed, step_time, steps = row.get("samples_per_s") or None, row.get("step_time_s"), row.get("steps")
        found[run.id] = _Seen(run, around, row.get("gpus"), row.get("device"), speed, step_time, steps)
    return found


def _run_json(one: _Seen) -> dict[str, Any]:
    run = one.run
    return {
        "id": run.id,
        "name": run.name,
        "user": run.user,
        "state": run.state.value,
        "submitted_at": time_json(run.submitted_at),
        "gpus": one.gpus,
        "gpu": one.around.gpu,
        "samples_per_s": one.speed,
        "samples_per_s_per_gpu": one.speed / one.gpus if one.speed and one.gpus else None,
        "step_time_s": one.step_time_s,
        "steps": one.steps,
    }


def _neighbours(connection: Connection, run: Run) -> dict[str, Any]:
    """The other runs on the leaves (or nodes, where no leaf is known) of the last attempt while it ran."""
    if run.attempt is None:
        return {"run": run.id, "count": None, "others": []}
    ids = sorted(beside(connection, run.id))
    rows = connection.execute(
        select(RunRow.id, RunRow.name, RunRow.username)
        .where(RunRow.id.in_(ids[-NEIGHBOURS_SHOWN:]))
        .order_by(RunRow.id.desc())
    )
    others = [{"id": row.id, "name": row.name, "user": row.username} for row in rows]
    return {"run": run.id, "count": len(ids), "others": others}
