"""One writer at a time: writes of one transaction are there together, an older epoch writes nothing, a kill loses nothing."""

import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import text
from stored import everything, queued, running

from orchestrator.history.errors import DatabaseBusy, DatabaseUnreachable, GroupUndone, StaleEpoch
from orchestrator.scheduling.lifecycle import Event, IllegalTransition, Outcome, State
from orchestrator.scheduling.run import NodeRecord
from orchestrator.testing import a_new_run, a_placement
from orchestrator.testing.crashes import Fuse, fused_store


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


def test_a_write_whose_commit_is_not_answered_is_in_doubt_until_the_next_one_which_tells_of_it(url, clock):
    fuse, lost, told = Fuse(), [], []
    fuse.loses = lambda: bool(lost and lost.pop())
    with fused_store(url, fuse) as store:
        store.claim_epoch("a test", clock())
        run = queued(store, clock)
        store.on_change = told.append
        assert not store.in_doubt
        lost.append(True)
        with pytest.raises(DatabaseUnreachable):
            store.place(run, a_placement(a=(0,)), clock())
        assert (store.in_doubt, told) == (True, [])
        with store.group():
            pass
        assert not store.in_doubt
        assert [(one.missed, one.runs[run].state) for one in told] == [(True, State.STARTING)]


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
        lambda: store.upsert_nodes([NodeRecord("a", "10.0.0.1", "up", clock(), clock())]),
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
