"""What is submitted comes back as it was, once for each key, on SQLite and PostgreSQL alike."""

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta
from zoneinfo import ZoneInfo

import pytest
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError, StatementError
from stored import queued

from orchestrator.history.errors import KeyUsed, NoSuchRun
from orchestrator.scheduling.lifecycle import Event, State
from orchestrator.scheduling.run import Code
from orchestrator.testing import START, a_new_run


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


def test_submissions_are_looked_at_one_by_one_where_a_key_was_used_before(store, clock):
    first, _ = store.submit(a_new_run(key="k"), clock())
    answers = store.submit_each(
        [a_new_run(key="l"), a_new_run(key="k"), a_new_run(after=[99]), a_new_run(key="l")], clock()
    )
    ids = [answer[0].id if isinstance(answer, tuple) else type(answer) for answer in answers]
    assert ids[1:3] == [first.id, NoSuchRun]
    assert ids[0] == ids[3] != first.id
    assert [answer[1] for answer in answers if isinstance(answer, tuple)] == [True, False, False]


def test_an_id_is_never_given_again(store, url, raw, clock):
    last = queued(store, clock)
    with raw(url) as connection:
        if connection.dialect.name == "sqlite":
            connection.execute(text("PRAGMA foreign_keys=OFF"))
        else:
            connection.execute(text("ALTER TABLE events DROP CONSTRAINT events_run_id_fkey"))
        connection.execute(text("DELETE FROM runs"))
    assert queued(store, clock) > last


def test_code_s_git_state_survives(store, clock):
    for code in (None, Code("f" * 64, "abc", True), Code("f" * 64, "abc", False)):
        run, _ = store.submit(replace(a_new_run(), code=code), clock())
        assert store.get(run.id).code == code
