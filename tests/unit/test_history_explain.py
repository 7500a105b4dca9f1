"""Histories whose truth is known: is it found, is nothing else claimed, and is it said how sure that is?"""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.history.explain import Kind, Past, Standing, explain, kind_of, sentence

FAST, SLOW = 1000.0, 820.0


def history(*runs):
    """Runs from (speed, factors); each is also told what is usual of the factors that others name."""
    usual = {"leaves": "1", "nccl": "2.29", "node gpu-17": "no", "code": "aaa"}
    return [Past(number, speed, usual | factors) for number, (speed, factors) in enumerate(runs, 1)]


def asked(*runs):
    """The explanation of the last of these runs by those before it."""
    *earlier, run = history(*runs)
    return explain(run, earlier)


def standings(found):
    return {suspect.factor: suspect.standing for suspect in found.suspects}


TWO, OLD, BAD = {"leaves": "2"}, {"nccl": "2.27"}, {"node gpu-17": "yes"}


def test_the_cause_that_slowed_earlier_runs_comes_before_what_only_this_run_has():
    found = asked((FAST, {}), (SLOW, TWO), (FAST, {}), (SLOW, TWO), *[(FAST, {})] * 5, (SLOW, TWO | OLD | BAD))
    assert found.slower
    assert found.drop == pytest.approx(0.18)
    assert [(one.factor, one.standing) for one in found.suspects] == [
        ("leaves", Standing.SUPPORTED), ("nccl", Standing.UNTESTED), ("node gpu-17", Standing.UNTESTED),
    ]  # fmt: skip
    first = found.suspects[0]
    assert (first.supports, first.contradicts, first.with_it) == (2, 0, 2)
    assert first.effect == pytest.approx(0.18)
    assert sentence(found) == (
        "18 % slower than the last five (820 for 1,000 samples/s); differs: 2 leaves instead of 1 "
        "(2 of 2 earlier runs with it were slow too, by 18 %), NCCL 2.27 for 2.29 (only this run has it), "
        "node gpu-17 (only this run has it)"
    )


def test_what_rides_along_with_the_cause_is_ruled_out_by_runs_that_had_it_alone():
    found = asked(
        (SLOW, TWO | OLD), (SLOW, TWO | OLD), (SLOW, TWO | OLD), (FAST, OLD), (FAST, OLD), *[(FAST, {})] * 5, (SLOW, TWO | OLD)
    )  # fmt: skip
    assert standings(found) == {"leaves": Standing.SUPPORTED, "nccl": Standing.CONTRADICTED}
    assert found.suspects[0].effect == pytest.approx(0.18)


def test_what_rides_along_is_ruled_out_by_runs_that_had_the_cause_alone():
    found = asked((SLOW, TWO | OLD), (SLOW, TWO), (SLOW, TWO), *[(FAST, {})] * 5, (SLOW, TWO | OLD))
    assert standings(found) == {"leaves": Standing.SUPPORTED, "nccl": Standing.CONTRADICTED}


def test_what_always_came_together_is_not_told_apart():
    found = asked((SLOW, TWO | OLD), (SLOW, TWO | OLD), *[(FAST, {})] * 5, (SLOW, TWO | OLD))
    assert {one.factor: one.inseparable for one in found.suspects} == {"leaves": ("nccl",), "nccl": ("leaves",)}
    assert len({one.score for one in found.suspects}) == 1
    assert "nccl always changed with it" in sentence(found)


def test_what_changed_since_is_not_taken_for_the_effect_of_a_factor():
    """Two leaves were slow once, but with an old NCCL that is long gone: the past cannot say which of them it was."""
    found = asked(*[(SLOW, TWO | OLD)] * 3, *[(FAST, {})] * 5, (SLOW, TWO))
    (leaves,) = found.suspects
    assert leaves.inseparable == ("nccl",)


def test_an_old_cause_that_is_known_by_itself_takes_the_blame_from_a_factor():
    found = asked(*[(SLOW, TWO | OLD)] * 3, *[(SLOW, OLD)] * 3, *[(FAST, {})] * 5, (SLOW, TWO))
    assert standings(found) == {"leaves": Standing.CONTRADICTED}


def test_a_factor_with_which_earlier_runs_were_fast_is_contradicted():
    found = asked(*[(FAST, TWO)] * 3, *[(FAST, {})] * 5, (SLOW, TWO))
    (suspect,) = found.suspects
    assert (suspect.standing, suspect.supports, suspect.contradicts) == (Standing.CONTRADICTED, 0, 3)
    assert sentence(found).endswith("differs: 2 leaves instead of 1, none of which slowed earlier runs")


def test_more_support_comes_first():
    often, once = [(SLOW, TWO)] * 3, [(SLOW, OLD)]
    found = asked(*often, *once, *[(FAST, {})] * 5, (SLOW * 0.82, TWO | OLD))
    assert [one.factor for one in found.suspects] == ["leaves", "nccl"]
    assert [one.supports for one in found.suspects] == [3, 1]


def test_without_a_past_there_is_nothing_to_say():
    assert explain(history((FAST, {}))[0], []) is None


def test_few_runs_are_said_to_be_few():
    found = asked((FAST, {}), (SLOW, TWO))
    assert found.noise is None
    said = sentence(found)
    assert said.startswith("18 % slower than the run before it (820 for 1,000 samples/s), which are too few")
    assert "2 leaves instead of 1 (only this run has it)" in said


def test_a_drop_within_what_runs_vary_by_is_not_called_slow():
    unsteady = [(FAST * (1 + 0.1 * (-1) ** number), {}) for number in range(10)]
    found = asked(*unsteady, (900.0, TWO))
    assert not found.slower
    assert "within what its runs vary by" in sentence(found) or found.drop < 0.05


def test_a_faster_run_has_no_suspects():
    found = asked(*[(SLOW, TWO)] * 5, (FAST, {}))
    assert not found.slower
    assert found.suspects == ()
    assert sentence(found) == "22 % faster than the last five (1,000 for 820 samples/s)"


def test_nothing_that_differs_is_said_too():
    found = asked(*[(FAST, {})] * 5, (SLOW, {}))
    assert sentence(found).endswith("nothing that is recorded differs")


def test_many_new_nodes_are_one_remark():
    nodes = {f"node n{number}": "yes" for number in range(5)}
    run = Past(9, SLOW, nodes)
    earlier = [Past(number, FAST, dict.fromkeys(nodes, "no")) for number in range(5)]
    assert sentence(explain(run, earlier)).endswith("differs: nodes that no earlier run was on (n0, n1, n2 and 2 more)")


def test_a_factor_that_was_not_recorded_once_is_no_suspect():
    earlier = [Past(number, FAST, {}) for number in range(5)]
    assert explain(Past(9, SLOW, {"nccl": "2.27"}), earlier).suspects == ()


def test_what_is_measured_against_can_be_named():
    runs = history((FAST, {}), (SLOW, TWO), (SLOW, TWO), (SLOW, TWO))
    found = explain(runs[-1], runs[:-1], baseline=[1])
    assert (found.baseline, found.usual_speed, [one.factor for one in found.suspects]) == ((1,), FAST, ["leaves"])


@pytest.mark.parametrize(
    ("factor", "kind"),
    [("leaves", Kind.PLACEMENT), ("node gpu-1", Kind.NODE), ("nccl", Kind.VERSION), ("spec.run", Kind.SPEC), ("code", Kind.CODE)],
)  # fmt: skip
def test_factors_are_known_by_their_names(factor, kind):
    assert kind_of(factor) is kind


values = st.sampled_from("xyz")
names = st.sampled_from(["cause", "other", "third", "leaves"])
speeds = st.floats(1, 1e6)
pasts = st.lists(st.tuples(speeds, st.dictionaries(names, values)), min_size=1, max_size=25)


def made(runs):
    return [Past(number, speed, factors) for number, (speed, factors) in enumerate(runs)]


@given(runs=pasts.filter(lambda runs: len(runs) > 1), by=st.floats(0.01, 100))
def test_the_unit_of_speed_does_not_matter(runs, by):
    *earlier, run = made(runs)
    *scaled, same = made([(speed * by, factors) for speed, factors in runs])
    one, two = explain(run, earlier), explain(same, scaled)
    assert two.drop == pytest.approx(one.drop, abs=1e-6)
    if abs(one.drop) > 1e-6:
        assert {s.factor for s in one.suspects} == {s.factor for s in two.suspects}


@given(runs=pasts.filter(lambda runs: len(runs) > 1))
def test_no_more_is_claimed_than_the_past_shows(runs):
    *earlier, run = made(runs)
    found = explain(run, earlier)
    order = list(Standing)
    assert [order.index(one.standing) for one in found.suspects] == sorted(
        order.index(one.standing) for one in found.suspects
    )
    for one in found.suspects:
        had = [past for past in earlier if past.factors.get(one.factor) == one.value]
        assert one.value == run.factors[one.factor] != one.usual
        assert (one.standing is Standing.UNTESTED) == (not had)
        assert one.with_it == len(had) == one.supports + one.contradicts
        if one.standing is Standing.SUPPORTED:
            assert one.supports > one.contradicts
            assert one.effect is not None
        assert 0 <= one.score <= 1
        assert not math.isnan(one.score)
    assert "nan" not in sentence(found)


@settings(max_examples=200)
@given(
    drop=st.floats(0.1, 0.7),
    noise=st.lists(st.floats(-0.01, 0.01), min_size=40, max_size=40),
    had=st.lists(st.tuples(st.booleans(), st.booleans(), st.booleans()), min_size=20, max_size=30),
)
def test_the_planted_cause_is_found_among_factors_that_come_and_go_by_chance(drop, noise, had):
    """`cause` slows by `drop`; `other` and `third` do nothing, however they fall together with it."""

    def a_run(number, cause, other, third):
        speed = FAST * (1 - drop if cause else 1) * (1 + noise[number])
        flags = {"cause": cause, "other": other, "third": third}
        return Past(number, speed, {name: "yes" if there else "no" for name, there in flags.items()})

    earlier = [a_run(number, *flags) for number, flags in enumerate(had)]
    earlier += [a_run(len(had) + number, False, False, False) for number in range(5)]
    run = a_run(39, True, True, True)
    found = explain(run, earlier)
    assert found.drop == pytest.approx(drop, abs=0.03)
    assert {one.factor for one in found.suspects} == {"cause", "other", "third"}
    by_name = {one.factor: one for one in found.suspects}
    cause = by_name["cause"]
    if not cause.with_it:
        assert cause.standing is Standing.UNTESTED
        return
    assert cause.standing is Standing.SUPPORTED
    assert cause.contradicts == 0
    assert cause.effect == pytest.approx(drop, abs=0.06)
    for innocent in (by_name["other"], by_name["third"]):
        alone = any(flags[0] is False and flags[1 if innocent.factor == "other" else 2] for flags in had)
        rode = any(flags[0] is True and not flags[1 if innocent.factor == "other" else 2] for flags in had)
        if alone and rode:
            assert innocent.standing is not Standing.SUPPORTED or innocent.score <= cause.score
            assert (
                innocent.effect is None or innocent.effect < drop - 0.03 or innocent.standing is not Standing.SUPPORTED
            )
        elif innocent.with_it and not alone and not rode:
            assert "cause" in innocent.inseparable
