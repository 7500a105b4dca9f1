"""The summaries say what their sources say, whatever happens in whatever order."""

from collections import Counter
from datetime import UTC, date, datetime, timedelta

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import insert, select, text, update

from orchestrator.health.failure import Failure
from orchestrator.health.marks import Drain, Mark, Quarantine, cleared
from orchestrator.history.ledger_days import periods_of, shares, spread
from orchestrator.history.measured_models import GpuTimeRow
from orchestrator.history.nodes import NodeEvent
from orchestrator.history.summaries import NODE_COUNTS, TIMES, recounting
from orchestrator.history.summary_models import (
    AttemptNodeRow,
    GpuDayRow,
    NameSumRow,
    NodeDayRow,
    RunSummaryRow,
    RunSumRow,
)
from orchestrator.placement.fabric import NodeFabric
from orchestrator.scheduling.lifecycle import Event, Outcome
from orchestrator.scheduling.run import NodeRecord
from orchestrator.testing import START, ManualClock, a_new_run, a_placement

FABRIC = {"a": NodeFabric("l1", "H100"), "b": NodeFabric("l1", "H100"), "c": NodeFabric("l2", "A100")}
HOUR = timedelta(hours=1)


def rows(store, table, *where):
    with store._database.read() as connection:
        return [dict(row) for row in connection.execute(select(table).where(*where)).mappings()]


def use(store, run, number, node, since, until, lost=0, price=None):
    """A row of the ledger, as the controller writes it."""
    allocated = (until - since) // timedelta(milliseconds=1) * 2
    figures = dict.fromkeys(TIMES, 0) | {"allocated_ms": allocated, "lost_ms": lost, "productive_ms": allocated - lost}
    with store._database.write() as connection:
        connection.execute(
            insert(GpuTimeRow).values(
                run_id=run,
                attempt=number,
                node=node,
                gpus=2,
                device="cuda",
                price=price,
                since=since,
                until=until,
                **figures,
            )
        )


def begin(store, clock, run, *nodes):
    return store.place(run, a_placement(**dict.fromkeys(nodes, (0, 1))), clock(), fabric=FABRIC).attempts[-1]


def end(store, clock, run, attempt, seconds, event=Event.SUCCEEDED, outcome=Outcome.SUCCEEDED, failure=None):
    """Ends the attempt and counts its time, as the controller does."""
    ended = store.finish(run, event, outcome, clock.advance(seconds), failure=failure)
    store.count([ended], clock())
    with store._database.write() as connection, recounting(connection, [ended]):
        connection.execute(update(GpuTimeRow).where(GpuTimeRow.run_id == run).values(price=2.0))
    return ended


def test_a_run_is_summed_up_when_its_attempt_has_ended(store, clock):
    run = store.submit(a_new_run(), clock())[0].id
    assert rows(store, RunSummaryRow) == []
    clock.advance(90)
    attempt = begin(store, clock, run, "a", "c")
    assert rows(store, RunSummaryRow) == []
    end(store, clock, run, attempt, 3600)
    (ended,) = rows(store, RunSummaryRow)
    assert (ended["state"], ended["gpus"], ended["nodes"], ended["allocated_ms"]) == ("succeeded", 4, 2, 4 * 3_600_000)
    assert (ended["wait_ms"], ended["gpu"], ended["leaves"]) == (90_000, "A100+H100", 2)
    assert ended["cost"] == pytest.approx(8.0)
    sums = {row["period"]: row for row in rows(store, RunSumRow)}
    assert {period: row["start"].isoformat() for period, row in sums.items()} == {
        "day": "2026-01-05", "week": "2026-01-05", "month": "2026-01-01",
    }  # fmt: skip
    for row in sums.values():
        assert (row["runs"], row["allocated_ms"], row["wait_ms"], row["gpu"]) == (1, 4 * 3_600_000, 90_000, "A100+H100")


def test_a_run_that_never_got_a_place_is_summed_up_when_it_ends(store, clock):
    run = store.submit(a_new_run(), clock())[0].id
    store.record(run, Event.CANCEL_ASKED, clock())
    (summary,) = rows(store, RunSummaryRow)
    assert (summary["state"], summary["attempts"], summary["gpus"], summary["wait_ms"]) == ("cancelled", 0, None, None)
    assert [(row["runs"], row["waited"]) for row in rows(store, NameSumRow)] == [(1, 0)] * 3


def test_a_node_is_blamed_only_where_infrastructure_failed_and_the_failure_names_it(store, clock):
    run = store.submit(a_new_run(), clock())[0].id
    attempt = begin(store, clock, run, "a", "b")
    end(store, clock, run, attempt, 60, Event.REQUEUED, Outcome.INFRA_ERROR, Failure("node_lost", "gone", node="b"))
    attempt = begin(store, clock, run, "a", "b")
    end(store, clock, run, attempt, 60, Event.FAILED, Outcome.USER_ERROR, Failure("exit", "rank 2", rank=2, node="b"))
    assert {(row["attempt"], row["node"]): row["at_fault"] for row in rows(store, AttemptNodeRow)} == {
        (1, "a"): False, (1, "b"): True, (2, "a"): False, (2, "b"): False,
    }  # fmt: skip
    days = {row["node"]: row for row in rows(store, NodeDayRow)}
    assert {node: (row["attempts"], row["infra_failures"]) for node, row in days.items()} == {"a": (2, 0), "b": (2, 1)}
    assert days["b"]["last_failure_at"] == START + timedelta(seconds=60)
    assert days["a"]["last_failure_at"] is None


def test_neighbours_are_the_other_runs_on_the_leaf_meanwhile(store, clock):
    first, second, third, before = (store.submit(a_new_run(), clock())[0].id for _ in range(4))
    gone = begin(store, clock, before, "b")
    end(store, clock, before, gone, 10)
    clock.advance(10)
    mine = begin(store, clock, first, "a")
    beside, elsewhere = begin(store, clock, second, "b"), begin(store, clock, third, "c")
    end(store, clock, second, beside, 10)
    end(store, clock, first, mine, 10)
    end(store, clock, third, elsewhere, 10)
    assert {row["run_id"]: row["neighbours"] for row in rows(store, RunSummaryRow)} == {
        before: 0, first: 1, second: 1, third: 0,
    }  # fmt: skip


def test_where_no_leaf_is_known_neighbours_are_those_on_the_node_and_many_runs_are_counted_at_once(store, clock):
    here, beside, elsewhere = (store.submit(a_new_run(), clock())[0].id for _ in range(3))
    for run, where in ((here, {"x": (0, 1)}), (beside, {"x": (2, 3)}), (elsewhere, {"y": (0, 1)})):
        store.place(run, a_placement(**where), clock())
    clock.advance(10)
    over = [store.finish(run, Event.SUCCEEDED, Outcome.SUCCEEDED, clock()) for run in (here, beside, elsewhere)]
    store.count(over, clock())
    summed = {row["run_id"]: row for row in rows(store, RunSummaryRow)}
    assert {run: row["neighbours"] for run, row in summed.items()} == {here: 1, beside: 1, elsewhere: 0}
    assert {row["allocated_ms"] for row in summed.values()} == {20_000}


def test_gpu_time_is_counted_on_the_days_on_which_it_was_used(store, clock):
    clock.now = datetime(2026, 1, 5, 18, tzinfo=UTC)
    run = store.submit(a_new_run(), clock())[0].id
    attempt = begin(store, clock, run, "a")
    end(store, clock, run, attempt, 36 * 3600)
    used = {row["day"]: row["allocated_ms"] for row in rows(store, GpuDayRow)}
    assert used == {
        date(2026, 1, 5): 12 * 3_600_000,
        date(2026, 1, 6): 48 * 3_600_000,
        date(2026, 1, 7): 12 * 3_600_000,
    }
    assert sum(row["cost"] for row in rows(store, GpuDayRow)) == pytest.approx(72 * 2.0)
    with store._database.read() as connection:
        seen = connection.execute(
            text("SELECT day, allocated_s, productive_s, cost FROM v_gpu_time ORDER BY day")
        ).all()
    assert [(str(row.day), row.allocated_s, row.productive_s) for row in seen] == [
        ("2026-01-05", 43200.0, 43200.0), ("2026-01-06", 172800.0, 172800.0), ("2026-01-07", 43200.0, 43200.0),
    ]  # fmt: skip


def test_the_view_of_gpu_time_has_what_live_runs_have_used_so_far(store, clock):
    run = store.submit(a_new_run(team="vision"), clock())[0].id
    begin(store, clock, run, "a")
    use(store, run, 1, "a", clock(), clock() + HOUR, price=3.0)
    with store._database.read() as connection:
        (seen,) = connection.execute(text("SELECT * FROM v_gpu_time")).mappings()
    assert (str(seen["day"]), seen["team"], seen["allocated_s"], seen["cost"]) == ("2026-01-05", "vision", 7200.0, 6.0)


def test_the_view_of_node_reliability_counts_failures_over_node_days(store, clock, raw, url):
    for node in ("a", "b"):
        store.upsert_nodes([NodeRecord(node, "10.0.0.1", "up", clock(), clock(), {"total": 4}, {})])
    run = store.submit(a_new_run(), clock())[0].id
    attempt = begin(store, clock, run, "a")
    end(
        store, clock, run, attempt, 48 * 3600, Event.FAILED, Outcome.INFRA_ERROR, Failure("node_lost", "gone", node="a")
    )
    with store._database.read() as connection:
        first, second = connection.execute(text("SELECT * FROM v_node_reliability ORDER BY node")).mappings()
    assert (first["attempts"], first["infra_failures"], first["gpu_hours"]) == (1, 1, 96.0)
    # Two of its four GPUs for two days are one day of the node.
    assert (first["node_days"], first["mtbf_hours"], first["failures_per_1000_node_days"]) == (1.0, 24.0, 1000.0)
    assert (second["attempts"], second["mtbf_hours"], second["last_failure_at"]) == (0, None, None)


def test_the_view_of_node_reliability_says_what_happened_to_a_node_and_what_holds_now(store, clock):
    for node in ("a", "b"):
        store.upsert_nodes([NodeRecord(node, "10.0.0.1", "up", clock(), clock(), {"total": 4}, {})])
    drain = Drain(clock(), "ana", "new cables")
    quarantine = Quarantine("quarantined", clock(), clock() + HOUR, 1, "it broke 2 of 4 attempts")
    at = clock()
    store.mark_nodes({"a": Mark(drain, quarantine)}, [NodeEvent(at, "a", "drained", "ana", "new cables")])
    store.mark_nodes({}, [NodeEvent(at, "a", "quarantined"), NodeEvent(at, "a", "probation")])
    for what in ("degraded", "fatal", "recovered"):
        store.remember_node("a", {}, [NodeEvent(at, "a", what)])
    with store._database.read() as connection:
        first, second = connection.execute(text("SELECT * FROM v_node_reliability ORDER BY node")).mappings()
    assert {name: first[name] for name in NODE_COUNTS.values()} == {
        "drains": 1, "quarantines": 1, "degraded": 1, "fatal": 1,
    }  # fmt: skip
    assert str(first["drained_at"]).startswith("2026-01-05 ")
    assert first["quarantine"] == "quarantined"
    assert {name: second[name] for name in (*NODE_COUNTS.values(), "drained_at", "quarantine")} == {
        "drains": 0, "quarantines": 0, "degraded": 0, "fatal": 0, "drained_at": None, "quarantine": None,
    }  # fmt: skip
    store.mark_nodes({"a": Mark(None, cleared(quarantine, clock()))}, [NodeEvent(at, "a", "undrained")])
    with store._database.read() as connection:
        now = connection.execute(text("SELECT drained_at, quarantine FROM v_node_reliability ORDER BY node")).first()
    assert now == (None, None)


def test_what_is_told_of_a_node_anew_counts_once(store, clock):
    """As a controller that was started tells it; or who drains a node again, with another reason."""
    told = (
        "fatal",
        "fatal",
        "degraded",
        "degraded",
        "fatal",
        "recovered",
        "fatal",
        "drained",
        "fatal",
        "drained",
        "undrained",
        "drained",
    )
    for what in told:
        store.mark_nodes({}, [NodeEvent(clock(), "a", what)])
    store.mark_nodes({}, [NodeEvent(clock(), "b", what) for what in told])
    for row in rows(store, NodeDayRow):
        assert (row["fatal"], row["degraded"], row["drains"], row["attempts"]) == (3, 1, 2, 0), row["node"]
    assert len(store.node_events(["a"], 100)) == len(told)


def test_what_happened_to_a_node_and_what_its_attempts_did_share_a_day_s_row(store, clock):
    store.mark_nodes({}, [NodeEvent(clock(), "a", "drained")])
    run = store.submit(a_new_run(), clock())[0].id
    end(store, clock, run, begin(store, clock, run, "a"), 60)
    store.mark_nodes({}, [NodeEvent(clock(), "a", "quarantined")])
    (day,) = rows(store, NodeDayRow)
    assert (day["attempts"], day["drains"], day["quarantines"], day["allocated_ms"]) == (1, 1, 1, 120_000)


def expected_sums(store):
    """What a GROUP BY over summaries and the ledger says."""
    runs = {run.id: run for run in store.runs()}
    summaries = [row for row in rows(store, RunSummaryRow) if row["state"] is not None]
    by_user, by_name, used = Counter(), Counter(), Counter()
    for row in summaries:
        run = runs[row["run_id"]]
        for period, start in periods_of(row["day"]).items():
            key = (period, start, run.user, run.spec.team or "", row["state"], row["gpu"] or "")
            by_user[key] += row["allocated_ms"]
            by_name[period, start, run.name, row["state"]] += 1
    ended = {row["run_id"] for row in summaries}
    for row in rows(store, GpuTimeRow):
        if row["run_id"] in ended:
            days = shares(row["since"], row["until"])
            pieces = spread({name: row[name] for name in TIMES}, [share for _, share in days])
            for (day, _), piece in zip(days, pieces, strict=True):
                used[day, row["node"]] += piece["allocated_ms"]
    return +by_user, +by_name, +used


def sums(store):
    by_user, by_name, used = Counter(), Counter(), Counter()
    for row in rows(store, RunSumRow):
        key = tuple(row[name] for name in ("period", "start", "username", "team", "state", "gpu"))
        by_user[key] += row["allocated_ms"]
    for row in rows(store, NameSumRow):
        by_name[row["period"], row["start"], row["name"], row["state"]] += row["runs"]
    for row in rows(store, NodeDayRow):
        used[row["day"], row["node"]] += row["allocated_ms"]
    return +by_user, +by_name, +used


steps = st.lists(
    st.tuples(
        st.sampled_from(["submit", "end", "requeue", "fail", "cancel", "retry", "lose more"]),
        st.integers(0, 3),
        st.integers(1, 200_000),
    ),
    min_size=4,
    max_size=14,
)


@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=steps)
def test_the_sums_are_what_their_sources_add_up_to_after_every_history(new_database, open_store, steps):
    store, clock = open_store(new_database()), ManualClock()
    store.claim_epoch("test", clock())
    runs = [store.submit(a_new_run(name=f"n{number}"), clock())[0].id for number in range(2)]
    for what, which, seconds in steps:
        run = store.get(runs[which % len(runs)])
        if what == "submit":
            runs.append(store.submit(a_new_run(user="ben", team="t"), clock())[0].id)
        elif what == "retry" and run.ended and run.state != "succeeded":
            store.record(run.id, Event.RETRY_ASKED, clock())
        elif what == "cancel" and run.state == "queued":
            store.record(run.id, Event.CANCEL_ASKED, clock())
        elif what == "lose more" and run.attempts:
            with store._database.write() as connection, recounting(connection, [run]):
                connection.execute(
                    update(GpuTimeRow)
                    .where(GpuTimeRow.run_id == run.id)
                    .values(allocated_ms=GpuTimeRow.allocated_ms + 7, lost_ms=GpuTimeRow.lost_ms + 7)
                )
        elif what in ("end", "requeue", "fail") and run.state == "queued":
            attempt = begin(store, clock, run.id, *(("a",), ("b", "c"))[which % 2])
            event = {"end": Event.SUCCEEDED, "requeue": Event.REQUEUED, "fail": Event.FAILED}[what]
            outcome = Outcome.SUCCEEDED if what == "end" else Outcome.INFRA_ERROR
            end(store, clock, run.id, attempt, seconds, event, outcome)
    assert sums(store) == expected_sums(store)
    for row in rows(store, NodeDayRow) + rows(store, RunSumRow):
        assert row["allocated_ms"] == sum(row[name] for name in TIMES if name != "allocated_ms")


@given(
    total=st.lists(st.integers(0, 10**12), min_size=5, max_size=5),
    weights=st.lists(st.floats(0.001, 1000), min_size=1, max_size=40),
)
def test_time_that_is_spread_keeps_every_millisecond_of_every_part(total, weights):
    parts = dict(zip(TIMES[1:], total, strict=True)) | {"allocated_ms": sum(total)}
    pieces = list(spread(parts, weights))
    assert len(pieces) == len(weights)
    for name, value in parts.items():
        assert sum(piece[name] for piece in pieces) == value
    assert all(piece["allocated_ms"] == sum(piece[name] for name in TIMES[1:]) for piece in pieces)


@given(
    start=st.datetimes(datetime(2026, 1, 1), datetime(2026, 3, 1), timezones=st.just(UTC)),
    seconds=st.floats(0, 40 * 86400),
)
def test_a_span_is_on_each_day_that_it_touches_for_its_share(start, seconds):
    found = shares(start, start + timedelta(seconds=seconds))
    assert sum(share for _, share in found) == pytest.approx(1)
    days = [day for day, _ in found]
    assert days == [days[0] + timedelta(days=number) for number in range(len(days))]
    assert days[0] == start.date()
