"""What each of the policies does with a queue that fits on a page."""

from __future__ import annotations

import pytest
from replays import ends, replay, starts, trace

from orchestrator.scheduling.simulate.jobs import Job
from orchestrator.scheduling.simulate.placers import PLACERS, first_fit, lowest, one_node, pack, spread
from orchestrator.scheduling.simulate.queues import Backfill, Fifo, LeastAttained
from orchestrator.scheduling.simulate.replay import Costs
from orchestrator.scheduling.simulate.study import NAMES, SYNONYMS, Rules, policy_named

# Two nodes of four GPUs: a holds six of eight, b wants all eight, c and d would fit beside a.
QUEUE = trace((0, 6, 100, 100), (1, 8, 50, 50), (2, 2, 60, 60), (3, 2, 200, 200))


def test_fifo_lets_nobody_pass_the_first_that_does_not_fit():
    assert starts(replay(QUEUE, Fifo(first_fit))) == {"a": 0, "b": 100, "c": 150, "d": 150}


def test_greedy_lets_whoever_fits_pass_and_the_large_one_waits():
    assert starts(replay(QUEUE, Fifo(first_fit, greedy=True))) == {"a": 0, "c": 2, "d": 62, "b": 262}


def test_backfill_lets_those_pass_who_end_before_the_reservation():
    assert starts(replay(QUEUE, Backfill(first_fit))) == {"a": 0, "b": 100, "c": 2, "d": 150}


def test_backfill_lets_a_long_one_pass_beside_the_reservation():
    # b wants six of eight, so that two are left beside it.
    queue = trace((0, 6, 100, 100), (1, 6, 50, 50), (2, 2, 500, 500), (3, 2, 500, 500))

    assert starts(replay(queue, Backfill(first_fit))) == {"a": 0, "b": 100, "c": 2, "d": 150}


def test_backfill_trusts_no_job_without_a_limit():
    queue = trace((0, 6, 100), (1, 8, 50, 50), (2, 2, 10, 10), (3, 2, 10))

    # Nobody knows when a ends, so that b's reservation is for ever and whoever says his end passes.
    assert starts(replay(queue, Backfill(first_fit))) == {"a": 0, "c": 2, "b": 100, "d": 12}


def test_backfill_looks_no_deeper_than_it_is_told():
    queue = trace((0, 6, 100, 100), (1, 8, 50, 50), (2, 4, 9, 9), (3, 2, 9, 9))

    assert starts(replay(queue, Backfill(first_fit, depth=1)))["d"] == 150
    assert starts(replay(queue, Backfill(first_fit, depth=2)))["d"] == 3


def test_las_preempts_who_has_had_much_for_who_has_had_little():
    # Ten GPU-seconds are the threshold: a has had them after 2.5 s.
    queue = trace((0, 4, 100), (5, 4, 20))
    replayed = replay(queue, LeastAttained(first_fit, 10), nodes=1, costs=Costs(restart_s=0))

    # b passes a at 5, has had its share at 7.5, and is second to a in the queue of those.
    assert starts(replayed) == {"a": 0, "b": 5}
    assert ends(replayed) == {"a": 102.5, "b": 120}
    assert replayed.lives[0].starts == replayed.lives[1].starts == 2


def test_las_preempts_nobody_who_need_not_go():
    queue = trace((0, 2, 100), (5, 2, 20))
    replayed = replay(queue, LeastAttained(first_fit, 10), nodes=1)

    assert [life.starts for life in replayed.lives] == [1, 1]


def test_las_leaves_a_job_alone_whose_place_would_help_nobody():
    # On nodes of four: b wants four on one node, and a and c hold two of each.
    queue = trace((0, 2, 100), (0, 4, 5), (0, 2, 50))
    replayed = replay(queue, LeastAttained(one_node, 1e9), nodes=2)

    assert sum(life.starts for life in replayed.lives) == 3


# Free bits of three nodes of four GPUs.
MASKS = [0b0110, 0b1111, 0b1000]
PLACES = {
    ("first-fit", 2): ((0, 0b0110),),
    ("first-fit", 3): ((1, 0b0111),),
    ("first-fit", 5): ((0, 0b0110), (1, 0b0111)),
    ("in-order", 3): ((0, 0b0110), (1, 0b0001)),
    ("in-order", 8): None,
    ("pack", 1): ((2, 0b1000),),
    ("pack", 2): ((0, 0b0110),),
    ("pack", 5): ((1, 0b1111), (2, 0b1000)),
    ("pack", 6): ((0, 0b0110), (1, 0b1111)),
    ("spread", 2): ((1, 0b0011),),
    ("spread", 5): ((0, 0b0010), (1, 0b1111)),
    ("one-node", 4): ((1, 0b1111),),
    ("one-node", 5): ((1, 0b1111), (2, 0b1000)),
    ("one-node", 7): None,
    ("pack", 8): None,
}


@pytest.mark.parametrize(("way", "gpus"), PLACES)
def test_ways_of_placing(way, gpus):
    assert PLACERS[way](Job("a", gpus, 0), MASKS, 4) == PLACES[way, gpus]


def test_one_node_never_splits_what_an_empty_node_holds():
    assert one_node(Job("a", 4, 0), [0b0111, 0b0111], 4) is None
    assert first_fit(Job("a", 4, 0), [0b0111, 0b0111], 4) is not None


@pytest.mark.parametrize("place", [first_fit, pack, spread, one_node])
def test_a_gang_of_equal_parts_gets_them(place):
    parts = place(Job("a", 4, 0, nodes=2), [0b0001, 0b0011, 0b1111], 4)

    assert [(index, mask.bit_count()) for index, mask in parts] == [(1, 2), (2, 2)]
    assert place(Job("a", 8, 0, nodes=2), [0b1111, 0b0111], 4) is None


def test_the_lowest_bits():
    assert lowest(0b10110, 2) == 0b00110


@pytest.mark.parametrize("name", [*NAMES, *SYNONYMS, "fifo:pack", "las:spread", "backfill:one-node"])
def test_policies_have_names(name):
    assert policy_named(name, Rules()).decide


@pytest.mark.parametrize(
    ("name", "hint"), [("fiof", "Did you mean 'fifo'"), ("fifo:best", "no way of placing called best")]
)
def test_an_unknown_policy_is_refused_with_what_there_is(name, hint):
    with pytest.raises(ValueError, match=hint):
        policy_named(name, Rules())
