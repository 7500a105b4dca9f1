import pytest

from orchestrator.control.backend import PartStatus
from orchestrator.control.gang import Gang, PartState
from orchestrator.health.evidence import RankEnd
from orchestrator.health.failure import Failure
from orchestrator.placement.values import NodePlacement, Placement
from orchestrator.scheduling.lifecycle import Event, Outcome
from orchestrator.scheduling.run import Stop
from orchestrator.spec import JobSpec
from orchestrator.spec_values import Workers

PLACEMENT = Placement("cuda", "cluster", (NodePlacement("a", (0, 1), (0, 1)), NodePlacement("b", (0, 1), (2, 3))))


def a_gang() -> Gang:
    return Gang(1, 1, JobSpec(name="job", run="train.py", workers=Workers(total=4, nodes=2)), PLACEMENT)


def status(**codes: int | None) -> PartStatus:
    ranks = {int(rank[1:]): code for rank, code in codes.items()}
    ended = all(code is not None for code in ranks.values())
    return PartStatus(1, 1, ranks, ended)


def told(at: float, **ends: tuple[float, ...] | None) -> PartStatus:
    """A report that was made `at`, with code and time of each end, all by the node's clock."""
    ranks = {int(rank[1:]): None if end is None else int(end[0]) for rank, end in ends.items()}
    known = {int(rank[1:]): RankEnd(int(end[0]), *end[1:]) for rank, end in ends.items() if end is not None}
    return PartStatus(1, 1, ranks, None not in ranks.values(), at=at, ends=known)


def test_a_gang_is_over_when_its_last_part_is_and_succeeds_when_every_rank_did() -> None:
    gang = a_gang()
    gang.observe("a", status(r0=0, r1=0))
    assert not gang.over
    gang.observe("b", status(r2=0, r3=0))
    assert gang.over
    assert gang.verdict() == (Event.SUCCEEDED, Outcome.SUCCEEDED)
    assert gang.exit_codes == {0: 0, 1: 0, 2: 0, 3: 0}


def test_the_first_failure_stands_and_those_that_follow_from_it_do_not_replace_it() -> None:
    gang = a_gang()
    gang.observe("b", status(r2=None, r3=1), now=1)
    gang.observe("a", status(r0=-6, r1=-6), now=2)
    gang.settle({})
    assert gang.failure == Failure("exit", "rank 3 on b ended with exit code 1", 3, "b", "user", (3,))
    assert gang.must_stop


def test_a_signal_is_named() -> None:
    gang = a_gang()
    gang.observe("a", status(r0=-9, r1=None))
    assert gang.failure is not None
    assert gang.failure.kind == "signal"
    assert "SIGKILL" in gang.failure.message


def test_a_lost_node_is_an_infrastructure_error_and_its_part_stays_fenced_until_it_is_heard_of() -> None:
    gang = a_gang()
    gang.observe("a", status(r0=None, r1=None))
    gang.observe("b", status(r2=None, r3=None))
    gang.lose("b", Failure("node_lost", "node b left", node="b"), fenced=True)
    gang.observe("a", status(r0=-15, r1=-15))
    assert gang.over
    assert gang.verdict() == (Event.FAILED, Outcome.INFRA_ERROR)
    assert gang.fenced_nodes == ["b"]
    gang.observe("b", status(r2=-9, r3=-9))
    assert gang.fenced_nodes == []
    assert gang.parts["b"].state is PartState.LOST


def test_a_part_that_ended_without_telling_of_its_ranks_has_not_succeeded_but_lost_its_launcher() -> None:
    gang = a_gang()
    gang.observe("a", status(r0=0, r1=0))
    gang.observe("b", PartStatus(1, 1, {}, ended=True))
    assert gang.over
    assert gang.failure is not None
    assert (gang.failure.kind, gang.failure.node, gang.failure.ranks) == ("launcher_lost", "b", (2, 3))
    assert gang.verdict() == (Event.FAILED, Outcome.INFRA_ERROR)


def test_ends_on_nodes_with_other_clocks_are_ordered_by_the_quickest_report_of_each() -> None:
    gang = a_gang()
    # a has been up for 1000 s, b for 5 s. What b tells first is 3 s on its way.
    gang.observe("a", told(1000.0, r0=None, r1=None), now=50.0)
    gang.observe("b", told(5.0, r2=None, r3=None), now=53.0)
    gang.observe("b", told(7.2, r2=None, r3=(3, 7.1)), now=52.21)
    gang.observe("a", told(1003.0, r0=(4, 1002.0), r1=(4, 1002.4)), now=53.0)
    gang.observe("b", told(9.0, r2=(-15, 8.0, 7.9), r3=(3, 7.1)), now=54.5)
    gang.settle({})
    assert gang.failure is not None
    assert gang.failure.rank == 0  # at 52.0 on a; rank 3 on b at 52.11
    ends = {seen.rank: seen.end.at for seen in gang.evidence({}).ranks if seen.end is not None}
    assert ends == pytest.approx({0: 52.0, 1: 52.4, 2: 53.01, 3: 52.11})


def test_what_the_logs_say_at_the_end_decides_over_what_was_known_when_it_broke() -> None:
    gang = a_gang()
    gang.observe("a", told(1.0, r0=(1, 1.0), r1=None), now=1.0)
    gang.observe("b", told(2.0, r2=(-11, 1.5), r3=(-15, 2.0, 1.9)), now=2.0)
    gang.observe("a", told(2.0, r0=(1, 1.0), r1=(-15, 2.0, 1.9)), now=2.0)
    assert gang.failure is not None
    assert gang.failure.rank == 0
    gang.settle(
        {0: ("Traceback (most recent call last):", '  File "x.py"', "RuntimeError: Connection closed by peer [::1]")}
    )
    assert (gang.failure.kind, gang.failure.rank) == ("signal", 2)


def test_a_cancel_stands_whatever_the_ranks_do_while_they_are_stopped() -> None:
    gang = a_gang()
    gang.stop = Stop("cancelled")
    gang.observe("a", status(r0=1, r1=0))
    gang.observe("b", status(r2=0, r3=0))
    assert gang.failure is None
    assert gang.verdict() == (Event.STOPPED, Outcome.CANCELLED)


def test_saying_it_again_changes_nothing() -> None:
    gang = a_gang()
    gang.observe("a", status(r0=0, r1=3))
    once = (gang.failure, dict(gang.parts))
    gang.observe("a", status(r0=0, r1=3))
    assert (gang.failure, dict(gang.parts)) == once


@pytest.mark.parametrize(
    ("kind", "verdict"),
    [
        ("preempted", (Event.REQUEUED, Outcome.PREEMPTED)),
        ("drained", (Event.REQUEUED, Outcome.DRAINED)),
        ("time_limit", (Event.FAILED, Outcome.USER_ERROR)),
        ("cancelled", (Event.STOPPED, Outcome.CANCELLED)),
    ],
)
@pytest.mark.parametrize("code", [0, -15, 1])
def test_what_a_gang_was_told_to_end_for_is_its_verdict_however_its_ranks_end_then(kind, verdict, code) -> None:
    gang = a_gang()
    gang.observe("a", status(r0=None, r1=None))
    gang.observe("b", status(r2=None, r3=None))
    gang.stop, gang.told = Stop(kind), True
    gang.observe("a", status(r0=code, r1=code))
    gang.lose("b", Failure("node_lost", "node b left", node="b"), fenced=True)
    assert gang.over
    assert gang.verdict() == verdict


def test_a_gang_that_was_done_before_it_was_told_to_give_way_has_succeeded() -> None:
    gang = a_gang()
    gang.stop = Stop("preempted")
    gang.observe("a", status(r0=0, r1=0))
    gang.observe("b", status(r2=0, r3=0))
    assert gang.verdict() == (Event.SUCCEEDED, Outcome.SUCCEEDED)


def test_a_gang_that_broke_before_it_was_told_to_give_way_has_failed() -> None:
    gang = a_gang()
    gang.observe("a", status(r0=3, r1=None))
    gang.stop, gang.told = Stop("preempted"), True
    assert gang.verdict() == (Event.FAILED, Outcome.USER_ERROR)
