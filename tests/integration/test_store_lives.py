"""A run's events and attempts, and who has which GPU; what the table or the schema refuses changes nothing."""

from datetime import timedelta

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError, IntegrityError
from stored import everything, queued, running

from orchestrator.health.failure import Failure
from orchestrator.history.errors import DoubleBooked, NoSuchRun
from orchestrator.scheduling.lifecycle import Event, IllegalTransition, Outcome, State
from orchestrator.testing import START, a_new_run, a_placement

# --- the life of a run ---


def test_a_run_that_is_tried_again_comes_back_with_all_its_attempts_and_events(store, clock):
    run = queued(store, clock)
    placed = store.place(run, a_placement(a=(0, 1), b=(2, 3)), clock.advance(1))
    assert placed.state is State.STARTING
    assert placed.attempts[0].placement == a_placement(a=(0, 1), b=(2, 3))
    assert store.busy() == {"a": {0: run, 1: run}, "b": {2: run, 3: run}}
    started = store.record(run, Event.STARTED, clock.advance(1))
    assert (started.state, started.started_at) == (State.RUNNING, clock())
    assert started.attempts[0].ranks_started_at == clock()
    assert [one.id for one in store.live()] == [run]
    failure = Failure("node_lost", "b was not heard of for 30 s\0\udcff", rank=2, node="b")
    requeued = store.finish(
        run,
        Event.REQUEUED,
        Outcome.INFRA_ERROR,
        clock.advance(1),
        reason="b is gone",
        failure=failure,
        exit_codes={0: -9, 1: 0},
    )
    assert (requeued.state, requeued.reason, requeued.queued_at) == (State.QUEUED, "b is gone", START)
    ended = requeued.attempts[0]
    assert (ended.outcome, ended.ended_at, ended.exit_codes) == (Outcome.INFRA_ERROR, clock(), {0: -9, 1: 0})
    assert (ended.failure.kind, ended.failure.rank, ended.failure.node) == ("node_lost", 2, "b")
    assert store.busy() == {}
    store.place(run, a_placement(a=(0, 1, 2, 3)), clock.advance(1))
    done = store.finish(run, Event.SUCCEEDED, Outcome.SUCCEEDED, clock.advance(1))
    assert (done.state, done.finished_at, done.submitted_at) == (State.SUCCEEDED, clock(), START)
    assert [one.number for one in done.attempts] == [1, 2]
    whole = store.get(run)
    assert [one.event.value for one in whole.events] == [
        "submitted",
        "placed",
        "started",
        "requeued",
        "placed",
        "succeeded",
    ]
    assert [one.attempt for one in whole.events] == [None, 1, 1, 1, 2, 2]
    assert store.verify(run)


def test_a_success_that_was_over_before_its_start_was_heard_of_did_start(store, clock):
    run = queued(store, clock)
    store.place(run, a_placement(a=(0,)), clock.advance(1))
    placed_at = clock()
    done = store.finish(run, Event.SUCCEEDED, Outcome.SUCCEEDED, clock.advance(1))
    assert (done.started_at, done.attempts[0].ranks_started_at) == (placed_at, None)


def test_a_queued_run_is_cancelled_at_once(store, clock):
    run = queued(store, clock)
    ended = store.record(run, Event.CANCEL_ASKED, clock.advance(1), "cancelled by ana", by="ana")
    assert (ended.state, ended.reason, ended.finished_at) == (State.CANCELLED, "cancelled by ana", clock())
    assert store.get(run).events[-1].by == "ana"


def test_a_second_request_to_stop_keeps_the_first_one_s_reason(store, clock):
    run = running(store, clock)
    store.record(run, Event.CANCEL_ASKED, clock(), "cancelled by ana", by="ana")
    again = store.record(run, Event.CANCEL_ASKED, clock(), by="ben")
    assert (again.state, again.reason) == (State.STOPPING, "cancelled by ana")
    assert store.finish(run, Event.STOPPED, Outcome.CANCELLED, clock()).state is State.CANCELLED
    assert store.verify(run)


def test_a_retry_queues_the_run_anew(store, clock):
    run = running(store, clock)
    store.finish(run, Event.FAILED, Outcome.USER_ERROR, clock.advance(1), reason="exit 1")
    again = store.record(run, Event.RETRY_ASKED, clock.advance(1), by="ana")
    assert (again.state, again.finished_at, again.reason) == (State.QUEUED, None, None)
    assert (again.queued_at, again.submitted_at) == (clock(), START)
    assert store.place(run, a_placement(a=(0,)), clock()).attempts[-1].number == 2


def test_a_waiting_run_can_fail(store, clock):
    run = queued(store, clock)
    assert store.record(run, Event.FAILED, clock(), "its secrets are gone").state is State.FAILED


@pytest.mark.parametrize(
    "act",
    [
        pytest.param(lambda s, run, now: s.place(run, a_placement(c=(0,)), now), id="placing a running run"),
        pytest.param(lambda s, run, now: s.record(run, Event.STARTED, now), id="starting it twice"),
        pytest.param(lambda s, run, now: s.record(run, Event.FAILED, now), id="failing it without its attempt"),
        pytest.param(lambda s, run, now: s.record(run, Event.PLACED, now), id="placing it nowhere"),
        pytest.param(
            lambda s, run, now: s.finish(run, Event.STOPPED, Outcome.CANCELLED, now), id="stopped without being asked"
        ),
        pytest.param(
            lambda s, run, now: s.finish(run, Event.STARTED, Outcome.SUCCEEDED, now), id="ending it by its start"
        ),
    ],
)
def test_what_the_table_refuses_changes_nothing(store, clock, act):
    run = running(store, clock)
    before = everything(store)
    with pytest.raises(IllegalTransition):
        act(store, run, clock.advance(1))
    assert everything(store) == before


def test_an_attempt_ends_once(store, clock):
    run = running(store, clock)
    store.finish(run, Event.REQUEUED, Outcome.PREEMPTED, clock())
    before = everything(store)
    with pytest.raises(IllegalTransition):
        store.finish(run, Event.FAILED, Outcome.USER_ERROR, clock())
    assert everything(store) == before


def test_a_run_that_is_not_there_is_named(store, clock):
    for act in (
        lambda: store.place(9, a_placement(a=(0,)), clock()),
        lambda: store.record(9, Event.STARTED, clock()),
        lambda: store.finish(9, Event.FAILED, Outcome.USER_ERROR, clock()),
        lambda: store.verify(9),
    ):
        with pytest.raises(NoSuchRun, match="no run 9"):
            act()


# --- who has which GPU ---


def test_a_gpu_is_given_once(store, clock):
    first = running(store, clock, a=(0, 1), b=(0,))
    second = queued(store, clock)
    before = everything(store)
    with pytest.raises(DoubleBooked, match=rf"1 of a \(run {first}\)") as refused:
        store.place(second, a_placement(a=(1, 2), c=(0,)), clock())
    assert refused.value.taken == (("a", 1, first),)
    assert everything(store) == before


def test_a_placement_that_names_a_gpu_twice_is_refused(store, clock):
    run = queued(store, clock)
    before = everything(store)
    with pytest.raises(IntegrityError):
        store.place(run, a_placement(a=(1, 1)), clock())
    assert everything(store) == before


def test_a_fenced_node_s_gpus_stay_taken_until_the_fence_runs_out(store, clock):
    run = running(store, clock, a=(0, 1), b=(0, 1))
    until = clock() + timedelta(seconds=30)
    store.finish(run, Event.REQUEUED, Outcome.INFRA_ERROR, clock(), fenced={"b": until, "elsewhere": until})
    assert store.busy() == {"b": {0: run, 1: run}}
    with pytest.raises(DoubleBooked):
        store.place(run, a_placement(b=(0,)), clock())
    assert store.release_fenced(until - timedelta(seconds=1)) == 0
    assert store.release_fenced(until) == 2
    assert store.release_fenced(until) == 0
    assert store.busy() == {}
    assert store.place(run, a_placement(b=(0,)), clock()).state is State.STARTING


def test_the_schema_forbids_double_booking_whoever_writes(store, url, raw, clock):
    running(store, clock, a=(0, 1))
    other = running(store, clock, b=(0, 1))
    with raw(url) as connection:
        book = text("INSERT INTO allocations (run_id, attempt, node, gpu, since) VALUES (:run, 1, 'a', 1, :at)")
        with pytest.raises(IntegrityError):
            connection.execute(book, {"run": other, "at": "2026-01-05 09:00:00"})


def test_the_schema_forbids_two_live_attempts_of_one_run(store, url, raw, clock):
    run = running(store, clock)
    with raw(url) as connection, pytest.raises(IntegrityError):
        connection.execute(
            text(
                "INSERT INTO attempts (run_id, number, placement, started_at, exit_codes)"
                " SELECT run_id, 2, placement, started_at, exit_codes FROM attempts WHERE run_id = :run"
            ),
            {"run": run},
        )


def test_the_schema_forbids_a_key_used_twice_and_a_state_that_is_none(store, url, raw, clock):
    store.submit_many([a_new_run(key="k"), a_new_run(key="l")], clock())
    with raw(url) as connection:
        for change in ("submit_key = 'k'", "state = 'sleeping'"):
            with pytest.raises(IntegrityError):
                connection.execute(text(f"UPDATE runs SET {change}"))


def test_events_cannot_be_changed_or_removed_whoever_writes(store, url, raw, clock):
    run = running(store, clock)
    before = store.get(run)
    statements = ["UPDATE events SET reason = 'other'", "DELETE FROM events"]
    with raw(url) as connection:
        if connection.dialect.name == "sqlite":
            statements.append("INSERT OR REPLACE INTO events SELECT * FROM events WHERE sequence = 1")
        else:
            statements.append("TRUNCATE events")
        for statement in statements:
            with pytest.raises(DBAPIError, match="append-only"):
                connection.execute(text(statement))
    assert store.get(run) == before


def test_verify_sees_a_state_that_no_event_led_to(store, url, raw, clock):
    run = running(store, clock)
    assert store.verify(run)
    with raw(url) as connection:
        connection.execute(text("UPDATE runs SET state = 'succeeded'"))
    assert not store.verify(run)
