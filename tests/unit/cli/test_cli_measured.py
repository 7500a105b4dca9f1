"""How a run's speed and GPU time are shown."""

from __future__ import annotations

from cli.measured import _lines, number, short
from cli.output import Column, _title

THROUGHPUT = {
    "samples_per_s": 8123.4,
    "step_time": 0.0312,
    "steps": 41000,
    "source": "report",
    "step_time_p50": 0.0308,
    "step_time_p99": 1.25,
    "samples": 10_496_000,
    "repeated_steps": 120,
    "metrics": {"loss": 2.123456789},
}
USED = {"allocated": 7200.0, "productive": 5400.0, "starting": 900.0, "checkpoint": 0.0, "lost": 720.0, "idle": 180.0}


def test_a_pipe_gets_every_number_as_it_is(orch, stub, a_run):
    stub.answers["GET /runs/42"] = (200, a_run(throughput=THROUGHPUT, gpu_seconds=USED, goodput=0.75, cost=12.5))
    shown = dict(line.split("\t", 1) for line in orch("show", "42").stdout.splitlines())
    assert shown["throughput.samples_per_s"] == "8123.4"
    assert shown["throughput.source"] == "report"
    assert shown["metric.loss"] == "2.123456789"
    assert (shown["gpu_seconds.lost"], shown["goodput"], shown["cost"]) == ("720", "0.75", "12.5")


def test_a_terminal_is_told_in_words():
    run = {"throughput": THROUGHPUT, "gpu_seconds": USED, "queue_seconds": 75.0, "cost": 1234.5, "attempts": []}
    assert dict(_lines(run)) == {
        "throughput": "8,123 samples/s, 31.2 ms a step, 41,000 steps, 120 done twice (half within 30.8 ms, 99 % within 1.25 s); "
        "as the script reports",
        "metrics": "loss 2.1235",
        "gpu time": "2h00m of GPUs: 75% productive, 12% starting, 10% lost, 2% idle",
        "queued": "1m15s",
        "cost": "1,234.50",
    }
    assert _lines({"throughput": None, "gpu_seconds": {"allocated": 0}}) == []


def test_numbers_are_as_long_as_they_say_something():
    assert [number(value) for value in (None, 0.03214, 41.234, 999, 8123.4, 1e7)] == [
        "", "0.0321", "41.2", "999", "8,123", "10,000,000",
    ]  # fmt: skip
    assert [short(value) for value in (None, 0.00012, 0.5, 75.0)] == ["", "0.12 ms", "500 ms", "75 s"]


def test_a_tables_title_has_no_seconds_but_a_rate_keeps_its_unit():
    assert [_title(Column(name, str)) for name in ("took_s", "samples_per_s", "id")] == ["TOOK", "SAMPLES/S", "ID"]
