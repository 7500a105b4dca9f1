"""The measuring script's arithmetic: nccl-tests' definitions, sizes, repetitions, and that wrong values are noticed."""

from __future__ import annotations

import importlib.util
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.bench.results import COLLECTIVES, MARK, read_output
from orchestrator.control.bench_script import SCRIPT


def _load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("collectives", SCRIPT)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


script = _load()


@pytest.mark.parametrize(
    ("collective", "ranks", "factor"),
    [
        ("all_reduce", 2, 1.0),
        ("all_reduce", 8, 1.75),
        ("all_gather", 8, 0.875),
        ("reduce_scatter", 4, 0.75),
        ("all_to_all", 2, 0.5),
        ("broadcast", 8, 1.0),
    ],
)
def test_bus_bandwidth_is_nccl_tests_definition(collective: str, ranks: int, factor: float) -> None:
    assert script.busbw_factor(collective, ranks) == factor


def test_script_and_reader_speak_of_the_same_collectives_in_the_same_lines() -> None:
    assert (script.COLLECTIVES, script.MARK) == (COLLECTIVES, MARK)


@given(st.integers(4, 1 << 34), st.sampled_from(COLLECTIVES), st.integers(2, 1024))
def test_what_is_sent_is_whole_elements_in_equal_parts_and_never_much_less_than_asked(
    size: int, collective: str, ranks: int
) -> None:
    sent = script.fitted(size, collective, ranks)
    parts = 1 if collective in script.IN_PLACE else ranks
    assert sent % (4 * parts) == 0
    assert sent > 0
    assert sent > size - 4 * parts


@given(st.integers(4, 1 << 20), st.integers(0, 12))
def test_sizes_double_from_the_least_to_the_most(least: int, doublings: int) -> None:
    found = script.sizes_between(least, least << doublings, 2.0)
    assert found == [least << i for i in range(doublings + 1)]


@given(st.floats(1e-7, 1e3))
def test_a_size_takes_a_quarter_of_a_second_or_the_fewest_repetitions_that_tell(seconds: float) -> None:
    count = script.iterations(seconds, 0)
    assert script.FEWEST <= count <= script.MOST
    assert count * seconds <= max(script.BUDGET_S, script.FEWEST * seconds) * 1.001
    assert script.iterations(seconds, 7) == 7


@pytest.mark.torch
@pytest.mark.parametrize("collective", COLLECTIVES)
def test_a_wrong_value_is_noticed_and_a_right_one_is_not(collective: str) -> None:
    import torch

    size = script.fitted(4096, collective, 2)
    ranks = [script.Buffers(torch, collective, size, rank, 2, torch.device("cpu")) for rank in range(2)]
    for buffers in ranks:
        buffers.fill()
    _carry_out(torch, collective, ranks)
    assert [buffers.wrong() for buffers in ranks] == [0, 0]
    ranks[1].got[-1] += 1
    assert [buffers.wrong() for buffers in ranks] == [0, 1]


def _carry_out(torch: Any, collective: str, ranks: list[Any]) -> None:
    """The collective by hand."""
    sent = [buffers.sent.clone() for buffers in ranks]
    half = sent[0].numel() // 2
    for rank, buffers in enumerate(ranks):
        if collective == "all_reduce":
            buffers.got.copy_(sent[0] + sent[1])
        elif collective == "broadcast":
            buffers.got.copy_(sent[0])
        elif collective == "all_gather":
            buffers.got.copy_(torch.cat(sent))
        elif collective == "reduce_scatter":
            buffers.got.copy_((sent[0] + sent[1])[rank * half : (rank + 1) * half])
        else:
            buffers.got.copy_(torch.cat([one[rank * half : (rank + 1) * half] for one in sent]))


def test_what_nccl_took_is_counted_from_its_own_log(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import os
    import socket

    log = tmp_path / f"nccl.{socket.gethostname()}.{os.getpid()}.log"
    log.write_text(
        "h:1:2 [0] NCCL INFO Channel 00/0 : 0[0] -> 1[1] via P2P/CUMEM\n"
        "h:1:2 [0] NCCL INFO Channel 01/0 : 0[0] -> 1[1] via P2P/CUMEM\n"
        "h:1:2 [0] NCCL INFO Channel 00/0 : 1[1] -> 2[0] [send] via NET/IB/0/GDRDMA\n"
        "h:1:2 [0] NCCL INFO Channel 00/0 : 3[1] -> 0[0] [receive] via NET/Socket/0\n"
    )
    assert script.transports(str(tmp_path / "nccl.%h.%p.log")) == {"P2P": 2, "NET/IB/GDRDMA": 1, "NET/Socket": 1}
    assert script.transports(str(tmp_path / "none.%p")) == {}


def test_a_row_is_read_as_it_was_said(capsys: pytest.CaptureFixture[str]) -> None:
    row = {
        "collective": "all_reduce",
        "backend": "nccl",
        "bytes": 1 << 20,
        "in_place": True,
        "time_us": 41.5,
        "algbw": 25.27,
        "busbw": 25.27,
        "iterations": 100,
        "wrong": 0,
    }
    script.say(0, {"ranks": 2, "versions": {"torch": "2.11.0", "nccl": "2.28.9"}}, "# two")
    script.say(0, row, script.row_text(row))
    script.say(1, row, "not said by another rank")
    said = read_output(capsys.readouterr().out.splitlines())
    assert (said.ranks, said.versions) == (2, {"torch": "2.11.0", "nccl": "2.28.9"})
    assert [(r.bytes, r.busbw, r.iterations) for r in said.rows] == [(1 << 20, 25.27, 100)]
