"""Who holds the others up, told once when it is so and once when it ends; and GPUs that are held for nothing."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from orchestrator.health.stragglers import FACTOR, WINDOWS, IdleGpus, Stragglers, slow_ranks

EVEN = dict.fromkeys(range(4), 0.1)
UNEVEN = EVEN | {3: 0.24}


def test_a_rank_is_told_of_in_the_third_window_in_a_row_and_once() -> None:
    gang = Stragglers()
    told = [[slow.rank for slow in gang.observe(times)[0]] for times in (UNEVEN, EVEN, *[UNEVEN] * 5)]
    assert told == [[], [], [], [], [3], [], []]
    assert round(gang.slow[3].factor, 1) == 2.4


def test_and_that_it_is_over_likewise() -> None:
    gang = Stragglers()
    for _ in range(WINDOWS):
        gang.observe(UNEVEN)
    ended = [gang.observe(times)[1] for times in (EVEN, EVEN, UNEVEN, EVEN, EVEN, EVEN, EVEN)]
    assert ended == [[], [], [], [], [], [3], []]
    assert gang.slow == {}


def test_of_two_ranks_the_slower_one_is_meant_and_a_rank_alone_has_nobody_beside_it() -> None:
    assert set(slow_ranks({0: 0.1, 1: 0.2})) == {1}
    assert slow_ranks({0: 5.0}) == {}


def test_very_short_steps_tell_nothing() -> None:
    assert slow_ranks({0: 0.0001, 1: 0.0009}) == {}


@given(st.dictionaries(st.integers(0, 16), st.floats(1e-5, 1e3), max_size=16))
def test_the_fastest_half_is_never_called_slow(times: dict[int, float]) -> None:
    found = slow_ranks(times)
    fastest = sorted(times, key=lambda rank: times[rank])[: (len(times) + 1) // 2]
    assert not found.keys() & set(fastest)
    assert all(one.factor >= FACTOR for one in found.values())


def test_a_gpu_is_idle_after_so_many_looks_in_a_row_and_what_is_not_told_says_nothing() -> None:
    gpus = IdleGpus(3)
    for used in (0.0, 0.4, None, 0.0):
        gpus.look("a", 0, used)
        gpus.look("a", 1, 30.0)
        gpus.look("b", 0, None)
    assert gpus.idle == [("a", 0)]
    gpus.look("a", 0, 12.0)
    assert gpus.idle == []
