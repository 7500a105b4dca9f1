"""A series ages: rows become longer, nothing is counted twice, and a week stays small."""

import sqlite3
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.history import measurements
from orchestrator.history.measurements import Measured
from orchestrator.history.series import DETAIL, fold_gang, fold_gpus, fold_ranks
from orchestrator.history.store import Store
from orchestrator.progress.values import GangSample, GpuSample, RankSample
from orchestrator.testing import START, a_new_run, a_placement

GANG = st.builds(
    lambda number, steps, samples, time: GangSample(
        START + timedelta(seconds=10 * number), 10, 10_000, steps, samples, time, time, time, time, time, {"loss": time}
    ),
    st.integers(0, 200),
    st.integers(0, 100),
    st.none() | st.integers(0, 10_000),
    st.floats(0.001, 10),
)


@given(st.lists(GANG, max_size=40, unique_by=lambda one: one.at), st.sampled_from([60, 600]))
def test_longer_rows_hold_the_same_counts(samples, seconds):
    folded = fold_gang(samples, seconds)
    for name in ("steps", "measured_ms"):
        assert sum(getattr(one, name) for one in folded) == sum(getattr(one, name) for one in samples)
    assert sum(one.samples or 0 for one in folded) == sum(one.samples or 0 for one in samples)
    starts = [int(one.at.timestamp()) // seconds for one in folded]
    assert len(set(starts)) == len(starts)
    assert all(one.seconds == seconds for one in folded)
    if samples:
        assert max(one.step_time_p99 for one in folded) == max(one.step_time_p99 for one in samples)


def test_a_mean_is_by_steps_and_the_newest_metric_stays():
    slow = GangSample(START, 10, 10_000, 1, None, 4.0, metrics={"loss": 2.0, "lr": 0.1})
    fast = GangSample(START + timedelta(seconds=10), 10, 10_000, 3, None, 1.0, metrics={"loss": 1.0})
    (both,) = fold_gang([fast, slow], 60)
    assert (both.step_time, both.metrics, both.samples) == (1.75, {"loss": 1.0, "lr": 0.1}, None)


def test_ranks_and_gpus_are_folded_apart():
    ranks = [
        RankSample(r, START + timedelta(seconds=60 * i), 60, 60_000, 5, 10, 0.1 + r) for r in (0, 1) for i in (0, 1)
    ]
    assert [(one.rank, one.steps) for one in fold_ranks(ranks, 600)] == [(0, 10), (1, 10)]
    hot = GpuSample("a", 1, START, 60, 12, 90.0, 100.0, 500.0, 88.0, 1200.0, 0.5, ("hw_thermal",))
    cool = replace(
        hot,
        at=START + timedelta(seconds=60),
        looks=4,
        power_w=100.0,
        temperature_c=60.0,
        throttled=0.0,
        throttled_by=(),
    )
    other = replace(hot, gpu=2, throttled_by=())
    first, second = fold_gpus([hot, cool, other], 600)
    assert (first.power_w, first.temperature_c, first.looks, first.throttled) == (400.0, 88.0, 16, 0.375)
    assert (first.throttled_by, second.gpu) == (("hw_thermal",), 2)


def rows_after(table: str, seconds: float, newest: int) -> list[int]:
    """The lengths of the rows that a live attempt has after so long, by the rule of its table."""
    detail = DETAIL[table]
    now = START + timedelta(seconds=seconds)
    rows = [(START + timedelta(seconds=at), newest) for at in range(0, int(seconds), newest)]
    for length, before in detail.due(START, now, None):
        old = {int(at.timestamp()) // length for at, width in rows if at < before and width < length}
        kept = [(at, width) for at, width in rows if not (at < before and width < length)]
        rows = [(START + timedelta(seconds=bucket * length - START.timestamp()), length) for bucket in old] + kept
    return [width for _, width in rows]


@pytest.mark.parametrize(
    ("table", "newest", "most"), [("gang_samples", 10, 2610), ("rank_samples", 60, 350), ("gpu_samples", 60, 350)]
)
def test_a_week_has_no_more_rows_than_that(table, newest, most):
    assert len(rows_after(table, 7 * 86400, newest)) <= most


def test_a_run_of_a_week_on_64_ranks_takes_less_than_8_mib(new_sqlite, open_store):
    url = new_sqlite()
    store = open_store(url)
    store.claim_epoch("test", START)
    run, _ = store.submit(a_new_run(workers=64), START)
    gpus = {f"gpu-{node:02}": tuple(range(8)) for node in range(8)}
    store.place(run.id, a_placement(**gpus), START)
    path = Path(url.removeprefix("sqlite:///"))
    store.close()
    before = path.stat().st_size
    metrics = {"loss": 2.123456, "tokens_per_s": 123456.7}
    # As many rows as the rule leaves (the tests above), with all columns filled.
    gang = [
        GangSample(
            START + timedelta(seconds=10 * i), 60, 60_000, 1200, 76_800, 0.0501, 0.0502, 0.0603, 0.041, 0.049, metrics
        )
        for i in range(2610)
    ]
    ranks = [
        RankSample(rank, START + timedelta(seconds=60 * i), 600, 600_000, 12_000, 12_000, 0.0501, 0.0412, 1234)
        for i in range(350)
        for rank in range(64)
    ]
    looks = [
        GpuSample(
            node,
            gpu,
            START + timedelta(seconds=60 * i),
            600,
            120,
            97.5,
            70_123.0,
            654.3,
            71.0,
            1755.0,
            0.25,
            ("sw_power_cap",),
        )
        for i in range(350)
        for node in gpus
        for gpu in range(8)
    ]
    store = Store.open(url)
    with store._database.write() as connection:
        measurements.record(connection, [Measured(run.id, 1, None, tuple(gang), tuple(ranks), tuple(looks))], START)
    store.close()
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    grown = path.stat().st_size - before
    print(f"{grown / 2**20:.2f} MiB")
    assert grown < 8 * 2**20
