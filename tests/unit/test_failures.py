"""Which rank or node broke a gang, among those that ended because of it."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from gang_ends import CLOSED, RESET, ROWS, WAITED, a_word, of, peer, raised, stopped
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.health.evidence import Loss, RankEnd, Word
from orchestrator.health.failures import judge

REMOTE = (
    "NCCL error in: ProcessGroupNCCL.cpp:1691, remote process exited or there was a network error, NCCL version 2.28.9"
)


@pytest.mark.parametrize(
    "followers",
    [
        (peer(), peer(10.4), peer(10.2)),
        (raised(f"RuntimeError: {RESET}", at=10.01), raised(f"RuntimeError: {WAITED}", at=9.9), stopped()),
        (raised(f"torch.distributed.DistBackendError: {REMOTE}", at=9), stopped(), stopped()),
        (raised("MyError: the trainer gave up", f"RuntimeError: {CLOSED}", at=9.9), stopped(), peer()),
        (RankEnd(1, 9.8, word=Word(9.7, 1, (("RuntimeError", CLOSED),))), peer(), stopped()),
    ],
    ids=["closed", "reset and waited", "nccl", "wrapped in another exception", "caught, then exit(1)"],
)
def test_what_tells_of_another_s_end_is_never_the_cause_even_where_it_ended_first(followers) -> None:
    found = judge(of(*followers, raised("ValueError: x", at=10)))
    assert found is not None
    assert (found.kind, found.rank) == ("python", 3)


def test_an_exception_counts_from_when_it_was_raised_however_long_the_interpreter_took_to_end() -> None:
    slow = RankEnd(1, 15, told_at=11, word=a_word("KeyError: 'loss'", at=9))
    found = judge(of(RankEnd(1, 10, word=a_word("ValueError: later", at=9.8)), slow))
    assert found is not None
    assert (found.rank, found.message) == (1, "rank 1 on a ended by KeyError: 'loss'")


def test_a_rank_that_says_why_stands_before_one_that_ended_without_a_word() -> None:
    found = judge(of(RankEnd(1, 9), raised("ValueError: x", at=12)))
    assert found is not None
    assert (found.kind, found.rank) == ("python", 1)


def test_equal_errors_are_grouped_whatever_numbers_are_in_them() -> None:
    ends = [raised(f"ModuleNotFoundError: No module named 'apex' (pid {rank})", at=10 + rank % 3) for rank in range(8)]
    found = judge(of(*ends))
    assert found is not None
    assert (found.kind, found.cause, found.rank, found.ranks) == ("python", "user", 0, tuple(range(8)))
    assert found.message.endswith("; the same on ranks 1-7")


def test_a_rank_that_was_through_while_others_needed_it_is_named() -> None:
    found = judge(of(peer(), RankEnd(0, 10), peer()))
    assert found is not None
    assert (found.kind, found.cause, found.rank) == ("left_early", "user", 1)
    assert found.message == "rank 1 on a ended with 0 while others still needed it; ranks 0,2 ended because of it"


def test_a_rank_that_was_silent_while_the_others_waited_until_their_time_out_is_a_hang() -> None:
    waited = raised(f"RuntimeError: {WAITED}", at=14)
    found = judge(of(waited, waited, stopped(20), waited))
    assert found is not None
    assert (found.kind, found.cause, found.rank, found.node, found.suspects) == ("hang", "infra", 2, "b", ("b",))
    assert found.message == "rank 2 on b said nothing while ranks 0-1,3 waited for another until the time-out"


def test_ranks_that_all_lost_each_other_are_the_network_s() -> None:
    found = judge(of(peer(10), peer(10.2), peer(10.3)))
    assert found is not None
    assert (found.kind, found.cause, found.suspects) == ("network", "infra", ())


def test_a_single_rank_has_no_peers_that_it_could_have_lost() -> None:
    found = judge(of(peer()))
    assert found is not None
    assert (found.kind, found.cause, found.rank) == ("python", "user", 0)


# Nodes that are lost


def gone(node: str = "b", heard: float = 8.0, kind: str = "node_lost") -> Loss:
    return Loss(kind, node, f"node {node} was not heard of", heard)


def test_a_lost_node_is_the_cause_of_what_its_peers_tell_after_it_was_last_heard_of() -> None:
    odd = raised("TrainerError: something went wrong", at=9)
    found = judge(of(peer(), odd, None, None, losses=[gone()]))
    assert found is not None
    assert (found.kind, found.cause, found.rank, found.node) == ("node_lost", "infra", None, "b")
    assert (found.ranks, found.suspects) == ((2, 3), ("b",))
    assert found.message == "node b was not heard of; rank 0 ended because of it"


def test_a_rank_that_broke_while_the_node_was_still_heard_of_stands_before_its_loss() -> None:
    found = judge(of(stopped(), raised("ValueError: x", at=7), None, None, losses=[gone()]))
    assert found is not None
    assert (found.kind, found.rank) == ("python", 1)


def test_of_two_losses_the_one_that_was_heard_of_last_long_ago_is_first_and_both_are_suspect() -> None:
    found = judge(of(None, None, None, None, losses=[gone("b", 8), gone("a", 7)]))
    assert found is not None
    assert (found.node, found.suspects) == ("a", ("a", "b"))


def test_nothing_is_known_while_a_node_may_still_tell_of_an_earlier_end() -> None:
    assert judge(of(peer(), None, None, None, whole=False)) is None


def test_there_is_always_an_answer_once_every_node_has_told() -> None:
    found = judge(of(stopped(), stopped()))
    assert found is not None
    assert found.kind == "unknown"


# Whatever order the ends arrive in, and whatever else ended


own = st.sampled_from([row[0] for row in ROWS.values() if not row[1] and row[2] not in ("network",)])
followers = st.lists(
    st.sampled_from([peer(), peer(9.0), stopped(), raised(f"RuntimeError: {RESET}", at=10.2), None]), max_size=5
)


@given(own, followers, followers, st.randoms(use_true_random=False))
def test_the_culprit_is_the_same_in_any_order_with_more_collateral_and_with_reports_told_twice(
    end: RankEnd, some: list[RankEnd | None], more: list[RankEnd | None], chance: random.Random
) -> None:
    few = of(end, *some, per_node=20)
    many = of(end, *some, *more, per_node=20)
    ranks = list(many.ranks)
    chance.shuffle(ranks)
    losses = [gone("z", 20.0), gone("z", 20.0)]
    found = [judge(one) for one in (few, many, replace(many, ranks=tuple(ranks)), replace(many, losses=tuple(losses)))]
    assert all(one is not None for one in found)
    assert len({(one.kind, one.rank, one.cause) for one in found if one is not None}) == 1


@given(st.permutations(range(6)))
def test_of_several_reasons_the_first_by_time_counts(order: list[int]) -> None:
    ends = [raised(f"ValueError: batch {'abcdef'[rank]}", at=10 + order[rank]) for rank in range(6)]
    found = judge(of(*ends))
    assert found is not None
    assert found.rank == order.index(0)
