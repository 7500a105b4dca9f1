"""Arrays as users see them: one object with counts by state, ended and tried again as a whole."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from typing import Any

from orchestrator.array import written
from orchestrator.history.render import list_json, time_json
from orchestrator.scheduling.lifecycle import State
from orchestrator.scheduling.run import Array, Run

_WHOLE_STATE = (
    State.RUNNING,
    State.STARTING,
    State.STOPPING,
    State.QUEUED,
    State.FAILED,
    State.CANCELLED,
    State.SUCCEEDED,
)
"""An array is in the first of these states that any of its runs is in."""


def state_of(counts: Mapping[State, int]) -> State:
    return next((state for state in _WHOLE_STATE if counts.get(state)), State.SUCCEEDED)


def array_json(array: Array, counts: Mapping[State, int], first: Run) -> dict[str, Any]:
    """One array; `first` is any of its runs, by which it is known when and by whom it was submitted."""
    return {
        "id": array.ref,
        "name": array.name,
        "user": array.user,
        "team": array.spec.team,
        "state": state_of(counts).value,
        "submitted_at": time_json(first.submitted_at),
        "priority": array.spec.priority,
        "array": {
            "id": array.id,
            "size": array.size,
            "first": array.runs[0],
            "last": array.runs[-1],
            "limit": array.limit,
            "values": {key: written(values) for key, values in (array.spec.array or {}).items()},
            "states": {state.value: counts[state] for state in State if counts.get(state)},
        },
    }


def queue_rows(
    live: Sequence[Run],
    waiting: Sequence[Run],
    arrays: Mapping[int, Array],
    counts: Mapping[int, Mapping[State, int]],
    with_reason: Callable[[Run], Run],
    limit: int | None,
) -> list[dict[str, Any]]:
    """What runs, then what waits in its order, an array as one row at the place of its first run; at most `limit` rows."""
    rows: list[dict[str, Any]] = []
    shown: set[int] = set()
    placed: list[tuple[int | None, Run]] = [(None, run) for run in live]
    for position, one in chain(placed, enumerate(waiting, 1)):
        if limit is not None and len(rows) >= limit:
            break
        if one.element is not None and one.element.array in shown:
            continue
        run = with_reason(one)
        if run.element is None:
            rows.append(list_json(run) | {"position": position})
        else:
            shown.add(run.element.array)
            array = arrays[run.element.array]
            row = array_json(array, counts[array.id], run) | {"position": position, "reason": run.reason}
            rows.append(row | {"started_at": time_json(run.started_at), "finished_at": None, "attempts": []})
    return rows
