"""When a gang stands still, and what is made of that: never while any rank gets on, always once the limit is over."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.control.gang_progress import GangProgress
from orchestrator.control.rank_progress import RankProgress
from orchestrator.control.watch import limits_of
from orchestrator.health.hang import Verdict, explained, verdict
from orchestrator.health.stacks import Evidence, Frame, RankStack
from orchestrator.health.standstill import Limits, Signs, Standstill, judge
from orchestrator.policy import Policy
from orchestrator.progress.file import bucket_of
from orchestrator.spec import JobSpec
from orchestrator.testing import START

LIMITS = Limits()
PACED = Signs(0, lived=1000, still=0, quiet=500, p99=0.1)
S = 10**9


def test_a_gang_stands_still_when_no_rank_has_stepped_for_a_minute() -> None:
    assert judge([replace(PACED, still=59.9), replace(PACED, still=300)], LIMITS) is None
    found = judge([replace(PACED, still=61), replace(PACED, still=300)], LIMITS)
    assert found is not None
    assert found.text == "no step for 61 s (limit 60 s)"


def test_slow_steps_have_five_times_their_99th_percentile() -> None:
    slow = replace(PACED, p99=20.0)
    assert judge([replace(slow, still=99)], LIMITS) is None
    assert judge([replace(slow, still=101)], LIMITS) is not None


def test_who_has_paused_for_long_and_went_on_may_pause_as_long_again() -> None:
    evaluates = replace(PACED, pause=200.0)
    assert judge([replace(evaluates, still=399)], LIMITS) is None
    assert judge([replace(evaluates, still=401)], LIMITS) is not None
    once = replace(PACED, pause=5000.0)
    assert judge([replace(once, still=901)], LIMITS) is not None


@pytest.mark.parametrize(
    "longer",
    [
        pytest.param({"saving": True}, id="a save is under way"),
        pytest.param({"quiet": 5.0}, id="it prints"),
        pytest.param({"p99": None}, id="there was one step so far"),
    ],
)
def test_some_standstills_have_as_long_as_a_first_step(longer: dict[str, object]) -> None:
    one = replace(PACED, **longer)  # type: ignore[arg-type]
    assert judge([replace(one, still=899)], LIMITS) is None
    assert judge([replace(one, still=901)], LIMITS) is not None


def test_before_the_first_sign_what_is_printed_is_one() -> None:
    silent = Signs(0, lived=901, still=None, quiet=901)
    assert judge([replace(silent, quiet=899)], LIMITS) is None
    found = judge([silent], LIMITS)
    assert found is not None
    assert not found.seen
    assert found.text == "no step for 901 s since it began (limit 900 s)"


def test_nothing_known_is_no_standstill() -> None:
    assert judge([], LIMITS) is None


SECONDS = st.floats(0, 1e6)
SIGNS = st.builds(
    Signs,
    rank=st.just(0),
    lived=SECONDS,
    still=st.none() | SECONDS,
    quiet=st.none() | SECONDS,
    saving=st.booleans(),
    p99=st.none() | st.floats(1e-4, 1e4),
    pause=st.none() | st.floats(1e-4, 1e5),
)
ANY_LIMITS = st.builds(Limits, after=st.floats(1, 1e5), first=st.floats(1, 1e5), asked=st.booleans())


@given(st.lists(SIGNS, min_size=1, max_size=8), ANY_LIMITS, st.floats(0, 0.99))
def test_never_a_standstill_while_any_rank_gets_on(signs: list[Signs], limits: Limits, part: float) -> None:
    first, *rest = signs
    moving = replace(first, still=min(limits.after, limits.first) * part)
    assert judge([*rest, moving], limits) is None


@given(st.lists(SIGNS, min_size=1, max_size=8), ANY_LIMITS)
def test_always_a_standstill_once_no_rank_has_shown_anything_for_the_longest_limit(
    signs: list[Signs], limits: Limits
) -> None:
    longest = max(limits.first, limits.after, *(5 * (one.p99 or 0) for one in signs)) + 1
    silent = [replace(one, lived=longest, still=longest, quiet=longest) for one in signs]
    found = judge(silent, limits)
    assert found is not None
    assert found.seconds == longest
    assert found.limit <= longest


# -- what looks make of it ------------------------------------------------------------------------------------------------


def look(rank: int, at: float, **change: int) -> RankProgress:
    steps = round(change.pop("steps", 100))
    times = {bucket_of(S // 10): steps - 1}
    one = RankProgress(1, 1, rank, round(at * S), began_at=1, steps=steps, first_step_at=S, step_times=times)
    return replace(one, **change)


def test_an_agent_that_is_not_heard_and_a_controller_that_was_away_make_nobody_look_hung() -> None:
    gang = GangProgress()
    gang.observe([look(0, 50, step_at=50 * S), look(1, 50, step_at=50 * S)], START)
    # An hour later by the controller's clock, and then a day before: what the looks said is what is known.
    for away in (timedelta(hours=1), timedelta(days=-1)):
        gang.observe([look(0, 51, step_at=50 * S)], START + away)
        assert judge(gang.signs(), LIMITS) is None
    gang.observe([look(0, 200, step_at=50 * S), look(1, 55, step_at=50 * S)], START)
    assert judge(gang.signs(), LIMITS) is None
    # Heard of again: the rank really has stood still all the time.
    gang.observe([look(1, 200, step_at=50 * S)], START)
    assert judge(gang.signs(), LIMITS) is not None


def test_batches_without_steps_are_progress_and_so_are_saves() -> None:
    paced = {"step_at": 50 * S}
    for later in ({"batch_at": 299 * S, "batches": 200}, {"saved_at": 299 * S}, {"save_began_at": 299 * S}):
        gang = GangProgress()
        gang.observe([look(0, 300, **paced, **later)], START)
        assert judge(gang.signs(), LIMITS) is None
    gang = GangProgress()
    gang.observe([look(0, 300, **paced, save_began_at=51 * S, saves_begun=1)], START)
    assert judge(gang.signs(), LIMITS) is None
    gang.observe([look(0, 1000, **paced, save_began_at=51 * S, saves_begun=1)], START)
    found = judge(gang.signs(), LIMITS)
    assert found is not None
    assert "save of a checkpoint" in found.text


@given(st.lists(st.tuples(st.sampled_from([0, 1]), st.floats(0.05, 59.0), st.booleans()), min_size=3, max_size=40))
def test_a_life_of_steps_is_never_a_standstill_and_its_end_is_one_in_time(
    steps: list[tuple[int, float, bool]],
) -> None:
    """Two ranks that step at any pace within the limit; each time one of the agents may not be heard."""
    now, done, at, paces = 1.0, [1, 1], [1.0, 1.0], [{}, {}]
    gang = GangProgress()

    def see(rank: int) -> None:
        counts = {"steps": done[rank], "step_at": round(at[rank] * S)}
        gang.observe([replace(look(rank, now, **counts), step_times=dict(paces[rank]))], START)

    for rank, gap, heard in steps:
        now += gap
        took = bucket_of(round((now - at[rank]) * S))
        paces[rank][took] = paces[rank].get(took, 0) + 1
        done[rank], at[rank] = done[rank] + 1, now
        see(rank)
        if heard:
            see(1 - rank)
        assert judge(gang.signs(), LIMITS) is None
        assert judge(gang.signs(LIMITS.after), LIMITS) is None
    # Five times a bucket's end, which is a sixteenth further than what was put into it.
    now += max(900.0, 5 * 1.07 * now)
    for rank in (0, 1):
        see(rank)
    assert judge(gang.signs(LIMITS.after), LIMITS) is not None


# -- the verdict ------------------------------------------------------------------------------------------------------------


def stack(rank: int, *calls: tuple[str, str, int], state: str = "S") -> RankStack:
    return RankStack(rank, 100 + rank, state, tuple(Frame(*call) for call in calls))


STEPPING = ("step", "train.py", 30)
REDUCING = ("all_reduce", "torch/distributed/distributed_c10d.py", 3252)
STILL = Standstill(61, 60, "steps", seen=True)
BLIND = Standstill(901, 900, "first", seen=False)


def test_a_rank_whose_stack_moves_is_busy_until_the_longer_limit_is_over() -> None:
    before = {0: stack(0, REDUCING, STEPPING), 1: stack(1, ("score", "eval.py", 7))}
    after = before | {1: stack(1, ("score", "eval.py", 9))}
    assert verdict(STILL, LIMITS, before, after) is Verdict.BUSY
    assert verdict(STILL, LIMITS, before, before) is Verdict.HUNG
    assert verdict(replace(STILL, seconds=901), LIMITS, before, after) is Verdict.HUNG


@pytest.mark.parametrize(
    "frames",
    [
        [("_wait", "subprocess.py", 2024), ("upload", "train.py", 50)],
        [("poll", "multiprocessing/popen_fork.py", 27), ("join", "multiprocessing/process.py", 149)],
        [("wait4", "libc.so.6", 0), ("upload", "train.py", 50)],
    ],
)
def test_a_rank_that_waits_for_a_process_of_its_own_is_busy(frames: list[tuple[str, str, int]]) -> None:
    stacks = {0: stack(0, REDUCING, STEPPING), 1: stack(1, *frames)}
    assert verdict(STILL, LIMITS, stacks, stacks) is Verdict.BUSY


def test_a_rank_that_copies_is_busy_and_one_that_is_stopped_is_not() -> None:
    before = {0: replace(stack(0, ("copy", "shutil.py", 3)), moved_bytes=5)}
    after = {0: replace(before[0], moved_bytes=5 << 20)}
    assert verdict(STILL, LIMITS, before, after) is Verdict.BUSY
    assert verdict(STILL, LIMITS, before, {0: replace(before[0], moved_bytes=900)}) is Verdict.HUNG
    assert verdict(STILL, LIMITS, before, {0: replace(after[0], state="T")}) is Verdict.HUNG
    untold = {0: replace(before[0], moved_bytes=0)}
    assert verdict(STILL, LIMITS, untold, after) is Verdict.HUNG


def test_where_nobody_could_look_the_limit_alone_decides() -> None:
    assert verdict(STILL, LIMITS, {0: stack(0)}, {0: stack(0)}) is Verdict.HUNG


def test_a_script_that_nothing_was_ever_seen_of_is_ended_only_where_it_waits_in_a_collective_or_its_job_says_so() -> (
    None
):
    serves = {0: stack(0, ("accept", "/usr/lib/python3.11/socket.py", 294), ("main", "serve.py", 4))}
    assert verdict(BLIND, LIMITS, serves, serves) is Verdict.UNSEEN
    assert verdict(BLIND, replace(LIMITS, asked=True), serves, serves) is Verdict.HUNG
    meets = {0: stack(0, ("init_process_group", "torch/distributed/distributed_c10d.py", 1800)), 1: serves[0]}
    assert verdict(BLIND, LIMITS, meets, meets) is Verdict.HUNG
    assert verdict(BLIND, LIMITS, {0: stack(0)}, {0: stack(0, state="T")}) is Verdict.HUNG


def test_the_reason_says_how_long_who_and_where() -> None:
    stacks = {0: stack(0, REDUCING, STEPPING), 1: stack(1, ("__next__", "data.py", 12), ("main", "train.py", 40))}
    text, culprit = explained(STILL, Evidence(stacks, nodes={0: "gpu-01", 1: "gpu-02"}))
    assert culprit is not None
    assert culprit.ranks == (1,)
    assert text == (
        "hung: no step for 61 s (limit 60 s); rank 1 on gpu-02 is not in the collective that the others wait in; "
        "it stands in data.py:12, in __next__; rank 0 stands in all_reduce, called at train.py:30"
    )


# -- how it is asked for ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("hang", "policy", "limits"),
    [
        (None, Policy(), Limits(60, 900)),
        (None, Policy(hang=None), None),
        (None, Policy(hang=300, first_step=60), Limits(300, 60)),
        ("off", Policy(), None),
        ("10m", Policy(), Limits(600, 900, asked=True)),
        ("10m", Policy(hang=None), Limits(600, 900, asked=True)),
        ({"first": "1h"}, Policy(), Limits(60, 3600, asked=True)),
        ({"first": "1h"}, Policy(hang=None), Limits(60, 3600, asked=True)),
    ],
)
def test_the_job_goes_before_the_policy(hang: object, policy: Policy, limits: Limits | None) -> None:
    assert limits_of(JobSpec.model_validate({"run": "t.py", "hang": hang}), policy) == limits
