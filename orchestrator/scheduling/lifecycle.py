"""What may happen to a run: its states, the events that move it, and the one table that says how.

The table is the whole truth (the form is h11's `_state.py`): every state has a row, an event that has no place in the
row raises and changes nothing, and the diagram in docs/architecture.md is drawn from it.
"""

from __future__ import annotations

from enum import StrEnum


class State(StrEnum):
    """Where a run is. The values are what the database, the API and the terminal show."""

    QUEUED = "queued"  # waits for a place
    STARTING = "starting"  # has a place; its ranks are being started
    RUNNING = "running"  # every rank has started
    STOPPING = "stopping"  # was told to end; some rank may still live
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


def said(state: str) -> str:
    """What follows `run 7`: `has succeeded`, `was cancelled`, `is running`."""
    verb = {State.SUCCEEDED.value: "has", State.FAILED.value: "has", State.CANCELLED.value: "was"}.get(state, "is")
    return f"{verb} {state}"


class Event(StrEnum):
    """What happened to a run, as a fact in the past tense."""

    SUBMITTED = "submitted"  # the run exists from here on
    PLACED = "placed"  # an attempt with a placement was recorded
    STARTED = "started"  # every rank of the attempt has started
    SUCCEEDED = "succeeded"  # every rank ended with exit code 0
    FAILED = "failed"  # the attempt ended otherwise, and is not tried again
    REQUEUED = "requeued"  # the attempt ended otherwise, and is tried again
    CANCEL_ASKED = "cancel_asked"  # somebody asked for its end
    STOP_ASKED = "stop_asked"  # orch itself ends the attempt: preempted, drained, over its time limit
    STOPPED = "stopped"  # the last rank of a run that was told to end is gone
    RETRY_ASKED = "retry_asked"  # somebody asked for another attempt of an ended run
    NOTED = "noted"  # something worth telling was found out, which moves nothing
    CHANGED = "changed"  # somebody changed what was asked for: priority, time limit, nearness


class Outcome(StrEnum):
    """How an attempt ended."""

    SUCCEEDED = "succeeded"
    USER_ERROR = "user_error"
    INFRA_ERROR = "infra_error"
    PREEMPTED = "preempted"
    DRAINED = "drained"
    CANCELLED = "cancelled"


TRANSITIONS: dict[State, dict[Event, State]] = {
    State.QUEUED: {
        Event.PLACED: State.STARTING,
        Event.CANCEL_ASKED: State.CANCELLED,
        # A run can fail while it waits: its secrets went with a controller that died, or its code is gone.
        Event.FAILED: State.FAILED,
        Event.CHANGED: State.QUEUED,
    },
    State.STARTING: {
        Event.STARTED: State.RUNNING,
        # A script may be done before the last rank's start was heard of.
        Event.SUCCEEDED: State.SUCCEEDED,
        Event.FAILED: State.FAILED,
        Event.REQUEUED: State.QUEUED,
        Event.CANCEL_ASKED: State.STOPPING,
        Event.STOP_ASKED: State.STOPPING,
        Event.CHANGED: State.STARTING,
    },
    State.RUNNING: {
        Event.SUCCEEDED: State.SUCCEEDED,
        Event.FAILED: State.FAILED,
        Event.REQUEUED: State.QUEUED,
        Event.CANCEL_ASKED: State.STOPPING,
        Event.STOP_ASKED: State.STOPPING,
        Event.CHANGED: State.RUNNING,
    },
    State.STOPPING: {
        # A rank may end by itself while it is stopped; a cancel stands.
        Event.STOPPED: State.CANCELLED,
        Event.CANCEL_ASKED: State.STOPPING,
        # Where orch itself asked: it goes back to the queue, has failed, or was done before any rank was told.
        Event.REQUEUED: State.QUEUED,
        Event.FAILED: State.FAILED,
        Event.SUCCEEDED: State.SUCCEEDED,
    },
    State.SUCCEEDED: {},
    State.FAILED: {Event.RETRY_ASKED: State.QUEUED},
    State.CANCELLED: {Event.RETRY_ASKED: State.QUEUED},
}

for _state, _moves in TRANSITIONS.items():
    # A note is told of a run that has not ended, and leaves it where it is.
    if _moves.keys() - {Event.RETRY_ASKED}:
        _moves[Event.NOTED] = _state

TERMINAL = frozenset(state for state, moves in TRANSITIONS.items() if not moves.keys() - {Event.RETRY_ASKED})
"""The states that a run leaves only when somebody asks for another attempt."""

LIVE = frozenset({State.STARTING, State.RUNNING, State.STOPPING})
"""The states in which an attempt holds a place."""


class IllegalTransition(Exception):
    """An event came that the run's state has no place for; nothing was changed."""

    def __init__(self, run: int | None, state: State, event: Event) -> None:
        self.run, self.state, self.event = run, state, event
        name = "a run" if run is None else f"run {run}"
        super().__init__(f"{name} is {state.value}: it cannot take {event.value!r}")


def advance(state: State, event: Event, run: int | None = None) -> State:
    """The state after `event`. Raises IllegalTransition where the table has no move."""
    try:
        return TRANSITIONS[state][event]
    except KeyError:
        raise IllegalTransition(run, state, event) from None


def replay(events: list[Event]) -> State:
    """The state that a run's whole history leads to; the first event must be SUBMITTED."""
    if not events or events[0] is not Event.SUBMITTED:
        raise ValueError("a run's history begins with its submission")
    state = State.QUEUED
    for event in events[1:]:
        state = advance(state, event)
    return state
