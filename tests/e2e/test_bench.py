"""`orch bench` whole, by Gloo on CPU ranks: an ordinary run, its results kept, shown again, and used for the next prediction."""

from __future__ import annotations

import pytest

pytestmark = pytest.mark.ray


def test_two_cpu_ranks_are_measured_and_what_they_reached_is_what_is_predicted_next(home, job):
    found = home.json("bench", "--backend", "gloo", "--min", "4M", "--max", "32M", "--iters", "3", timeout=150)
    (run,) = found["runs"]
    assert (run["name"], run["state"]) == ("bench", "succeeded")
    assert [row["bytes"] >> 20 for row in found["results"]] == [4, 8, 16, 32]
    for row in found["results"]:
        assert (row["ranks"], row["level"], row["kind"], row["model"]) == (2, "node", "gloo", "CPU")
        # By definition: the bus bandwidth of an all-reduce between two is S/t.
        assert row["busbw"] == pytest.approx(row["bytes"] / row["time_us"] / 1e3, rel=0.01)
        assert row["predicted"] > 0
        assert row["versions"]["torch"]

    shown = home.show(run["id"])
    assert (shown["spec"]["tags"], shown["spec"]["workers"]) == ({"orch": "bench"}, "1x2")
    assert home.json("bench", "--history") == found["results"]

    plan = home("plan", job("pass", workers="1x2", device="cpu")).stdout
    assert "Gloo among 2 ranks, measured on 20" in plan
