"""What is believed of a measuring run's log."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.bench.results import MARK, read_output

ROW = {
    "collective": "all_reduce",
    "backend": "nccl",
    "bytes": 4096,
    "time_us": 10.0,
    "algbw": 0.4096,
    "busbw": 0.4096,
    "iterations": 20,
    "wrong": 0,
}


def line(**changes: object) -> str:
    return MARK + json.dumps(ROW | changes)


@pytest.mark.parametrize(
    "broken",
    [
        line(wrong=3),
        line(busbw=float("nan")),
        line(busbw=-1.0),
        line(busbw="fast"),
        line(bytes=0),
        line(collective="all_the_things"),
        line(backend="mpi"),
        MARK + json.dumps({k: v for k, v in ROW.items() if k != "time_us"}),
        line()[:-7],
        MARK + "[1, 2]",
        "all_reduce 4096 99999 GB/s",
    ],
)
def test_a_row_that_is_wrong_cut_off_or_not_marked_is_not_kept(broken: str) -> None:
    assert read_output([broken, line(bytes=8192)]).rows == read_output([line(bytes=8192)]).rows


def test_other_words_before_a_row_in_its_line_do_no_harm() -> None:
    assert len(read_output([f"NCCL INFO half a line{line()}"]).rows) == 1


def test_a_row_that_was_said_twice_is_one() -> None:
    (row,) = read_output([line(), line(busbw=0.5)]).rows
    assert row.busbw == 0.5


def test_what_was_skipped_and_over_what_nccl_went_is_told() -> None:
    said = read_output(
        [
            MARK + json.dumps({"collective": "all_to_all", "backend": "gloo", "bytes": 4, "skipped": "not on GPUs"}),
            MARK + json.dumps({"transport": {"P2P": 24, "odd": "x"}}),
        ]
    )
    assert said.skipped == (("all_to_all", "gloo", "not on GPUs"),)
    assert said.transport == {"P2P": 24}


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from([*ROW, "ranks", "transport"]), inner),
    max_leaves=12,
)


@given(st.lists(json_values.map(lambda v: MARK + json.dumps(v)) | st.text(max_size=40)))
def test_no_log_breaks_the_reader(lines: list[str]) -> None:
    for row in read_output(lines).rows:
        assert row.busbw > 0
