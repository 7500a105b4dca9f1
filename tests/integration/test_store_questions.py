"""Runs are found, listed, filtered and sorted; nodes are remembered."""

from datetime import timedelta

import pytest
from sqlalchemy import event
from stored import queued, running

from orchestrator.history.filters import RunFilter
from orchestrator.scheduling.lifecycle import Event, Outcome, State
from orchestrator.scheduling.run import NodeRecord
from orchestrator.testing import START, ManualClock, a_new_run, a_placement


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
        store.upsert_nodes([NodeRecord("a", "10.0.0.1", state, clock(), clock(), {"gpus": 8}, versions)])

    seen("up", torch="2.8")
    clock.advance(60)
    seen("down", torch="2.9")
    (node,) = store.nodes()
    assert (node.state, node.first_seen, node.last_seen) == ("down", START, clock())
    assert (node.hardware, node.versions) == ({"gpus": 8}, {"torch": "2.9"})
