"""From what was seen of a gang's end to its cause: every row of the table, and the first failing rank among its followers."""

from __future__ import annotations

import random
import re
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.health.death import LAST_LINES, Death
from orchestrator.health.evidence import Evidence, Loss, OutOfMemory, RankEnd, Seen, Word, Xid
from orchestrator.health.failure import KINDS, Failure
from orchestrator.health.failure_table import RULES, Weight, read
from orchestrator.health.failures import judge

GIB = 1 << 30
CLOSED = (
    "[/__w/pytorch/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:14772. This is "
    "typically caused by a remote worker crashing. Check the logs of the remote worker before reporting an error. GLHF! 🏖️"
)
RESET = (
    "[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:537] Read error [127.0.0.1]:5551: Connection reset by peer."
)
WAITED = "[/gloo/transport/tcp/unbound_buffer.cc:78] Timed out waiting 4000ms for recv operation to complete"
REMOTE = (
    "NCCL error in: ProcessGroupNCCL.cpp:1691, remote process exited or there was a network error, NCCL version 2.28.9"
)
WATCHDOG = (
    "[rank0]:[E1126 16:00:01 ProcessGroupNCCL.cpp:683] [Rank 0] Watchdog caught collective operation timeout: "
    "WorkNCCL(SeqNum=7, OpType=ALLREDUCE, NumelIn=1, NumelOut=1, Timeout(ms)=600000) ran for 600010 milliseconds",
    "[rank0]:[E1126 ProcessGroupNCCL.cpp:744] To avoid data inconsistency, we are taking the entire process down.",
    "terminate called after throwing an instance of 'c10::DistBackendError'",
)


def a_word(*errors: str, at: float = 10.0, exit: int | None = None) -> Word:  # noqa: A002
    return Word(at, exit, tuple((kind, text) for kind, _, text in (error.partition(": ") for error in errors)))


def raised(*errors: str, at: float = 10.0, code: int = 1, **more) -> RankEnd:
    """A rank whose interpreter told its uncaught exception."""
    return RankEnd(code, at + 0.3, word=a_word(*errors, at=at), **more)


def of(*ends: RankEnd | None, losses=(), xids=(), lines=None, per_node: int = 2, whole: bool = True) -> Evidence:
    """Ranks in order, `per_node` on each of the nodes a, b, ..."""
    ranks = tuple(
        Seen(rank, "abcdefgh"[rank // per_node], rank % per_node, end, tuple((lines or {}).get(rank, ())))
        for rank, end in enumerate(ends)
    )
    return Evidence(ranks, tuple(losses), tuple(xids), whole)


def peer(at: float = 10.5) -> RankEnd:
    return raised(f"RuntimeError: {CLOSED}", at=at)


def stopped(at: float = 11.0) -> RankEnd:
    return RankEnd(-15, at, told_at=at - 0.1)


ROWS = {
    "oom": (RankEnd(-9, 10, oom=OutOfMemory(7, int(31.2 * GIB), 32 * GIB, line="Killed process 7")), {}, "oom", "user"),
    "oom of a worker": (
        raised("RuntimeError: DataLoader worker (pid 8) is killed by signal: Killed.", oom=OutOfMemory(8, GIB, GIB)),
        {},
        "oom",
        "user",
    ),
    "requeue": (RankEnd(75, 10), {}, "requeue_asked", "infra"),
    "requeue that an abort hid": (RankEnd(-6, 10, word=a_word(exit=75)), {}, "requeue_asked", "infra"),
    "cuda out of memory": (
        raised(
            "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79 GiB"
        ),
        {},
        "cuda_oom",
        "user",
    ),
    "nccl out of memory": (
        raised(
            "torch.distributed.DistBackendError: NCCL error in: x.cpp:1, unhandled cuda error\nCuda failure 2 'out of memory'"
        ),
        {},
        "cuda_oom",
        "user",
    ),
    "xid": (
        RankEnd(-6, 10),
        {"xids": [("a", Xid(9.5, 79, "NVRM: Xid (PCI:0000:3b:00): 79, GPU has fallen off the bus.", 1))]},
        "gpu",
        "infra",
    ),
    "ecc": (raised("torch.AcceleratorError: CUDA error: uncorrectable ECC error encountered"), {}, "gpu", "infra"),
    "no device": (raised("RuntimeError: No CUDA GPUs are available"), {}, "gpu", "infra"),
    "illegal access": (
        raised("RuntimeError: CUDA error: an illegal memory access was encountered"),
        {},
        "cuda",
        "user",
    ),
    "xid of the program": (
        RankEnd(-11, 10),
        {"xids": [("a", Xid(9.9, 31, "NVRM: Xid (PCI:0000:3b:00): 31, MMU Fault", 1))]},
        "cuda",
        "user",
    ),
    "bus error": (
        RankEnd(-7, 10),
        {
            "lines": {
                1: (
                    "ERROR: Unexpected bus error encountered in worker. This might be caused by insufficient shared memory.",
                )
            }
        },
        "shm",
        "user",
    ),
    "dataloader without shared memory": (
        raised(
            "RuntimeError: DataLoader worker (pid 5) is killed by signal: Bus error. It is possible that dataloader's workers are "
            "out of shared memory. Please try to raise your shared memory limit."
        ),
        {},
        "shm",
        "user",
    ),
    "port taken": (
        raised(
            "torch.distributed.DistNetworkError: The server socket has failed to listen on any local network address. port: 29500, "
            "useIpv6: false, code: -98, name: EADDRINUSE, message: address already in use"
        ),
        {},
        "port_taken",
        "infra",
    ),
    "disk full": (raised("OSError: [Errno 28] No space left on device"), {}, "storage", "infra"),
    "checkpoint on a full disk": (
        raised(
            "RuntimeError: [enforce fail at inline_container.cc:672] . PytorchStreamWriter failed writing file data/3"
        ),
        {},
        "storage",
        "infra",
    ),
    "nccl used wrongly": (
        raised(
            "torch.distributed.DistBackendError: NCCL error in: x, invalid usage, ncclInvalidUsage\nDuplicate GPU detected"
        ),
        {},
        "python",
        "user",
    ),
    "nccl": (
        raised(
            "torch.distributed.DistBackendError: NCCL error in: ProcessGroupNCCL.cpp:1691, unhandled cuda error, NCCL version "
            "2.28.9\nncclUnhandledCudaError: Call to CUDA function failed."
        ),
        {},
        "nccl",
        "infra",
    ),
    "dataloader": (
        raised(
            "RuntimeError: DataLoader worker (pid(s) 5473) exited unexpectedly",
            "RuntimeError: DataLoader worker (pid 5473) is killed by signal: Killed. ",
        ),
        {},
        "dataloader",
        "user",
    ),
    "own connection": (raised("ConnectionResetError: [Errno 104] Connection reset by host"), {}, "network", "infra"),
    "exception": (raised("ValueError: the batch has 0 samples"), {}, "python", "user"),
    "exception that an abort followed": (raised("ValueError: x", code=-6), {}, "python", "user"),
    "kill": (RankEnd(-9, 10), {}, "signal", "infra"),
    "term from outside": (RankEnd(-15, 10), {}, "signal", "infra"),
    "crash": (RankEnd(-11, 10), {}, "signal", "user"),
    "abort": (RankEnd(-6, 10), {}, "signal", "user"),
    "exit": (RankEnd(3, 10), {}, "exit", "user"),
}


@pytest.mark.parametrize("row", ROWS)
def test_each_row_of_the_table_stands_among_the_ends_that_follow_from_it(row) -> None:
    end, seen, kind, cause = ROWS[row]
    found = judge(of(peer(), end, stopped(), peer(10.6), **seen))
    assert found is not None
    assert (found.kind, found.cause, found.rank, found.node) == (kind, cause, 1, "a")
    assert found.message.startswith("rank 1 on a ")
    assert found.message.endswith("; ranks 0,3 ended because of it")
    assert found.ranks == (1,)


def test_every_rule_is_reached_by_a_row_and_every_kind_is_known() -> None:
    reached = {ROWS[row][2] for row in ROWS} | {"stopped", "peer"}
    assert {rule.kind for rule in RULES} == reached
    assert {rule.kind for rule in RULES if rule.weight is not Weight.SYMPTOM} <= KINDS.keys()


def test_memory_s_end_is_told_with_peak_and_limit() -> None:
    found = judge(of(peer(), ROWS["oom"][0]))
    assert found is not None
    assert found.message == "rank 1 on a was killed: out of memory, 31.2 of 32.0 GiB; rank 0 ended because of it"
    assert found.detail == "Killed process 7"


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


def test_the_watchdog_s_abort_is_a_symptom_by_the_log_alone() -> None:
    found = judge(of(RankEnd(-6, 9), RankEnd(-11, 10), lines={0: WATCHDOG}))
    assert found is not None
    assert (found.kind, found.rank) == ("signal", 1)


@pytest.fixture
def recorded() -> Path:
    folder = Path(__file__).resolve().parents[3] / "shared" / "real" / "nccl_logs"
    if not folder.is_dir():
        pytest.skip("the recorded logs of NCCL are not here")
    return folder


def test_what_nccl_says_in_a_healthy_run_is_no_symptom(recorded) -> None:
    broken = set()
    for path in sorted(recorded.glob("*.txt")):
        lines = path.read_text(errors="replace").splitlines()
        for start in range(0, len(lines), LAST_LINES):
            seen = Seen(0, "a", lines=tuple(lines[start : start + LAST_LINES]))
            found = read(Death(seen, RankEnd(3, 10)))
            assert found is not None
            if found.rule.kind != "exit":
                broken.add((path.stem.split("_nccl")[0], found.rule.kind))
    # Those that have a fault in them: InfiniBand gave up sending to a peer; a broadcast ran into its time-out.
    assert broken == {("coriv100_2x8_ib_nogdr", "peer"), ("polaris_a100_2x4_ofi_gdr", "peer")}


def test_of_a_recorded_broadcast_that_ran_into_its_time_out_the_ranks_that_said_nothing_are_named(recorded) -> None:
    said: dict[int, list[str]] = {}
    for line in (recorded / "polaris_a100_2x4_ofi_gdr_nccl2.20.5.txt").read_text(errors="replace").splitlines():
        if found := re.search(r"\[rank(\d)\]:\[E .*", line):
            said.setdefault(int(found[1]), []).append(found[0])
    ends = [RankEnd(-6, 300.0 + rank / 100) if rank in said else stopped(301.0) for rank in range(8)]
    found = judge(of(*ends, lines=said, per_node=4))
    assert found is not None
    assert (found.kind, found.cause, found.ranks) == ("hang", "infra", (0, 2, 3))
    assert "ranks 1,4-7 waited for another" in found.message


def test_what_a_rank_had_lived_through_is_not_what_killed_it() -> None:
    log = [
        "Traceback (most recent call last):",
        '  File "x.py", line 1',
        f"RuntimeError: {CLOSED}",
        "trying again",
        "step 12",
    ]
    found = judge(of(peer(), RankEnd(-9, 10), lines={1: log}))
    assert found is not None
    assert (found.kind, found.rank) == ("signal", 1)


def test_an_exit_code_that_an_abort_hid_is_told_as_the_script_asked_for_it() -> None:
    found = judge(of(peer(), RankEnd(-6, 10, word=a_word(exit=3))))
    assert found is not None
    assert (found.kind, found.message) == ("exit", "rank 1 on a ended with exit code 3; rank 0 ended because of it")


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


def test_a_traceback_in_the_log_is_read_where_no_interpreter_told_of_it() -> None:
    log = [
        "step 4",
        "[rank1]: Traceback (most recent call last):",
        '[rank1]:   File "/job/train.py", line 4, in <module>',
        "[rank1]:     shard[step]",
        "[rank1]: IndexError: list index out of range",
        "terminate called without an active exception",
    ]
    found = judge(of(peer(), RankEnd(-6, 10), lines={1: log}))
    assert found is not None
    assert found.message == "rank 1 on a ended by IndexError: list index out of range; rank 0 ended because of it"
    assert found.detail is not None
    assert found.detail.splitlines()[0] == "Traceback (most recent call last):"
    assert "File" in found.detail


def test_a_syntax_error_of_the_script_itself_has_no_traceback_and_is_read_all_the_same() -> None:
    log = ['  File "/job/train.py", line 3', "    foo(", "       ^", "SyntaxError: '(' was never closed"]
    found = judge(of(RankEnd(1, 10), RankEnd(1, 10), lines={0: log, 1: log}))
    assert found is not None
    assert (found.kind, found.ranks) == ("python", (0, 1))
    assert "SyntaxError: '(' was never closed" in found.message


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


def test_a_hardware_xid_names_the_gpu_s_rank_though_it_only_hung() -> None:
    xid = Xid(3, 79, "NVRM: Xid (PCI:0000:3b:00): 79, GPU has fallen off the bus.", gpu=1)
    found = judge(of(raised(f"RuntimeError: {WAITED}", at=14), stopped(), stopped(), stopped(), xids=[("b", xid)]))
    assert found is not None
    assert (found.kind, found.rank, found.node, found.suspects) == ("gpu", 3, "b", ("b",))
    assert found.detail == xid.line


@pytest.mark.parametrize("number", [43, 63, 92, 9999])
def test_an_xid_that_breaks_nothing_or_is_unknown_is_no_cause(number) -> None:
    found = judge(of(peer(), raised("ValueError: x"), xids=[("a", Xid(9.9, number, "NVRM: Xid", gpu=1))]))
    assert found is not None
    assert found.kind == "python"


def test_an_xid_of_another_rank_s_gpu_or_of_long_ago_is_not_this_rank_s() -> None:
    away, old = Xid(9.9, 79, "NVRM", gpu=0), Xid(-5000, 79, "NVRM", gpu=1)
    found = judge(of(None, RankEnd(-11, 10), xids=[("a", away), ("a", old)], whole=True))
    assert found is not None
    assert (found.kind, found.rank) == ("signal", 1)


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


def test_a_failure_s_cause_is_that_of_its_kind_where_none_is_given() -> None:
    assert {Failure(kind, "").cause for kind in KINDS} == {"user", "infra"}
    assert Failure("signal", "", cause="infra").cause == "infra"
