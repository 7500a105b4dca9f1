"""Another attempt, or the end: by cause, by budget, and never twice as fast as the last time."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.health.failure import Failure
from orchestrator.progress.values import Progress
from orchestrator.scheduling import retry
from orchestrator.scheduling.lifecycle import Outcome, State
from orchestrator.scheduling.retry import Again, Enough, avoided, decide, not_before
from orchestrator.scheduling.run import Attempt, Run
from orchestrator.testing import START, a_placement, a_run

INFRA, USER = Outcome.INFRA_ERROR, Outcome.USER_ERROR


def broken(
    *outcomes: Outcome,
    kind: str = "node_lost",
    got_on: bool = True,
    up: bool = True,
    each: timedelta = timedelta(minutes=1),
    **spec: object,
) -> Run:
    """A run whose attempts, of a minute each, ended so."""
    attempts = []
    for number, outcome in enumerate(outcomes, 1):
        began = START + each * number
        failure = (
            None
            if outcome is Outcome.PREEMPTED
            else Failure(kind, "it broke", node=f"n{number}", suspects=(f"n{number}",))
        )
        attempts.append(
            Attempt(
                number,
                a_placement(n1=(0,)),
                began,
                began if up else None,
                began + timedelta(minutes=1),
                outcome,
                failure,
                progress=Progress(first_step_at=began) if got_on else None,
            )
        )
    return a_run(attempts=tuple(attempts), **spec)


def test_an_error_of_the_script_is_not_repeated_unless_the_job_says_so() -> None:
    assert decide(broken(USER, kind="exit")) == Enough(None)
    again = decide(broken(USER, kind="exit", retry={"user": 1}))
    assert again == Again("tried again at once, retry 1 of 1 for errors of the script")
    assert decide(broken(USER, USER, kind="exit", retry={"user": 1})) == Enough(
        "all 1 retries for errors of the script are used"
    )


def test_each_cause_draws_on_its_own_budget() -> None:
    budgets = {"infra": 2, "user": 1}
    assert isinstance(decide(broken(INFRA, USER, retry=budgets)), Again)
    assert isinstance(decide(broken(USER, INFRA, INFRA, retry=budgets)), Again)
    assert isinstance(decide(broken(USER, INFRA, INFRA, INFRA, retry=budgets)), Enough)
    assert isinstance(decide(broken(USER, INFRA, INFRA, USER, retry=budgets)), Enough)


@given(st.lists(st.sampled_from([INFRA, USER]), min_size=1, max_size=30), st.integers(0, 5), st.integers(0, 5))
def test_no_sequence_of_ends_gives_more_attempts_than_the_budgets(ends: list[Outcome], infra: int, user: int) -> None:
    tried = 0
    for count in range(1, len(ends) + 1):
        tried = count
        if isinstance(decide(broken(*ends[:count], retry={"infra": infra, "user": user})), Enough):
            break
    assert ends[:tried].count(INFRA) <= infra + 1
    assert ends[:tried].count(USER) <= user + 1


def test_faults_of_the_cluster_count_for_a_day() -> None:
    eleven = (INFRA,) * 11
    assert decide(broken(*eleven)) == Enough("all 10 retries for faults of the cluster in 24 h are used")
    assert isinstance(decide(broken(*eleven, each=timedelta(hours=3))), Again)


def test_errors_of_the_script_count_for_good() -> None:
    assert isinstance(decide(broken(USER, USER, kind="exit", each=timedelta(days=3), retry={"user": 1})), Enough)


def test_what_was_preempted_or_says_nothing_of_the_run_draws_on_nothing() -> None:
    assert isinstance(decide(broken(Outcome.PREEMPTED, INFRA, retry={"infra": 1})), Again)
    assert decide(broken(INFRA, kind="controller", retry={"infra": 0})) == Again(
        "tried again at once, which counts as no retry"
    )


def test_a_node_that_other_work_holds_is_asked_for_ever_more_seldom_and_for_ever() -> None:
    for count, pause in ((1, 2.0), (2, 3.0), (3, 4.5), (30, 60.0)):
        run = broken(*(INFRA,) * count, kind="hold_refused", retry={"infra": 0})
        assert decide(run) == Again(f"tried again in {pause:.0f} s, which counts as no retry")
        assert run.attempts[-1].ended_at is not None
        assert not_before(run) == run.attempts[-1].ended_at + timedelta(seconds=pause)
        assert avoided(run, START) == {}


@pytest.mark.parametrize("kind", sorted(retry.FINAL))
def test_what_another_attempt_would_only_repeat_is_the_end(kind: str) -> None:
    assert decide(broken(INFRA, kind=kind, retry={"infra": 9, "user": 9})) == Enough(None)


def test_a_retry_that_somebody_asks_for_has_new_budgets_and_waits_for_nothing() -> None:
    used = broken(*(INFRA,) * 3, retry={"infra": 2})
    assert isinstance(decide(used), Enough)
    assert used.attempts[-1].ended_at is not None
    asked = replace(used, queued_at=used.attempts[-1].ended_at + timedelta(seconds=1))
    assert not_before(asked) is None
    began = asked.queued_at + timedelta(seconds=1)
    anew = replace(used.attempts[-1], number=4, started_at=began, ended_at=began + timedelta(seconds=9))
    assert isinstance(decide(replace(asked, attempts=(*used.attempts, anew))), Again)


def test_attempts_that_never_come_up_or_never_get_on_are_not_repeated_for_ever() -> None:
    assert decide(broken(*(INFRA,) * 3, up=False, got_on=False)) == Enough("the last 3 attempts could not be started")
    assert isinstance(decide(broken(*(INFRA,) * 4, got_on=False)), Again)
    assert decide(broken(*(INFRA,) * 5, got_on=False)) == Enough("the last 5 attempts broke before they got on")
    assert isinstance(decide(broken(*(INFRA,) * 9, got_on=True)), Again)


def test_a_script_that_shows_nothing_has_got_on_when_it_ran_for_long() -> None:
    run = broken(*(INFRA,) * 5, got_on=False)
    long = tuple(replace(one, ended_at=one.started_at + retry.LONG_ENOUGH) for one in run.attempts)
    assert isinstance(decide(replace(run, attempts=long)), Again)


def test_the_first_retry_is_at_once_and_each_that_follows_without_getting_on_comes_later() -> None:
    pauses = []
    for count in range(1, 5):
        run = broken(*(INFRA,) * count, got_on=False)
        ended = run.attempts[-1].ended_at
        assert ended is not None
        pauses.append(0.0 if (then := not_before(run)) is None else (then - ended).total_seconds())
        when = f"in {pauses[-1]:.0f} s" if pauses[-1] else "at once"
        assert decide(run) == Again(f"tried again {when}, retry {count} of 10 for faults of the cluster in 24 h")
    assert pauses == [0.0, 10.0, 15.0, 22.5]
    assert not_before(broken(*(INFRA,) * 9, got_on=True)) is None


def test_pauses_end() -> None:
    many = broken(*(USER,) * 40, kind="exit", got_on=False, retry={"user": 99})
    assert many.attempts[-1].ended_at is not None
    assert not_before(many) == many.attempts[-1].ended_at + timedelta(seconds=retry.LONGEST_PAUSE_S)


def test_a_live_or_new_run_is_not_kept_back() -> None:
    assert not_before(a_run()) is None
    run = broken(INFRA, INFRA, got_on=False)
    live = replace(run.attempts[-1], ended_at=None, outcome=None, failure=None)
    assert not_before(replace(run, state=State.RUNNING, attempts=(run.attempts[0], live))) is None


def test_the_nodes_it_broke_on_are_avoided_for_a_while() -> None:
    run = broken(INFRA, INFRA)
    assert avoided(run, START + timedelta(minutes=4)) == {
        "n1": "attempt 1 broke there: node_lost",
        "n2": "attempt 2 broke there: node_lost",
    }
    assert avoided(run, START + retry.AVOIDED + timedelta(minutes=2, seconds=30)) == {
        "n2": "attempt 2 broke there: node_lost"
    }
    assert avoided(broken(USER, kind="exit"), START + timedelta(minutes=4)) == {}
