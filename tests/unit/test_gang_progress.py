"""A gang's progress from looks at its ranks: what counts, how fast it is, who is slow, what is done again."""

from __future__ import annotations

import itertools
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.control.gang_progress import GangProgress
from orchestrator.control.rank_progress import RankProgress
from orchestrator.progress.file import BUCKETS, bucket_of, bucket_start
from orchestrator.progress.histogram import difference, merged, quantile
from orchestrator.progress.values import Progress
from orchestrator.testing import START

S = 10**9


def at(seconds: float) -> datetime:
    return START + timedelta(seconds=seconds)


def stepping(rank: int, seconds: int, rate: int = 10, **change: Any) -> RankProgress:
    """A rank that has done `rate` steps of 4 samples a second, the first at second 0, when it is looked at."""
    steps = seconds * rate + 1
    look = RankProgress(1, 1, rank, seconds * S + 5, 5, steps=steps, step_at=seconds * S + 5, first_step_at=5)
    return replace(look, samples=steps * 4, step_times={bucket_of(S // rate): steps - 1}, **change)


def seen(*moments: list[RankProgress], every: float = 1.0) -> GangProgress:
    gang = GangProgress()
    for number, looks in enumerate(moments):
        gang.observe(looks, at(number * every))
    return gang


def test_speed_is_from_the_end_of_the_first_step_to_that_of_the_last() -> None:
    gang = seen(*([stepping(0, s), stepping(1, s)] for s in range(21)))
    found = gang.summary()
    assert found is not None
    assert (found.steps, found.samples, found.source) == (201, 201 * 8, "auto")
    assert found.samples_per_s == pytest.approx(80)
    assert found.step_time == pytest.approx(0.1)
    assert found.step_time_p50 == pytest.approx(0.1, rel=0.04)
    assert (found.first_step_at, found.last_step_at) == (at(0), at(20))
    assert (found.busy_ms, found.idle_ms, found.unsaved_ms) == (20_000, 0, 20_000)


def test_a_report_that_comes_late_or_twice_changes_nothing() -> None:
    gang = seen(*([stepping(0, s)] for s in range(5)))
    before = gang.summary()
    gang.observe([stepping(0, 2), stepping(0, 4)], at(9))
    assert gang.summary() == before
    # A report that was held up for 5 s does not move the time of what it tells.
    gang.observe([stepping(0, 5)], at(10))
    assert gang.summary().last_step_at == at(5)  # type: ignore[union-attr]


def test_the_slowest_rank_is_the_one_whose_own_work_takes_longest_though_all_step_together() -> None:
    def look(rank: int, s: int, reducing_ms: int) -> RankProgress:
        # Compute alone would accuse the wrong one: it takes rank 0, which waits, longer.
        own_ms = 30 if rank == 0 else 10
        return stepping(rank, s, own_time=own_ms * 10**6, comm_time=reducing_ms * 10**6, own_time_at=s * S + 6)

    gang = seen(*([look(0, s, 60), look(1, s, 40), look(2, s, 35)] for s in range(1, 12)))
    found = gang.summary()
    assert found is not None
    assert (found.slowest_rank, found.rank_time_max, found.rank_time_min) == (
        2,
        pytest.approx(0.065),
        pytest.approx(0.04),
    )
    (row,) = gang.take_rows()[0]
    assert (row.rank_time_min, row.rank_time_max) == (pytest.approx(0.04), pytest.approx(0.065))


def test_own_work_is_known_from_the_first_step_on_where_the_first_look_came_before_it() -> None:
    started = [RankProgress(1, 1, rank, 1, began_at=1) for rank in (0, 1)]
    timed = {"own_time": 10**6, "own_time_at": 2 * S}
    gang = seen(started, [stepping(0, 2, comm_time=90 * 10**6, **timed), stepping(1, 2, comm_time=20 * 10**6, **timed)])
    assert gang.own_times({look.rank: look for look in started}) == {0: pytest.approx(0.01), 1: pytest.approx(0.08)}


def test_without_own_times_ranks_are_set_beside_each_other_by_their_steps() -> None:
    found = seen([stepping(0, 10), stepping(1, 10, rate=5)]).summary()
    assert found is not None
    assert (found.slowest_rank, found.rank_time_max) == (1, pytest.approx(0.2))
    assert seen([stepping(0, 10)]).summary().slowest_rank is None  # type: ignore[union-attr]


def batches(count: int, at_s: int, **change: Any) -> RankProgress:
    return RankProgress(
        1, 1, 0, at_s * S, 5, batches=count, batch_samples=count * 8, batch_at=at_s * S, first_batch_at=5, **change
    )


def test_a_script_without_optimizer_steps_is_counted_by_its_batches_once_there_are_many() -> None:
    assert seen([batches(9, 3)]).summary() is None
    found = seen([batches(9, 3)], [batches(41, 4)]).summary()
    assert found is not None
    assert (found.steps, found.samples, found.samples_per_s) == (41, 328, pytest.approx(80, rel=0.01))


def test_what_the_script_reports_counts_before_what_is_seen() -> None:
    look = stepping(0, 10, reports=5, report_at=10 * S, first_report_at=5, reported_samples=1000, metrics={"loss": 0.5})
    found = seen([look]).summary()
    assert found is not None
    assert (found.source, found.samples, found.steps, found.metrics) == ("report", 1000, 101, {"loss": 0.5})
    only = replace(batches(3, 10), reports=11, report_at=10 * S, first_report_at=5)
    assert seen([only]).summary().steps == 11  # type: ignore[union-attr]


def test_a_log_tells_rates_and_counts_where_nothing_else_does() -> None:
    def look(s: int, **logged: float) -> RankProgress:
        return RankProgress(1, 1, 0, s * S, logged=logged, logged_at=s * S)

    found = seen([look(1, samples=90.0, step=10)], [look(2, samples=110.0, step=20, tokens=5.0)]).summary()
    assert found is not None
    assert (found.source, found.samples_per_s, found.steps) == ("log", 100.0, 20)
    assert found.metrics == {"samples_per_s": 110.0, "step": 20, "tokens_per_s": 5.0}
    counted = seen([look(1, samples_total=100)], [look(3, samples_total=300)]).summary()
    assert counted is not None
    assert counted.samples_per_s == pytest.approx(100)
    # A new agent has read no line of before, and may find another pattern first.
    taken_over = seen([look(1, samples_total=100)], [look(3, samples_total=300)], [look(4, step=9)]).summary()
    assert taken_over is not None
    assert taken_over.samples_per_s == pytest.approx(100)
    # A loss alone says nothing of the speed: that is measured.
    both = replace(stepping(0, 10), logged={"loss": 1.0}, logged_at=9 * S)
    assert seen([both]).summary().source == "auto"  # type: ignore[union-attr]


def test_saves_are_no_part_of_the_speed() -> None:
    saved = {"saves_begun": 1, "saves_ended": 1, "save_time": 5 * S, "save_began_at": 4 * S}
    gang = GangProgress()
    gang.observe([stepping(0, 1)], at(1))
    gang.observe([stepping(0, 10, **saved)], at(10))
    found = gang.summary()
    assert found is not None
    assert (found.save_ms, found.busy_ms) == (5000, 5000)
    assert found.step_time == pytest.approx(0.05)


def test_a_checkpoint_counts_once_no_rank_saves_any_more() -> None:
    saving = {"saves_begun": 1, "save_began_at": 4 * S}
    saved = {
        "saves_begun": 1,
        "saves_ended": 1,
        "saved": 1,
        "saved_steps": 41,
        "saved_at": 5 * S + 5,
        "save_began_at": 4 * S,
    }
    gang = GangProgress()
    for s in range(5):
        gang.observe([stepping(0, s), stepping(1, s)], at(s))
    gang.observe([stepping(0, 5, **saved), stepping(1, 5, **saving)], at(5))
    assert gang.summary().saved_steps == 0  # type: ignore[union-attr]
    gang.observe([stepping(0, 6, **saved), stepping(1, 6, **saved)], at(6))
    found = gang.summary()
    assert found is not None
    assert (found.saves, found.saved_steps, found.saved_at) == (1, 41, at(5))
    assert found.unsaved_ms == 2000


def test_what_came_before_the_newest_save_is_kept_where_a_scripts_saves_are_all_that_is_seen() -> None:
    """torch.save every few rounds of a loop without an optimizer or a loader: nothing else of it can be seen."""
    gang = GangProgress()
    for s in range(1, 31):
        saves = s // 10
        saved = {"saves_begun": saves, "saves_ended": saves, "saved": saves, "saved_at": saves * 10 * S, "loads": 1}
        gang.observe(
            [RankProgress(1, 1, 0, s * S, 5, save_time=saves * S, **saved), RankProgress(1, 1, 1, s * S, 5)], at(s)
        )
        assert gang.summary() is None, "as long as it lives, steps may still come"
    gang.end(at(34))
    found = gang.summary()
    assert found is not None
    assert (found.first_step_at, found.last_step_at, found.saved_at) == (at(0), at(34), at(30))
    assert (found.busy_ms, found.save_ms, found.unsaved_ms, found.saves) == (31_000, 3000, 4000, 3)
    assert (found.steps, found.saved_steps, found.step_time, found.resumed) == (0, 0, None, True)


def test_of_a_log_what_it_had_told_when_the_newest_save_began_is_kept() -> None:
    gang = GangProgress()
    for s in range(1, 11):
        saved = (
            {"saves_begun": 1, "saves_ended": 1, "saved": 1, "save_began_at": 6 * S + 1, "saved_at": 7 * S}
            if s > 7
            else {}
        )
        gang.observe([RankProgress(1, 1, 0, s * S, 5, logged={"step": s * 10.0}, logged_at=s * S, **saved)], at(s))
    found = gang.summary()
    assert found is not None
    assert (found.steps, found.saved_steps, found.unsaved_ms) == (100, 60, 4000)


@pytest.mark.parametrize(("loads", "again"), [(1, 60), (0, 100)])
def test_steps_after_the_newest_checkpoint_of_the_attempt_before_are_done_twice(loads: int, again: int) -> None:
    gang = GangProgress(previous=Progress(steps=100, saved_steps=40))
    gang.observe([stepping(0, 1, loads=loads, load_at=1)], at(1))
    found = gang.summary()
    assert found is not None
    assert (found.resumed, found.repeated_steps) == (bool(loads), again)


def test_a_controller_that_takes_over_goes_on_counting() -> None:
    whole, first = GangProgress(), GangProgress()
    for s in range(10):
        whole.observe([stepping(0, s)], at(s))
        first.observe([stepping(0, s)], at(s))
    second = GangProgress(before=first.summary())
    for s in range(15, 30):
        whole.observe([stepping(0, s)], at(s))
        second.observe([stepping(0, s)], at(s))
    assert second.summary() == whole.summary()


def test_rows_follow_each_other_and_hold_every_step() -> None:
    gang = seen(*([stepping(0, s), stepping(1, s)] for s in range(126)))
    gang.end(at(125))
    rows, ranks = gang.take_rows()
    assert sum(row.steps for row in rows) == 1250
    assert sum(row.samples or 0 for row in rows) == 10_000
    assert all(a.at + timedelta(milliseconds=a.measured_ms) == b.at for a, b in itertools.pairwise(rows))
    assert [(one.rank, one.steps) for one in ranks] == [(0, 600), (1, 600), (0, 600), (1, 600), (0, 50), (1, 50)]
    assert rows[3].samples_per_s == pytest.approx(80)
    assert gang.take_rows() == ([], [])


# Histograms


@given(st.integers(0, 2**50))
def test_a_step_time_is_in_the_bucket_whose_bounds_are_around_it(time: int) -> None:
    bucket = bucket_of(time)
    assert 0 <= bucket < BUCKETS
    if 2**13 <= time < 2**42:
        assert bucket_start(bucket) <= time < bucket_start(bucket + 1)
        assert bucket_start(bucket + 1) <= bucket_start(bucket) * 17 / 16


@given(st.lists(st.integers(10**5, 10**11), min_size=1, max_size=200), st.sampled_from([0.1, 0.5, 0.99]))
def test_a_quantile_is_within_a_bucket_of_the_true_one(times: list[int], part: float) -> None:
    counts = merged([{bucket_of(time): 1} for time in times])
    below = sorted(times)[max(0, -int(-part * len(times) // 1) - 1)]
    found = quantile(counts, part)
    assert found is not None
    assert found * 1e9 == pytest.approx(below, rel=1 / 15)


def test_what_came_since_is_the_difference() -> None:
    assert difference({1: 2, 2: 5}, {1: 2, 2: 7, 3: 1}) == {2: 2, 3: 1}
    assert quantile({}, 0.5) is None
    assert quantile({262: 0}, 0.5) is None
