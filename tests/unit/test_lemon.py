"""Nodes that fail more often than their like: found early, and not found where all fail."""

from __future__ import annotations

import math
from datetime import timedelta
from itertools import pairwise

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from orchestrator.health.lemon import Tally, blame, poisson_tail, room, scores
from orchestrator.health.marks import (
    CLEAN_ATTEMPTS,
    MOST_S,
    Drain,
    Mark,
    Quarantine,
    cleared,
    lapsed,
    proven,
    quarantined,
)
from orchestrator.testing import START

a_tally = st.integers(0, 200).flatmap(lambda n: st.builds(Tally, st.just(n), st.integers(0, n).map(float)))
fleets = st.dictionaries(st.sampled_from("abcdefgh"), a_tally, min_size=1)


@pytest.mark.parametrize("first_fails", [True, False])
@pytest.mark.parametrize("others", [1, 3, 100])
def test_a_host_that_fails_every_second_attempt_is_flagged_within_five(first_fails: bool, others: int) -> None:
    for attempts in range(1, 6):
        failures = (attempts + first_fails) // 2
        fleet = {f"n{i}": Tally(attempts) for i in range(others)} | {"lemon": Tally(attempts, failures)}
        if scores(fleet)["lemon"].bad:
            break
    else:
        pytest.fail("not flagged after five attempts")
    assert not any(score.bad for node, score in scores(fleet).items() if node != "lemon")


def test_a_score_says_its_numbers() -> None:
    fleet = {"a": Tally(5, 3), "b": Tally(100, 1)}
    assert scores(fleet)["a"].text == "it broke 3 of 5 attempts, where 0.05 are expected (chance 0.002 %)"


@given(fleets)
def test_nodes_that_fail_alike_are_not_flagged(fleet: dict[str, Tally]) -> None:
    for node, score in scores(fleet).items():
        others = [tally for other, tally in fleet.items() if other != node]
        worst = max((tally.failures / tally.attempts for tally in others if tally.attempts), default=0.0)
        # Each other fails at least as often, and was seen often enough for that to be known.
        if others and all(tally.attempts >= 50 and tally.failures >= score.failures for tally in others):
            rate = score.failures / max(1, score.attempts)
            assume(rate <= worst)
            if all(tally.failures / tally.attempts >= rate for tally in others):
                assert not score.bad


@given(fleets, st.sampled_from("abcdefgh"), st.integers(1, 5))
def test_one_more_failure_never_makes_a_node_look_better(fleet: dict[str, Tally], node: str, more: int) -> None:
    before = fleet.get(node, Tally())
    worse = fleet | {node: Tally(before.attempts + more, before.failures + more)}
    at_rest = fleet | {node: Tally(before.attempts + more, before.failures)}
    assert scores(worse)[node].chance <= scores(at_rest)[node].chance + 1e-9


@given(st.integers(1, 30), st.floats(0.001, 50))
def test_the_tail_is_poissons_and_falls_between_whole_numbers(least: int, mean: float) -> None:
    below = math.fsum(math.exp(-mean + k * math.log(mean) - math.lgamma(k + 1)) for k in range(least))
    assert poisson_tail(least, mean) == pytest.approx(max(0.0, 1 - below), abs=1e-9)
    falling = [poisson_tail(at, mean) for at in (least, least + 0.5, least + 1)]
    assert all(later <= earlier + 1e-9 for earlier, later in pairwise(falling))


@given(st.lists(st.sampled_from("abc")))
def test_a_failure_is_shared_among_its_suspects_and_none_of_it_is_lost(suspects: list[str]) -> None:
    parts = blame(suspects)
    assert parts.keys() == set(suspects)
    assert sum(parts.values()) == pytest.approx(1.0 if suspects else 0.0)
    assert len(set(parts.values())) <= 1


@given(st.floats(0, 1), st.integers(0, 2000), st.integers(0, 300))
def test_a_share_of_the_nodes_may_be_out_one_at_least_and_never_the_last(share: float, nodes: int, out: int) -> None:
    more = room(share, nodes, out)
    assert more >= 0
    if more:
        assert share > 0
        assert out + more <= max(1, share * nodes)
        assert out + more <= nodes - 1


# === out and back ===


def test_each_quarantine_in_a_row_is_twice_as_long_up_to_a_day() -> None:
    now, one, hours = START, None, []
    for _ in range(7):
        one = quarantined(one, "it broke 2 of 4", now)
        assert one.until is not None
        hours.append((one.until - now).total_seconds() / 3600)
        now = one.until
        one = lapsed(one, now)
        assert one.stage == "probation"
    assert hours == [1, 2, 4, 8, 16, 24, 24]
    assert hours[-1] * 3600 == MOST_S
    fresh = quarantined(cleared(one, now), "again", now)
    assert fresh.until == now + timedelta(hours=1)


def test_a_quarantine_is_over_when_its_time_is_and_not_before() -> None:
    one = quarantined(None, "why", START)
    assert lapsed(one, START + timedelta(minutes=59)) is one
    after = lapsed(one, START + timedelta(hours=5))
    # What happens from the end of the quarantine on counts, though nobody looked for a while.
    assert (after.stage, after.since) == ("probation", START + timedelta(hours=1))
    assert Mark(quarantine=one).counts_from is None
    assert Mark(quarantine=after).counts_from == after.since


@given(st.integers(0, 20), st.floats(0, 200))
def test_a_probation_ends_by_clean_attempts_or_a_day_with_one(clean: int, hours: float) -> None:
    one = Quarantine("probation", START, None, 2, "why")
    now = START + timedelta(hours=hours)
    after = proven(one, clean, now)
    done = clean >= CLEAN_ATTEMPTS or (clean >= 1 and hours >= 24)
    assert (after.stage == "cleared") is done
    assert after.times == (0 if done else 2)
    out = quarantined(None, "why", START)
    assert proven(out, clean, now) is out


def test_a_mark_says_why_a_node_is_out() -> None:
    out = quarantined(None, "it broke 2 of 4 attempts", START)
    assert Mark().out is None
    assert Mark(Drain(START)).out == "drained"
    assert Mark(Drain(START, "ana", "new cables"), out).out == "drained by ana: new cables"
    assert Mark(quarantine=out).out is None
    assert Mark(quarantine=out).shunned == "quarantined until 2026-01-05 10:00 UTC: it broke 2 of 4 attempts"
    assert Mark(quarantine=lapsed(out, out.until or START)).shunned is None
