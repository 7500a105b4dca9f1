"""From what was seen of one rank's end to its cause: a row for every rule, by its last words, its log, its signal, its GPU."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from gang_ends import CLOSED, ROWS, WAITED, a_word, of, peer, raised, stopped

from orchestrator.health.death import LAST_LINES, Death
from orchestrator.health.evidence import RankEnd, Seen, Xid
from orchestrator.health.failure import KINDS, Failure
from orchestrator.health.failure_table import RULES, Weight, read
from orchestrator.health.failures import judge

WATCHDOG = (
    "[rank0]:[E1126 16:00:01 ProcessGroupNCCL.cpp:683] [Rank 0] Watchdog caught collective operation timeout: "
    "WorkNCCL(SeqNum=7, OpType=ALLREDUCE, NumelIn=1, NumelOut=1, Timeout(ms)=600000) ran for 600010 milliseconds",
    "[rank0]:[E1126 ProcessGroupNCCL.cpp:744] To avoid data inconsistency, we are taking the entire process down.",
    "terminate called after throwing an instance of 'c10::DistBackendError'",
)


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
    assert found.detail.splitlines()[-1] == "IndexError: list index out of range", "what the abort printed is not of it"


def test_a_syntax_error_of_the_script_itself_has_no_traceback_and_is_read_all_the_same() -> None:
    log = ['  File "/job/train.py", line 3', "    foo(", "       ^", "SyntaxError: '(' was never closed"]
    found = judge(of(RankEnd(1, 10), RankEnd(1, 10), lines={0: log, 1: log}))
    assert found is not None
    assert (found.kind, found.ranks) == ("python", (0, 1))
    assert "SyntaxError: '(' was never closed" in found.message


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


def test_a_failure_s_cause_is_that_of_its_kind_where_none_is_given() -> None:
    assert {Failure(kind, "").cause for kind in KINDS} == {"user", "infra"}
    assert Failure("signal", "", cause="infra").cause == "infra"
