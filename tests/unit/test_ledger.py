"""GPU time: it sums, and is what a count second by second gives."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta
from itertools import pairwise, permutations
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.control.gang_progress import GangProgress
from orchestrator.control.rank_progress import RankProgress
from orchestrator.history.ledger import account, began_anew, effective_ratio, gpu_time, queue_ms, scaling
from orchestrator.progress.file import bucket_of
from orchestrator.progress.gpu_time import GpuTime, total
from orchestrator.progress.values import Progress
from orchestrator.scheduling.lifecycle import Event, Outcome, State
from orchestrator.scheduling.run import Attempt, RunEvent
from orchestrator.testing import START, a_placement, a_run

PATIENCE = 30


def after(seconds: float) -> datetime:
    return START + timedelta(seconds=seconds)


# A life of one attempt, second by second: what its gang does in each.

Life = list[str]
LIVES = st.builds(
    lambda start, rest: ["start"] * start + [second for kind, count in rest for second in [kind] * count],
    st.integers(0, 40),
    st.lists(
        st.one_of(
            st.tuples(st.just("work"), st.integers(1, 25)),
            st.tuples(st.just("pause"), st.integers(1, 80)),
            st.tuples(st.sampled_from(["save", "broken save"]), st.integers(1, 6)),
        ),
        max_size=10,
    ),
)


def steps_and_saves(life: Life) -> tuple[list[int], list[tuple[int, int, bool]]]:
    """When each step was done (the end of its second), and the saves: from, to, whether complete."""
    steps = [second + 1 for second, kind in enumerate(life) if kind == "work"]
    saves, began = [], None
    for second, kind in enumerate([*life, "end"]):
        before = life[second - 1] if second else "start"
        if kind != before and before in ("save", "broken save") and began is not None:
            saves.append((began, second, before == "save"))
            began = None
        if kind != before and kind in ("save", "broken save"):
            began = second
    return steps, saves


def by_the_second(life: Life, held: int, *, kept: bool, anew: bool) -> GpuTime:
    """The account of one GPU in seconds, without any of the arithmetic that is tested."""
    steps, saves = steps_and_saves(life)
    if not steps:
        raise AssertionError("nothing was seen of it")
    use = ["idle"] * held
    use[: steps[0]] = ["starting"] * steps[0]
    for before, step in pairwise(steps):
        quiet = 0
        for second in range(before, step):
            if life[second] in ("save", "broken save"):
                use[second] = "checkpoint"
            elif quiet < PATIENCE:
                use[second], quiet = "work", quiet + 1
    for second in range(steps[-1], len(life)):
        if life[second] in ("save", "broken save"):
            use[second] = "checkpoint"
    complete = [begin for begin, _, whole in saves if whole]
    held_steps = [step for step in steps if complete and step <= complete[-1]]
    safe = max(held_steps, default=0)
    for second, what in enumerate(use):
        if what == "work":
            use[second] = "lost" if anew or (not kept and second >= safe) else "productive"
    return GpuTime(*(1000 * use.count(part) for part in ("starting", "productive", "checkpoint", "lost", "idle")))


def looks(life: Life, at: int, *, resumed: bool) -> list[RankProgress]:
    """What two ranks show at the end of that second: they step together, and the first one saves."""
    second = 10**9
    steps, saves = steps_and_saves(life)
    done = [step for step in steps if step <= at]
    times = {bucket_of(second): len(done) - 1} if len(done) > 1 else {}
    one = RankProgress(1, 1, 1, at * second + 7, 7)
    if done:
        one = replace(
            one, steps=len(done), step_at=done[-1] * second + 7, first_step_at=done[0] * second + 7, step_times=times
        )
    if resumed:
        one = replace(one, loads=1, load_at=1)
    began = [save for save in saves if save[0] < at]
    ended = [save for save in began if save[1] <= at]
    complete = [save for save in ended if save[2]]
    first = replace(
        one,
        rank=0,
        saves_begun=len(began),
        saves_ended=len(ended),
        save_began_at=began[-1][0] * second + 7 if began else 0,
        save_time=sum(end - begin for begin, end, _ in ended) * second,
        early_save_time=sum(end - begin for begin, end, _ in ended if done and begin < done[0]) * second,
        saved=len(complete),
        saved_steps=sum(step <= complete[-1][0] for step in steps) if complete else 0,
        saved_at=complete[-1][1] * second + 7 if complete else 0,
    )
    return [first, one]


def measured(life: Life, start: datetime, *, resumed: bool, restarts: set[int] = frozenset()) -> Progress | None:  # type: ignore[assignment]
    gang = GangProgress()
    for second in range(len(life) + 1):
        gang.observe(looks(life, second, resumed=resumed), start + timedelta(seconds=second))
        if second in restarts:
            gang = GangProgress(gang.summary())
            gang.observe(looks(life, second, resumed=resumed), start + timedelta(seconds=second))
    gang.end(start + timedelta(seconds=len(life)))
    return gang.summary()


@settings(max_examples=60)
@given(
    st.lists(
        st.tuples(
            LIVES.filter(lambda life: "work" in life),
            st.sampled_from([one for one in Outcome if one is not Outcome.SUCCEEDED]),
            st.booleans(),
            st.integers(0, 30),
            st.sets(st.integers(0, 200), max_size=2),
        ),
        min_size=1,
        max_size=4,
    ),
    st.booleans(),
)
def test_the_ledger_is_the_count_of_every_second_whatever_fails_and_restarts(
    lives: list[tuple[Life, Outcome, bool, int, set[int]]], succeeds: bool
) -> None:
    attempts, now = [], START
    for number, (life, outcome, resumed, _, restarts) in enumerate(lives, 1):
        if succeeds and number == len(lives):
            outcome = Outcome.SUCCEEDED
        end = now + timedelta(seconds=len(life))
        progress = measured(life, now, resumed=resumed, restarts=restarts)
        attempts.append(Attempt(number, a_placement(a=(0, 1), b=(0,)), now, now, end, outcome, progress=progress))
        now = end + timedelta(seconds=60)
    for attempt, anew, (life, _, _, fence, _) in zip(attempts, began_anew(attempts), lives, strict=True):
        later = lives[attempt.number :]
        assert anew == any(not resumed for _, _, resumed, _, _ in later)
        held = len(life) + fence
        counted = account(attempt, attempt.started_at, attempt.started_at + timedelta(seconds=held), began_anew=anew)
        assert counted == by_the_second(life, held, kept=attempt.outcome is Outcome.SUCCEEDED, anew=anew)
        assert counted.allocated == held * 1000
    run = a_run(attempts=tuple(attempts))
    assert gpu_time(run).allocated == sum(3000 * len(life) for life, *_ in lives)


def test_a_live_attempt_works_until_it_has_shown_nothing_for_too_long() -> None:
    progress = Progress(first_step_at=after(10), last_step_at=after(20), busy_ms=10_000, step_time_p50=1.0)
    attempt = Attempt(1, a_placement(a=(0,)), START, START, progress=progress)
    assert account(attempt, START, after(45)) == GpuTime(10_000, 35_000)
    assert account(attempt, START, after(60)) == GpuTime(10_000, 10_000, idle=40_000)
    slow = replace(attempt, progress=replace(progress, step_time_p50=10.0))
    assert account(slow, START, after(60)) == GpuTime(10_000, 50_000)


def test_what_a_lease_holds_after_the_end_is_idle() -> None:
    seen = Progress(first_step_at=after(10), last_step_at=after(90), busy_ms=80_000)
    for progress, productive in ((None, 90_000), (seen, 80_000)):
        attempt = Attempt(1, a_placement(a=(0,)), START, after(10), after(100), Outcome.SUCCEEDED, progress=progress)
        counted = account(attempt, START, after(130))
        assert (counted.starting, counted.productive, counted.allocated) == (10_000, productive, 130_000)


@given(st.lists(st.builds(GpuTime, *[st.integers(0, 10**12)] * 5), min_size=1, max_size=4), st.integers(1, 64))
def test_gpu_time_adds_up_in_any_order(times: list[GpuTime], gpus: int) -> None:
    assert len({total(order) for order in permutations(times)}) == 1
    assert (total(times) * gpus).allocated == gpus * sum(time.allocated for time in times)


def event(at: float, what: Event, state: State) -> RunEvent:
    return RunEvent(1, after(at), what, state)


def test_the_queue_is_every_wait_and_counts_against_effective_training_time() -> None:
    happened = (
        event(0, Event.SUBMITTED, State.QUEUED),
        event(100, Event.PLACED, State.STARTING),
        event(200, Event.REQUEUED, State.QUEUED),
        event(250, Event.PLACED, State.STARTING),
    )
    progress = Progress(first_step_at=after(250), last_step_at=after(400), busy_ms=150_000)
    attempts = (
        Attempt(1, a_placement(a=(0, 1)), after(100), None, after(200), Outcome.INFRA_ERROR),
        Attempt(2, a_placement(a=(0, 1)), after(250), after(250), after(400), Outcome.SUCCEEDED, progress=progress),
    )
    run = a_run(attempts=attempts, events=happened)
    assert queue_ms(run) == 150_000
    assert effective_ratio(run) == pytest.approx(150 / 400)
    assert queue_ms(a_run(attempts=attempts)) is None


def test_scaling_compares_each_size_with_the_smallest() -> None:
    found = scaling([(2, 100.0), (4, 180.0), (2, 120.0), (2, 110.0), (8, 320.0), (4, 0.0)])
    assert [(one.workers, one.runs, round(one.efficiency, 3)) for one in found] == [
        (2, 3, 1.0),
        (4, 1, 0.818),
        (8, 1, 0.727),
    ]
    assert scaling([]) == []


def test_cost_is_by_gpu_hours_and_the_price_of_then() -> None:
    from orchestrator.history.ledger import cost
    from orchestrator.progress.gpu_time import NodeTime

    def node(price: Any, hours: int) -> NodeTime:
        return NodeTime("a", 8, "cuda", START, after(3600), GpuTime(productive=hours * 3_600_000), "H100", price)

    attempt = Attempt(1, a_placement(a=(0,)), START)
    assert cost(a_run(attempts=(replace(attempt, used=(node(2.5, 8), node(None, 3))),))) == pytest.approx(20)
    assert cost(a_run(attempts=(attempt,))) is None
