"""The screen of `orch top`: it fits whatever the terminal's size, shows what matters, and follows keys."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cli.keys import names
from cli.top_frame import SORTS, Shown, Typed, chosen_rows, frame, key

NOW = datetime(2026, 11, 26, 12, tzinfo=UTC)


def a_node(name: str, **change: Any) -> dict[str, Any]:
    plain = {
        "node": name,
        "state": "up",
        "device": "cuda",
        "total": 8,
        "busy": 8,
        "unfit": 0,
        "runs": [1],
        "note": None,
    }
    return plain | {"utilization": 93.0, "memory_gib": 480.0, "power_w": 5200.0} | change


def a_run(run: int, state: str = "running", **change: Any) -> dict[str, Any]:
    parts = [{"node": f"gpu-{run:02d}", "gpus": list(range(8))}]
    plain = {
        "id": run,
        "name": "resnet50",
        "user": "ana",
        "team": "vision",
        "state": state,
        "reason": None,
        "array": None,
        "submitted_at": "2026-11-26T10:00:00Z",
        "started_at": "2026-11-26T10:30:00Z",
        "attempts": [{"placement": {"nodes": parts}}],
        "throughput": {"samples_per_s": 8000.0, "step_time": 0.03},
        "live": {"samples_per_s": 8123.0, "step_time": 0.031, "utilization": 91.0},
        "time_limit": 7200.0,
    }
    return plain | change


def waits(run: int, **change: Any) -> dict[str, Any]:
    more = {
        "position": run - 100,
        "reason": "needs 16 GPUs, 8 are free",
        "expected_start": "2026-11-26T12:30:00Z",
        "attempts": [],
    }
    return a_run(run, "queued") | more | change


def data(runs: int = 3, queue: int = 2, nodes: int = 3) -> dict[str, Any]:
    return {
        "at": "2026-11-26T11:59:58Z",
        "nodes": [a_node(f"gpu-{i:02d}") for i in range(1, nodes + 1)],
        "runs": [a_run(i) for i in range(1, runs + 1)],
        "waiting": [waits(100 + i) for i in range(1, queue + 1)],
        "counts": {"runs": runs, "waiting": queue},
    }


def text(shown: Shown, typed: Typed = Typed(), columns: int = 120, rows: int | None = 40) -> str:  # noqa: B008
    return "\n".join(line.text for line in frame(shown, typed, columns, rows))


@given(
    st.integers(0, 300),
    st.integers(0, 300),
    st.integers(0, 100),
    st.integers(20, 250),
    st.integers(8, 80),
    st.integers(0, 700),
    st.booleans(),
)
def test_a_frame_is_exactly_the_terminal_and_nothing_is_wider(
    runs: int, queue: int, nodes: int, columns: int, rows: int, cursor: int, details: bool
) -> None:
    typed = Typed(cursor=cursor, details=1 if details else None)
    shown = Shown(data(runs, queue, nodes), NOW, "gone" if cursor % 2 else "", ["line"] * runs)
    lines = frame(shown, typed, columns, rows)
    assert len(lines) == rows
    assert max(len(line.text) for line in lines) <= columns


def test_at_80_by_24_runs_queue_nodes_and_keys_are_all_there() -> None:
    shown = text(Shown(data(50, 50, 50), NOW), columns=80, rows=24)
    for word in ("RUNS 50", "QUEUE 50", "NODES 50", "q: quit", "400 busy, 0 free"):
        assert word in shown


@pytest.mark.parametrize("cursor", [0, 30, 49, 50, 99])
def test_the_chosen_row_is_always_to_be_seen(cursor: int) -> None:
    lines = frame(Shown(data(50, 50, 5), NOW), Typed(cursor=cursor), 100, 24)
    assert [line.text[0] for line in lines if line.style == "chosen"] == [">"]


def test_a_row_says_how_a_run_does_now() -> None:
    shown = text(Shown(data(1, 1, 1), NOW))
    assert all(word in shown for word in ("8,123", "31 ms", "91%", "1h30m/2h00m", "gpu-01:8"))
    assert "needs 16 GPUs, 8 are free" in shown
    assert "~30m00s" in shown
    assert "5200W" in shown


def test_a_controller_that_is_away_is_said_with_the_age_of_what_is_shown() -> None:
    gone = Shown(data(), NOW, "the controller does not answer")
    assert "! what is shown is 2.0s old: the controller does not answer" in text(gone)
    assert "the controller" not in text(replace(gone, lost=""))
    assert "does not answer" in text(Shown(None, NOW, "the controller does not answer"))


def test_nodes_that_are_down_and_gpus_that_are_unfit_are_no_free_ones() -> None:
    shown = data(0, 0, 0) | {"nodes": [a_node("a", busy=2, unfit=1), a_node("b", state="down", busy=0, note="lost")]}
    said = text(Shown(shown, NOW))
    assert "2 busy, 5 free, 1 unfit, 8 on nodes that are down" in said
    assert "1 node up, 1 down" in said
    assert "nothing runs" in said


def test_names_cannot_move_the_cursor() -> None:
    shown = data(1) | {"runs": [a_run(1, name="\x1b[2Jbad\x07")]}
    assert "\x1b" not in text(Shown(shown, NOW))


def test_keys_choose_sort_and_filter() -> None:
    typed = Typed()
    for pressed in ("down", "j", "up"):
        typed = key(typed, pressed, 5, 10)
    assert typed.cursor == 1
    assert key(typed, "end", 5, 10).cursor == 4
    assert key(typed, "up", 0, 10).cursor == 0
    for _ in SORTS:
        typed = key(typed, "s", 5, 10)
    assert typed.sort == 0
    for pressed in ("/", "g", "x", "backspace", "enter"):
        typed = key(typed, pressed, 5, 10)
    assert (typed.filter, typed.typing) == ("g", False)
    assert key(typed, "escape", 5, 10).filter == ""


def test_a_filter_looks_at_ids_names_people_states_and_places() -> None:
    shown = data(12, 3) | {"waiting": [waits(101, name="vit"), waits(102)]}
    assert [run["id"] for run in chosen_rows(shown, Typed(filter="GPU-07"))[0]] == [7]
    assert [run["id"] for run in chosen_rows(shown, Typed(filter="vit"))[1]] == [101]


@pytest.mark.parametrize("sort", range(len(SORTS)))
def test_runs_of_which_nothing_is_known_can_be_sorted_too(sort: int) -> None:
    bare = a_run(9, started_at=None, throughput=None, live=None)
    runs, _ = chosen_rows(data(2) | {"runs": [bare, a_run(1)]}, Typed(sort=sort))
    assert {run["id"] for run in runs} == {1, 9}


def test_into_a_pipe_goes_everything_without_keys() -> None:
    said = text(Shown(data(60, 60, 60), NOW), columns=200, rows=None)
    assert said.count("gpu-60") == 2
    assert "q: quit" not in said


def test_keys_that_come_at_once_are_told_apart() -> None:
    assert names("\x1b[B\x1b[Bs\x1bOA\r") == ["down", "down", "s", "up", "enter"]
    assert names("\x1b") == ["escape"]
    assert names("/é\x7f\x1b[1;5C") == ["/", "é", "backspace", "\x1b[1;5C"]
