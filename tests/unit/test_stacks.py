"""Which rank keeps the others waiting: by its state, by the flight recorder, by its stack, by its steps."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.health.flight_recorder import Recorded, behind, read_dump
from orchestrator.health.stacks import Evidence, Frame, RankStack, missing

REDUCING = Frame("all_reduce", "torch/distributed/distributed_c10d.py", 3252)
IN_NCCL = (Frame("cuStreamSynchronize", "libcuda.so.1"), Frame("step", "train.py", 31))
ELSEWHERE = Frame("read", "train.py", 12)


def at(rank: int, *frames: Frame, state: str = "S", recorded: Recorded | None = None) -> RankStack:
    return RankStack(rank, 100 + rank, state, frames, recorded=recorded)


def who(*stacks: RankStack, **more: Any) -> tuple[int, ...] | None:
    found = missing(Evidence({one.rank: one for one in stacks}, **more))
    return None if found is None else found.ranks


def test_a_stopped_rank_is_the_one_wherever_it_stands() -> None:
    assert who(at(0, ELSEWHERE), at(1, REDUCING, state="T"), at(2, REDUCING)) == (1,)
    assert who(at(0, REDUCING), at(1, REDUCING, state="t")) == (1,)


def test_a_rank_that_has_ended_while_others_wait_for_it_is_the_one() -> None:
    assert who(at(0, REDUCING), at(2, REDUCING), ended=(1,)) == (1,)


@pytest.mark.parametrize("waits", [(REDUCING,), IN_NCCL], ids=["in a collective", "for its GPU"])
def test_a_rank_that_is_not_where_the_others_wait_is_the_one(waits: tuple[Frame, ...]) -> None:
    assert who(at(0, *waits), at(1, ELSEWHERE), at(2, *waits)) == (1,)


def test_a_rank_stuck_on_a_file_server_is_the_one() -> None:
    assert who(at(0, REDUCING), at(1, REDUCING, state="D")) == (1,)


def test_the_rank_with_fewer_steps_is_the_one_where_stacks_tell_nothing() -> None:
    assert who(at(0, REDUCING), at(1, REDUCING), steps={0: 12, 1: 11}) == (1,)
    assert who(at(0), at(1), steps={0: 12, 1: 12}) is None


def test_where_all_stand_alike_nobody_is_named() -> None:
    assert who(at(0, REDUCING), at(1, REDUCING)) is None
    assert who(at(0, ELSEWHERE), at(1, ELSEWHERE)) is None
    assert who(at(0, ELSEWHERE)) is None


def test_many_are_named_by_the_first_few() -> None:
    found = missing(Evidence({rank: at(rank, state="T") for rank in range(9)}, nodes=dict.fromkeys(range(9), "a")))
    assert found is not None
    assert found.text.startswith("rank 0 on a, rank 1 on a, rank 2 on a, rank 3 on a and 5 more: each is stopped")


# -- the flight recorder ----------------------------------------------------------------------------------------------------


def entry(sequence: int, group: tuple[str, str] = ("0", "default_pg"), **change: Any) -> dict[str, Any]:
    """As torch 2.13 writes it."""
    return {
        "frames": [
            {"name": "all_reduce", "filename": "/v/site-packages/torch/distributed/distributed_c10d.py", "line": 3245},
            {"name": "main", "filename": "/runs/4.1/code/train.py", "line": 31},
        ],
        "record_id": sequence - 1, "pg_id": 0, "process_group": group, "collective_seq_id": sequence, "p2p_seq_id": 0,
        "op_id": sequence, "profiling_name": "nccl:all_reduce", "time_created_ns": 1795711245986860116,
        "input_sizes": [[1024, 8]], "state": "completed", "retired": True, "is_p2p": False, "timeout_ms": 600000,
    } | change  # fmt: skip


def dump(*entries: dict[str, Any]) -> bytes:
    return pickle.dumps({"version": "2.10", "pg_config": {}, "pg_status": {}, "entries": list(entries)}, protocol=2)


def recorded(*entries: dict[str, Any]) -> Recorded:
    found = read_dump(dump(*entries))
    assert found is not None
    return found


def test_a_dump_says_what_was_called_last_and_where() -> None:
    found = recorded(*(entry(number) for number in range(1, 21)))
    assert len(found.newest) == 8
    assert str(found.newest[-1]) == "default_pg #20 nccl:all_reduce [1024x8] completed at train.py:31"


def test_the_rank_that_has_not_called_what_the_others_wait_in_is_behind() -> None:
    ahead, late = recorded(entry(1), entry(2, state="started")), recorded(entry(1))
    found = behind({0: ahead, 1: late, 2: ahead})
    assert found is not None
    assert found.ranks == (1,)
    assert who(at(0, REDUCING, recorded=ahead), at(1, REDUCING, recorded=late)) == (1,)
    assert behind({0: ahead, 1: ahead}) is None
    assert behind({0: ahead}) is None


def test_groups_that_are_not_of_all_ranks_tell_nothing() -> None:
    mine, theirs = ("1", "mesh_tp"), ("2", "mesh_tp")
    assert behind({0: recorded(entry(9, mine)), 1: recorded(entry(4, theirs))}) is None


class Bad:
    """What a pickle runs as soon as it is read."""

    def __init__(self, call: Callable[..., Any], *arguments: Any) -> None:
        self.what = call, arguments

    def __reduce__(self) -> Any:
        return self.what


def test_a_dump_that_names_a_function_is_none_and_runs_nothing(tmp_path: Any) -> None:
    canary = tmp_path / "canary"
    bad = pickle.dumps({"entries": [], "more": Bad(os.mkdir, str(canary))})
    assert read_dump(bad) is None
    assert not canary.exists()


@given(st.binary(max_size=300) | st.integers(1, 700).map(lambda cut: dump(entry(1), entry(2))[:-cut]))
def test_what_is_no_whole_dump_is_none(data: bytes) -> None:
    found = read_dump(data)
    assert found is None or not found.newest


@pytest.mark.torch
def test_torchs_own_dump_can_be_read() -> None:
    import torch.distributed as dist
    from torch._C._distributed_c10d import _dump_fr_trace

    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        dist.barrier()
        found = read_dump(_dump_fr_trace())
    finally:
        dist.destroy_process_group()
    assert found is not None
    assert found.last is not None
    assert "default_pg" in found.last
