"""Axes: labels are round, few, in order and inside; figures are written as people read them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.pictures.ranks import beside_the_median, slow_rows
from orchestrator.pictures.scale import figure, percent, span, ticks, time_ticks


@given(st.floats(1e-9, 1e12), st.integers(2, 8))
def test_an_axis_begins_at_zero_and_reaches_the_highest_value(high: float, wanted: int) -> None:
    labels = ticks(high, wanted)
    assert labels[0] == 0
    assert labels[-1] >= high * (1 - 1e-6)
    assert 2 <= len(labels) <= wanted + 2
    assert labels == sorted(labels)


@given(st.floats(0, 2e9), st.floats(1, 1.8e8))
def test_times_on_an_axis_are_inside_it_and_few(low: float, spread: float) -> None:
    found = [at for at, _ in time_ticks(low, low + spread)]
    assert all(low <= at <= low + spread for at in found)
    assert len(found) <= 8
    assert found == sorted(set(found))


@pytest.mark.parametrize(
    ("value", "written"),
    [(None, "unknown"), (0.0321, "0.0321"), (41.23, "41.2"), (8123.4, "8,123"), (1.38e6, "1.38M"), (3.0, "3")],
)
def test_a_figure_is_written_with_few_digits(value: float | None, written: str) -> None:
    assert figure(value) == written


def test_shares_and_durations_are_written_with_their_unit() -> None:
    assert [percent(share) for share in (0, 0.004, 0.25, 1)] == ["0 %", "0.4 %", "25 %", "100 %"]
    assert [span(s) for s in (0.4, 41, 200, 7500, 360000)] == ["0.4 s", "41 s", "3 min 20 s", "2 h 05 min", "4 d 4 h"]


def test_of_two_ranks_the_faster_is_what_the_other_is_held_against() -> None:
    assert beside_the_median([[0.1, None], [0.2, 0.3]], [0.2, 0.3]) == [[1.0, None], [1.5, 1.0]]


def test_one_slow_moment_is_a_hiccup_and_two_are_a_straggler() -> None:
    even, hiccup, straggler = [1.0] * 5, [1, 1, 2.0, 1, 1], [1, 1.5, 1.5, 1, 1]
    found = {"ranks": 4, "from": 0, "seconds": 60, "values": [even, hiccup, straggler, even], "steps": [1.0] * 5}
    (slow,) = slow_rows(found)
    assert (slow.row, slow.times, slow.start, slow.end, slow.share) == (2, 1.5, 60, 180, 0.4)


def test_own_work_that_is_a_small_part_of_the_step_makes_no_straggler() -> None:
    found = {"ranks": 2, "from": 0, "seconds": 60, "values": [[0.001] * 5, [0.003] * 5], "steps": [0.065] * 5}
    assert slow_rows(found) == []
