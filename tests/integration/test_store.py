"""What the store promises, on SQLite and PostgreSQL alike."""

import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta
from zoneinfo import ZoneInfo

import pytest
from sqlalchemy import event, text
from sqlalchemy.exc import DBAPIError, IntegrityError, StatementError

from orchestrator.health.failure import Failure
from orchestrator.history.errors import DatabaseBusy, DoubleBooked, GroupUndone, KeyUsed, NoSuchRun, StaleEpoch
from orchestrator.history.filters import RunFilter
from orchestrator.scheduling.lifecycle import Event, IllegalTransition, Outcome, State
from orchestrator.scheduling.run import Code, NodeRecord
from orchestrator.testing import START, ManualClock, a_new_run, a_placement


def queued(store, clock, **spec):
    return store.submit(a_new_run(**spec), clock())[0].id


def running(store, clock, **nodes):
    run = queued(store, clock)
    store.place(run, a_placement(**(nodes or {"a": (0, 1)})), clock())
    store.record(run, Event.STARTED, clock())
    return run


def everything(store):
    """All that can be seen of the database."""
    return [store.get(run.id) for run in store.runs()], store.busy(), store.nodes()


# --- submitting ---


def test_what_was_submitted_comes_back_as_it_was(store, clock):
    new = a_new_run(
        key="k",
        workers="2x4",
        tags={"sweep": "a"},
        env={"A": "ü\t€"},
        secrets=("TOKEN",),
        priority=-3,
        team="vision",
    )
    run, created = store.submit(new, clock())
    assert created
    assert (run.spec, run.user, run.code, run.workdir) == (new.spec, new.user, new.code, new.workdir)
    assert (run.state, run.submitted_at, run.queued_at) == (State.QUEUED, START, START)
    whole = store.get(run.id)
    assert (whole.spec, whole.code, whole.attempts) == (new.spec, new.code, ())
    assert [(one.event, one.state, one.by, one.at) for one in whole.events] == [
        (Event.SUBMITTED, State.QUEUED, "ana", START)
    ]


def test_times_come_back_aware_and_in_utc(store, clock):
    local = START.astimezone(ZoneInfo("Asia/Kolkata"))
    run, _ = store.submit(a_new_run(), local)
    read = store.get(run.id).submitted_at
    assert read == START
    assert read.utcoffset() == timedelta(0)


def test_a_time_without_a_zone_is_refused(store):
    with pytest.raises(StatementError, match="without a zone"):
        store.submit(a_new_run(), START.replace(tzinfo=None))
    assert store.runs() == []


def test_a_key_used_before_gives_the_run_of_then(store, clock):
    first, _ = store.submit(a_new_run(key="k"), clock())
    again, created = store.submit(a_new_run(key="k", priority=7), clock.advance(5))
    assert (again.id, again.spec.priority, created) == (first.id, 0, False)
    other_user, created = store.submit(a_new_run(key="k", user="ben"), clock())
    assert created
    assert other_user.id != first.id


@pytest.mark.parametrize(
    "other",
    [a_new_run(key="k", name="other"), a_new_run(key="k", workers=2), replace(a_new_run(key="k"), code=Code("1" * 64))],
    ids=["name", "workers", "code"],
)
@pytest.mark.parametrize("together", [False, True])
def test_a_key_that_comes_with_another_job_is_refused_and_names_the_first_run(store, clock, request, together, other):
    new = [a_new_run(key="k"), other]
    first, second = (
        store.submit_each(new, clock()) if together else [store.submit_each([one], clock())[0] for one in new]
    )
    assert isinstance(second, KeyUsed)
    differs = request.node.callspec.id.rpartition("-")[2]
    assert str(second) == (
        f"The key 'k' is that of run {first[0].id} (train), which is another job (another {differs}): "
        "give this one a key of its own."
    )
    assert second.exit_code == 7
    assert [run.id for run in store.runs()] == [first[0].id]


def test_runs_without_a_key_are_all_new(store, clock):
    assert queued(store, clock) != queued(store, clock)


def test_many_are_submitted_in_order_and_their_keys_count_too(store, clock):
    new = [a_new_run(name=f"n{number % 3}", key=f"k{number % 3}") for number in range(5)]
    submitted = store.submit_many(new, clock())
    assert [created for _, created in submitted] == [True, True, True, False, False]
    assert [run.name for run, _ in submitted] == ["n0", "n1", "n2", "n0", "n1"]


def test_many_are_submitted_all_or_none(store, clock):
    with pytest.raises(IntegrityError):
        store.submit_many([a_new_run(), replace(a_new_run(), user=None)], clock())
    assert store.runs() == []


def test_threads_that_submit_one_key_get_one_run(store, clock):
    together = threading.Barrier(8)

    def submit(_):
        together.wait(timeout=20)
        return store.submit(a_new_run(key="k"), clock())

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(submit, range(8)))
    assert {run.id for run, _ in answers} == {answers[0][0].id}
    assert sum(created for _, created in answers) == 1
    assert len(store.runs()) == 1


# --- the life of a run ---


def test_a_run_s_whole_life(store, clock):
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


# --- several writes in one transaction ---


def test_writes_that_share_a_transaction_are_all_there_or_none(store, clock):
    run, other = running(store, clock, a=(0,)), queued(store, clock)
    before = everything(store)

    def breaks_off():
        with store.group():
            store.record(other, Event.CANCEL_ASKED, clock())
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        breaks_off()
    assert everything(store) == before
    with store.group():
        store.finish(run, Event.SUCCEEDED, Outcome.SUCCEEDED, clock())
        store.place(other, a_placement(a=(0,)), clock())
        store.record(other, Event.STARTED, clock())
        third = store.submit(a_new_run(after=[run]), clock())[0].id
        store.record(third, Event.CANCEL_ASKED, clock())
    assert [store.get(one).state for one in (run, other, third)] == [State.SUCCEEDED, State.RUNNING, State.CANCELLED]
    assert all(store.verify(one) for one in (run, other, third))
    assert store.busy() == {"a": {0: other}}


def test_one_that_raises_is_undone_alone_and_one_that_the_database_refuses_undoes_all(store, clock):
    first, second = queued(store, clock), queued(store, clock)
    with store.group():
        with pytest.raises(IllegalTransition):
            store.record(first, Event.STARTED, clock())
        store.record(second, Event.CANCEL_ASKED, clock())
    assert [store.get(one).state for one in (first, second)] == [State.QUEUED, State.CANCELLED]
    third = queued(store, clock)
    before = everything(store)

    def holds_what_cannot_be():
        with store.group():
            store.record(third, Event.CANCEL_ASKED, clock())
            store.place(first, a_placement(a=(1, 1)), clock())

    with pytest.raises(GroupUndone):
        holds_what_cannot_be()
    assert everything(store) == before
    assert store.place(first, a_placement(a=(1,)), clock()).state is State.STARTING


def test_submissions_are_looked_at_one_by_one_where_a_key_was_used_before(store, clock):
    first, _ = store.submit(a_new_run(key="k"), clock())
    answers = store.submit_each(
        [a_new_run(key="l"), a_new_run(key="k"), a_new_run(after=[99]), a_new_run(key="l")], clock()
    )
    ids = [answer[0].id if isinstance(answer, tuple) else type(answer) for answer in answers]
    assert ids[1:3] == [first.id, NoSuchRun]
    assert ids[0] == ids[3] != first.id
    assert [answer[1] for answer in answers if isinstance(answer, tuple)] == [True, False, False]


# --- one writer ---


def test_the_epoch_rises_with_each_claim(url, open_store, clock):
    assert [open_store(url).claim_epoch("c", clock()) for _ in range(3)] == [1, 2, 3]


def test_a_controller_whose_epoch_is_over_changes_nothing(store, url, open_store, clock):
    run, waits = running(store, clock), queued(store, clock)
    newer = open_store(url)
    newer.claim_epoch("head-2", clock())
    before = everything(newer)
    for act in (
        lambda: store.submit(a_new_run(), clock()),
        lambda: store.place(waits, a_placement(c=(0,)), clock()),
        lambda: store.record(run, Event.CANCEL_ASKED, clock()),
        lambda: store.finish(run, Event.SUCCEEDED, Outcome.SUCCEEDED, clock()),
        lambda: store.release_fenced(clock()),
        lambda: store.upsert_node(NodeRecord("a", "10.0.0.1", "up", clock(), clock())),
    ):
        with pytest.raises(StaleEpoch, match=r"head-2, epoch 2\) owns the database: it holds epoch 1"):
            act()
    assert everything(newer) == before
    assert everything(store) == before


def test_a_store_that_claimed_nothing_writes_nothing(url, open_store, clock):
    with pytest.raises(StaleEpoch, match="claimed none"):
        open_store(url).submit(a_new_run(), clock())


def test_a_read_only_store_reads_and_writes_nothing(store, url, open_store, clock):
    run = running(store, clock)
    reader = open_store(url, readonly=True)
    assert reader.get(run) == store.get(run)
    with pytest.raises(ValueError, match="read only"):
        reader.claim_epoch("me", clock())


def _hold_the_lock(connection):
    sqlite = connection.dialect.name == "sqlite"
    connection.execute(text("BEGIN IMMEDIATE" if sqlite else "BEGIN"))
    connection.execute(text("UPDATE control SET owner = 'somebody else'"))


def test_a_write_waits_for_another_process_and_then_goes_on(store, url, raw, clock):
    with raw(url) as connection, ThreadPoolExecutor(1) as pool:
        _hold_the_lock(connection)
        submitted = pool.submit(store.submit, a_new_run(), clock())
        with pytest.raises(TimeoutError):
            submitted.result(timeout=0.2)
        connection.execute(text("COMMIT"))
        assert submitted.result(timeout=10)[1]


def test_a_database_held_for_too_long_is_busy_and_reads_go_on(url, raw, open_store, clock):
    store = open_store(url, busy_timeout_s=0.1)
    store.claim_epoch("test", clock())
    with raw(url) as connection:
        _hold_the_lock(connection)
        with pytest.raises(DatabaseBusy, match="is busy") as refused:
            store.submit(a_new_run(), clock())
        assert store.runs() == []
        connection.execute(text("ROLLBACK"))
    assert refused.value.exit_code == 6
    assert store.submit(a_new_run(), clock())[1]


WRITER = """
import sys
from orchestrator.history.store import Store
from orchestrator.scheduling.lifecycle import Event, Outcome
from orchestrator.testing import START, a_new_run, a_placement

store = Store.open(sys.argv[1])
store.claim_epoch("writer", START)
while True:
    run, _ = store.submit(a_new_run(), START)
    store.place(run.id, a_placement(a=(0, 1)), START)
    print(run.id, flush=True)
    store.finish(run.id, Event.SUCCEEDED, Outcome.SUCCEEDED, START)
"""


@pytest.mark.parametrize("acknowledged", [1, 7, 20])
def test_a_killed_writer_loses_nothing_that_it_acknowledged(url, open_store, clock, acknowledged):
    writer = subprocess.Popen([sys.executable, "-c", WRITER, url], stdout=subprocess.PIPE, text=True)
    seen = [int(writer.stdout.readline()) for _ in range(acknowledged)]
    writer.send_signal(signal.SIGKILL)
    rest, _ = writer.communicate(timeout=30)
    seen += [int(line) for line in rest.splitlines()]
    store = open_store(url)
    runs = {run.id: run for run in store.runs()}
    assert set(seen) <= set(runs)
    assert all(runs[run].attempts for run in seen)
    assert all(store.verify(run) for run in runs)
    assert store.busy() == ({"a": dict.fromkeys((0, 1), max(runs))} if store.live() else {})
    store.claim_epoch("next", clock())
    assert store.submit(a_new_run(), clock())[0].id > max(runs)


# --- asking ---


def test_a_run_is_found_by_id_and_by_name(store, clock):
    first, second = queued(store, clock, name="bert"), queued(store, clock, name="bert")
    assert store.get(first).id == store.get(str(first)).id == first
    assert store.get("bert").id == second
    assert [store.get(ref) for ref in ("gpt", 99, "99", -1, 10**30, str(10**30), "²", "")] == [None] * 8


def test_a_name_that_looks_like_an_id_is_found_where_there_is_no_such_id(store, clock):
    named = queued(store, clock, name="77")
    assert store.get("77").id == named
    assert store.get(77) is None


def test_the_queue_is_by_priority_and_then_by_who_has_waited_longest(store, clock):
    low = queued(store, clock, priority=-1)
    first, second = queued(store, clock), queued(store, clock)
    later = queued(store, ManualClock(START + timedelta(seconds=1)))
    high = queued(store, ManualClock(START + timedelta(seconds=9)), priority=5)
    running(store, clock)
    assert [run.id for run in store.waiting()] == [high, first, second, later, low]
    store.place(first, a_placement(b=(0,)), clock())
    store.finish(first, Event.REQUEUED, Outcome.PREEMPTED, clock.advance(60))
    # What was preempted goes back to its place; what somebody asked for again begins to wait anew.
    assert [run.id for run in store.waiting()] == [high, first, second, later, low]
    store.record(second, Event.CANCEL_ASKED, clock())
    store.record(second, Event.RETRY_ASKED, clock())
    assert [run.id for run in store.waiting()] == [high, first, later, second, low]


@pytest.fixture
def history(store, clock):
    """1 ana bert (sweep a), succeeded · 2 ben bert (sweep b), running · 3 ana gpt (sweep a), queued"""
    new = [
        a_new_run(name="bert", team="text", tags={"sweep": "a", "lr": "0.1"}),
        a_new_run(user="ben", name="bert", tags={"sweep": "b"}),
        a_new_run(name="gpt", tags={"sweep": "a"}, priority=3),
    ]
    ids = [store.submit(one, clock.advance(60))[0].id for one in new]
    assert ids == [1, 2, 3]
    for run in ids[:2]:
        store.place(run, a_placement(**{f"n{run}": (0, 1)}), clock())
        store.record(run, Event.STARTED, clock.advance(60))
    store.finish(1, Event.REQUEUED, Outcome.PREEMPTED, clock())
    store.place(1, a_placement(n1=(0, 1)), clock())
    store.finish(1, Event.SUCCEEDED, Outcome.SUCCEEDED, clock())
    return store


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        ({}, [3, 2, 1]),
        ({"name": "bert"}, [2, 1]),
        ({"user": "ana"}, [3, 1]),
        ({"team": "text"}, [1]),
        ({"state": State.RUNNING}, [2]),
        ({"since": START + timedelta(seconds=120)}, [3, 2]),
        ({"tags": {"sweep": "a"}}, [3, 1]),
        ({"tags": {"sweep": "a", "lr": "0.1"}}, [1]),
        ({"tags": {"a": "sweep"}}, []),
        ({"live_only": True}, [3, 2]),
        ({"user": "ana", "name": "gpt"}, [3]),
        ({"user": "' OR 1=1 --"}, []),
        ({"limit": 2}, [3, 2]),
        ({"limit": 0}, []),
        ({"sort": "submitted", "limit": 2}, [1, 2]),
        ({"sort": "name"}, [1, 2, 3]),
        ({"sort": "-priority"}, [3, 2, 1]),
        ({"sort": "finished"}, [1, 2, 3]),
        ({"sort": "-finished"}, [1, 3, 2]),
        ({"sort": "started"}, [1, 2, 3]),
    ],
    ids=str,
)
def test_runs_are_filtered_sorted_and_cut(history, wanted, expected):
    assert [run.id for run in history.runs(RunFilter(**wanted))] == expected


def test_listed_runs_have_their_attempts_and_no_events(history):
    listed = {run.id: run for run in history.runs()}
    assert {run: [one.number for one in listed[run].attempts] for run in listed} == {1: [1, 2], 2: [1], 3: []}
    assert all(run.events == () for run in listed.values())
    assert listed[2].attempts == history.get(2).attempts


def test_a_list_takes_as_many_statements_for_many_runs_as_for_one(history, clock):
    said = []
    event.listen(history._database.reader, "before_cursor_execute", lambda *heard: said.append(heard[2]))
    counts = []
    for _ in range(2):
        said.clear()
        assert history.runs()
        assert history.waiting()
        assert history.live()
        counts.append(len(said))
        history.submit_many([a_new_run() for _ in range(30)], clock())
    assert counts[0] == counts[1]


@pytest.mark.parametrize("bad", ["spec", "id; DROP TABLE runs", "--id", ""])
def test_only_listed_columns_sort(bad):
    with pytest.raises(ValueError, match="is not one of id, name"):
        RunFilter(sort=bad)


def test_a_node_is_remembered_with_when_it_was_first_seen(store, clock):
    def seen(state, **versions):
        store.upsert_node(NodeRecord("a", "10.0.0.1", state, clock(), clock(), {"gpus": 8}, versions))

    seen("up", torch="2.8")
    clock.advance(60)
    seen("down", torch="2.9")
    (node,) = store.nodes()
    assert (node.state, node.first_seen, node.last_seen) == ("down", START, clock())
    assert (node.hardware, node.versions) == ({"gpus": 8}, {"torch": "2.9"})


def test_an_id_is_never_given_again(store, url, raw, clock):
    last = queued(store, clock)
    with raw(url) as connection:
        if connection.dialect.name == "sqlite":
            connection.execute(text("PRAGMA foreign_keys=OFF"))
        else:
            connection.execute(text("ALTER TABLE events DROP CONSTRAINT events_run_id_fkey"))
        connection.execute(text("DELETE FROM runs"))
    assert queued(store, clock) > last


def test_verify_sees_a_state_that_no_event_led_to(store, url, raw, clock):
    run = running(store, clock)
    assert store.verify(run)
    with raw(url) as connection:
        connection.execute(text("UPDATE runs SET state = 'succeeded'"))
    assert not store.verify(run)


def test_code_s_git_state_survives(store, clock):
    for code in (None, Code("f" * 64, "abc", True), Code("f" * 64, "abc", False)):
        run, _ = store.submit(replace(a_new_run(), code=code), clock())
        assert store.get(run.id).code == code
