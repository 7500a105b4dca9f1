from datetime import timedelta

from hypothesis import given
from hypothesis import strategies as st

from orchestrator.placement.tree import Free, Topology
from orchestrator.scheduling.ask import device_of
from orchestrator.scheduling.plan import plan
from orchestrator.scheduling.run import Run
from orchestrator.scheduling.snapshot import Block, Snapshot
from orchestrator.scheduling.unfit import left_out
from orchestrator.testing import START, a_placement, a_run
from orchestrator.testing.hardware import cluster, node

#   leaf l1      leaf l2
#   a:2  b:2     c:2  d:2
FOUR = Topology(cluster(*(node(n, 2, leaf=leaf) for n, leaf in zip("abcd", ("l1", "l1", "l2", "l2"), strict=True))))


def decide(*waiting: Run, free: Free | None = None, at: float = 0.0, blocked: dict[int, str] | None = None):
    blocks = {run: Block("held", text) for run, text in (blocked or {}).items()}
    return plan(Snapshot(waiting, free or Free(FOUR), blocked=blocks), START + timedelta(seconds=at))


def started(decided) -> dict[int, list[str]]:
    return {start.run.id: [part.node for part in start.placement.nodes] for start in decided.starts}


def test_runs_start_in_their_order_while_there_is_room() -> None:
    decided = decide(a_run(1, workers="2x2"), a_run(2, workers="1x2"), a_run(3, workers="1x2"), a_run(4, workers=1))
    assert list(started(decided)) == [1, 2, 3]
    assert started(decided)[1] in (["a", "b"], ["c", "d"])
    assert [wait.run.id for wait in decided.waits] == [4]


def test_a_run_that_waits_holds_back_those_behind_it_and_says_who() -> None:
    free = Free(FOUR)
    free.take("a", [0])
    decided = decide(a_run(1, workers="4x2"), a_run(2, workers=1), free=free)
    assert started(decided) == {}
    assert decided.waits[0].reason.text.startswith("the cluster has room for 6 of 8 workers")
    assert decided.waits[1].reason.text == "what is free is kept for run 1 (train), which starts as soon as it can"


def test_a_run_that_never_fits_and_one_that_is_fenced_hold_nobody_back() -> None:
    decided = decide(a_run(1, workers="9x2"), a_run(2, workers=1), a_run(3, workers=1), blocked={2: "fenced"})
    assert list(started(decided)) == [3]
    assert {wait.run.id: wait.reason.text for wait in decided.waits}[2] == "fenced"


def test_nodes_that_are_unfit_for_a_run_are_left_out_with_the_reason() -> None:
    old = {"a": "driver 550.54 is older than 570", "b": "driver 550.54 is older than 570"}
    snapshot = Snapshot((a_run(1, workers="2x2"), a_run(2, workers="2x2")), Free(FOUR), unfit={1: old})
    decided = plan(snapshot, START)
    assert started(decided) == {1: ["c", "d"], 2: ["a", "b"]}
    free = Free(FOUR)
    free.take("c", [0])
    waits = plan(Snapshot((a_run(1, workers="2x2"), a_run(2, workers=1)), free, unfit={1: old}), START)
    assert waits.waits[0].reason.text.endswith("; driver 550.54 is older than 570 on a, b")
    # A gang that waits for its place does not keep from others what it could not take.
    assert list(started(waits)) == [2]


def test_a_run_for_which_no_node_is_fit_holds_nobody_back() -> None:
    unfit = dict.fromkeys("abcd", "torch 2.6.0 is older than 2.8")
    decided = plan(Snapshot((a_run(1, workers=1), a_run(2, workers=1)), Free(FOUR), unfit={1: unfit}), START)
    assert list(started(decided)) == [2]
    assert decided.waits[0].reason.text.endswith("; torch 2.6.0 is older than 2.8 on a, b and 2 more")


def test_the_reason_of_most_nodes_comes_first_and_many_reasons_are_cut() -> None:
    assert left_out({"a": "x", "b": "y", "c": "y"}) == "y on b, c; x on a"
    assert left_out({f"n{i}": f"r{i}" for i in range(6)}).endswith("r3 on n3; 2 more nodes for other reasons")


def test_a_must_is_never_broken_and_a_wish_gives_way() -> None:
    free = Free(FOUR)
    free.take("a", [0])
    free.take("c", [0])
    assert started(decide(a_run(1, workers="2x2", near="leaf!"), free=free)) == {}
    assert started(decide(a_run(1, workers="2x2", near="leaf"), free=free)) == {1: ["b", "d"]}


def test_a_patient_run_waits_for_its_level_holds_nobody_back_and_then_takes_what_there_is() -> None:
    free = Free(FOUR)
    free.take("a", [0])
    free.take("c", [0])
    patient, small = a_run(1, workers="2x2", near="leaf~30m"), a_run(2, workers=1)
    decided = decide(patient, small, free=free, at=600)
    assert list(started(decided)) == [2]
    assert decided.waits[0].reason.text.endswith("waits 1200 s more for it")
    assert decided.look_again_s == 1200
    assert list(started(decide(patient, small, free=free, at=1801))) == [1, 2]


def test_a_retried_run_gets_its_own_nodes_back_where_they_are_as_good() -> None:
    first = a_run(1, workers="1x2")
    again = a_run(1, workers="1x2", attempts=(_attempt(c=(0, 1)),))
    assert started(decide(first)) == {1: ["a"]}
    assert started(decide(again)) == {1: ["c"]}


def _attempt(**nodes: tuple[int, ...]):
    from orchestrator.scheduling.run import Attempt

    return Attempt(1, a_placement(**nodes), START)


def test_auto_takes_the_gpus_where_there_are_any() -> None:
    assert device_of(a_run().spec, FOUR) == "cuda"
    assert device_of(a_run().spec, Topology(cluster(node("a", 0)), slots={"a": 4})) == "cpu"
    assert device_of(a_run(device="cpu").spec, FOUR) == "cpu"


def test_auto_is_cuda_where_the_job_asks_for_what_only_gpus_have() -> None:
    no_gpu = Topology(cluster(node("a", 0)), slots={"a": 4})
    assert device_of(a_run(gpu="H100").spec, no_gpu) == "cuda"
    assert device_of(a_run(backend="nccl").spec, no_gpu) == "cuda"


SIZES = st.lists(st.sampled_from([1, 2, 3, 4, "1x2", "2x1", "2x2", "3x2", "4x2"]), max_size=6)


@given(SIZES, st.sets(st.tuples(st.sampled_from("abcd"), st.integers(0, 1))))
def test_a_plan_gives_no_gpu_twice_and_changes_nothing(sizes: list[int | str], taken: set[tuple[str, int]]) -> None:
    free = Free(FOUR)
    for name, gpu in taken:
        free.take(name, [gpu])
    before = list(free.unheld)
    decided = decide(*(a_run(i, workers=size) for i, size in enumerate(sizes, 1)), free=free)
    assert free.unheld == before
    given_out = [(p.node, gpu) for start in decided.starts for p in start.placement.nodes for gpu in p.gpus]
    assert len(given_out) == len(set(given_out))
    assert not set(given_out) & taken
    assert len(decided.starts) + len(decided.waits) == len(sizes)
