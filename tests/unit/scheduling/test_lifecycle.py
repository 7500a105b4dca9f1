"""The table of states: total, closed, and true of every history."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.scheduling.lifecycle import (
    LIVE,
    TERMINAL,
    TRANSITIONS,
    Event,
    IllegalTransition,
    State,
    advance,
    replay,
)

histories = st.lists(st.sampled_from([event for event in Event if event is not Event.SUBMITTED]), max_size=40)


def test_every_state_has_a_row():
    assert set(TRANSITIONS) == set(State)


def test_every_event_but_the_first_has_a_place_somewhere():
    assert {event for moves in TRANSITIONS.values() for event in moves} == set(Event) - {Event.SUBMITTED}


def test_every_state_can_be_reached_and_can_reach_an_end():
    def reach(start: State) -> set[State]:
        seen, todo = {start}, [start]
        while todo:
            for state in TRANSITIONS[todo.pop()].values():
                if state not in seen:
                    seen.add(state)
                    todo.append(state)
        return seen

    assert reach(State.QUEUED) == set(State)
    assert all(reach(state) & TERMINAL for state in State)


def test_a_run_has_ended_when_it_succeeded_failed_or_was_cancelled():
    assert {State.SUCCEEDED, State.FAILED, State.CANCELLED} == TERMINAL
    assert not TERMINAL & LIVE
    assert set(State) - TERMINAL - LIVE == {State.QUEUED}


def test_success_is_for_good():
    assert TRANSITIONS[State.SUCCEEDED] == {}


@pytest.mark.parametrize("state", sorted(TERMINAL - {State.SUCCEEDED}))
def test_an_ended_run_moves_only_when_another_attempt_is_asked_for(state):
    assert TRANSITIONS[state] == {Event.RETRY_ASKED: State.QUEUED}


def test_only_the_last_rank_s_end_makes_a_stopped_run_a_cancelled_one():
    into_cancelled = {
        (state, event)
        for state, moves in TRANSITIONS.items()
        for event, after in moves.items()
        if after is State.CANCELLED
    }
    assert into_cancelled == {(State.QUEUED, Event.CANCEL_ASKED), (State.STOPPING, Event.STOPPED)}


def test_a_change_of_what_was_asked_for_moves_nothing():
    assert {state: moves[Event.CHANGED] for state, moves in TRANSITIONS.items() if Event.CHANGED in moves} == {
        state: state for state in (State.QUEUED, State.STARTING, State.RUNNING)
    }


def test_only_a_placement_makes_a_run_live():
    into_live = {
        (state, event)
        for state, moves in TRANSITIONS.items()
        for event, after in moves.items()
        if after in LIVE and state not in LIVE
    }
    assert into_live == {(State.QUEUED, Event.PLACED)}


@given(histories)
def test_any_history_keeps_to_the_table(events):
    state, taken = State.QUEUED, [Event.SUBMITTED]
    for event in events:
        if event in TRANSITIONS[state]:
            before, state = state, advance(state, event, 7)
            assert state is TRANSITIONS[before][event]
            taken.append(event)
        else:
            with pytest.raises(IllegalTransition) as refused:
                advance(state, event, 7)
            assert (refused.value.run, refused.value.state, refused.value.event) == (7, state, event)
    assert replay(taken) is state


def test_a_refusal_names_the_run_its_state_and_the_event():
    with pytest.raises(IllegalTransition, match=r"run 7 is succeeded: it cannot take 'placed'"):
        advance(State.SUCCEEDED, Event.PLACED, 7)


@pytest.mark.parametrize("events", [[], [Event.PLACED], [Event.SUBMITTED, Event.SUBMITTED]], ids=str)
def test_a_history_begins_with_one_submission(events):
    with pytest.raises((ValueError, IllegalTransition)):
        replay(events)
