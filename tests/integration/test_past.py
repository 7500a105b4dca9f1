"""What is done with the past: runs held against each other, exported, and forgotten; on SQLite and PostgreSQL alike."""

import asyncio
import csv
import io
import json
import os
from contextlib import suppress
from datetime import timedelta

import pytest
from sqlalchemy import insert, select, text
from sqlalchemy.exc import DBAPIError

from orchestrator.control.expiry import Expiry
from orchestrator.control.runtime import Runtime, Settings
from orchestrator.health.failure import Failure
from orchestrator.history import export
from orchestrator.history.export import FIELDS, Csv, JsonLines, Parquet, whole_file
from orchestrator.history.filters import RunFilter
from orchestrator.history.measured_models import GangSampleRow, ProgressRow
from orchestrator.history.retention import Keep
from orchestrator.history.schema import METADATA
from orchestrator.placement.fabric import NodeFabric
from orchestrator.scheduling.lifecycle import Event, Outcome
from orchestrator.scheduling.run import Code, NewRun
from orchestrator.testing import START, a_placement, a_spec

FABRIC = {f"n{number}": NodeFabric(f"leaf-{number // 2}", "H100") for number in range(6)}
DAY = 86_400.0


def measured(store, run, attempt, since, until, speed):
    """What the controller records of an attempt meanwhile: progress, and one stretch of its series."""
    with store._database.write() as connection:
        zeros = dict.fromkeys(("busy_ms", "save_ms", "idle_ms", "unsaved_ms", "saves", "saved_steps"), 0)
        connection.execute(
            insert(ProgressRow).values(
                run_id=run, attempt=attempt, source="auto", steps=10, samples=640, samples_per_s=speed, step_time=64 / speed,
                updated_at=until, **zeros,
            )
        )  # fmt: skip
        connection.execute(
            insert(GangSampleRow).values(
                run_id=run, attempt=attempt, at=since, seconds=10, measured_ms=5000, steps=10, samples=640
            )
        )


def ran(store, clock, nodes=("n0",), speed=1000.0, nccl="2.29", code="a" * 64, fails=False, **spec):
    """A run that was on these nodes for ten minutes."""
    run = store.submit(NewRun(a_spec(**spec), "ana", Code(code), "/w"), clock())[0].id
    store.place(
        run, a_placement("leaf" if len(nodes) > 1 else "node", **dict.fromkeys(nodes, (0, 1))), clock(), fabric=FABRIC
    )
    store.record_environment(run, 1, {node: {"nccl": nccl, "torch": "2.8.0"} for node in nodes})
    since = clock()
    until = clock.advance(600)
    if speed is not None:
        measured(store, run, 1, since, until, speed)
    event, outcome, failure = Event.SUCCEEDED, Outcome.SUCCEEDED, None
    if fails:
        event, outcome = Event.FAILED, Outcome.USER_ERROR
        failure = Failure("exit", "rank 0 ended with 1", rank=0, node=nodes[0])
    store.finish(run, event, outcome, clock(), failure=failure)
    store.count([store.get(run)], clock())
    clock.advance(60)
    return run


# --- compared ---


def test_a_slow_run_is_held_against_its_like_and_the_known_cause_comes_first(store, clock):
    together, apart = ("n0", "n1"), ("n0", "n2")
    for nodes in (together, apart, together, apart, together, together, together, together, together):
        ran(store, clock, nodes, 1000.0 if nodes is together else 820.0)
    for unlike in ({"name": "other"}, {"speed": None}):
        ran(store, clock, together, **{"speed": 5.0, **unlike})
    ran(store, clock, ("n0",), 5.0)  # one node: another size
    slow = ran(store, clock, apart, 820.0, nccl="2.27")
    found = store.against_its_like(store.get(slow))
    assert (found["slower"], found["usual_speed"], found["baseline"]) == (True, 1000.0, [5, 6, 7, 8, 9])
    assert [(one["factor"], one["standing"]) for one in found["suspects"]] == [
        ("leaves", "supported"), ("node n2", "supported"), ("nccl", "untested"),
    ]  # fmt: skip
    assert found["text"] == (
        "18 % slower than the last five (820 for 1,000 samples/s); differs: 2 leaves instead of 1 (2 of 2 earlier runs with it "
        "were slow too, by 18 %; node n2 always changed with it), node n2 (2 of 2 earlier runs with it were slow too, by 18 %; "
        "leaves always changed with it), NCCL 2.27 for 2.29 (only this run has it)"
    )
    assert json.dumps(found)


def test_a_run_without_a_past_or_without_a_speed_is_compared_with_nothing(store, clock):
    first = ran(store, clock)
    silent = ran(store, clock, speed=None)
    assert store.against_its_like(store.get(first)) is None
    assert store.against_its_like(store.get(silent)) is None
    alone = store.compare([first])
    assert (alone["explanation"], [one["id"] for one in alone["runs"]]) == (None, [first])


def test_a_run_that_lives_is_compared_by_its_speed_so_far(store, clock):
    for _ in range(3):
        ran(store, clock)
    run = store.submit(NewRun(a_spec(), "ana", Code("a" * 64), "/w"), clock())[0].id
    store.place(run, a_placement(n0=(0, 1)), clock(), fabric=FABRIC)
    measured(store, run, 1, clock(), clock.advance(60), 500.0)
    assert store.against_its_like(store.get(run))["drop"] == 0.5


def test_runs_side_by_side_show_what_differs_and_who_else_was_there(store, clock):
    one = ran(store, clock, speed=1000.0, run="train.py --batch 64", env={"A": "1"})
    beside = store.submit(NewRun(a_spec(name="noise"), "ben", None, "/w"), clock())[0].id
    store.place(beside, a_placement(n1=(0,)), clock(), fabric=FABRIC)
    two = ran(store, clock, speed=800.0, run="train.py --batch 32", nccl="2.27", code="b" * 64)
    found = store.compare([str(one), two])
    assert [run["samples_per_s"] for run in found["runs"]] == [1000.0, 800.0]
    assert {row["factor"]: row["values"] for row in found["differs"]} == {
        "nccl": ["2.29", "2.27"],
        "code": ["a" * 12, "b" * 12],
        "spec.run": ["train.py --batch 64", "train.py --batch 32"],
        "spec.env.A": ["1", None],
        "neighbours": ["0", "1-4"],
    }
    assert found["neighbours"][1] == {
        "run": two,
        "count": 1,
        "others": [{"id": beside, "name": "noise", "user": "ben"}],
    }
    assert (found["explanation"]["run"], found["explanation"]["baseline"]) == (two, [one])
    assert {one["standing"] for one in found["explanation"]["suspects"]} == {"untested"}


def test_runs_of_different_sizes_are_compared_by_the_speed_of_a_rank(store, clock):
    small = ran(store, clock, ("n0",), 1000.0)
    large = ran(store, clock, ("n0", "n1"), 1800.0)
    explanation = store.compare([small, large])["explanation"]
    assert explanation["run"] == large
    assert explanation["drop"] == pytest.approx(0.1)


def test_a_run_that_there_is_not_is_named(store, clock):
    assert store.compare([str(ran(store, clock)), "nothing"]) == "nothing"


# --- exported ---


def exported(store, what, make=Csv, wanted=None):
    file = io.StringIO()
    writer = make(file, FIELDS[what])
    for row in store.export(what, wanted or RunFilter()):
        writer.write(row)
    writer.close()
    return file.getvalue()


@pytest.fixture
def three(store, clock, monkeypatch):
    monkeypatch.setattr(export, "RUNS_AT_ONCE", dict.fromkeys(FIELDS, 2))
    ran(store, clock, tags={"a": "1,2"}, team="vision")
    ran(store, clock, ("n0", "n2"), fails=True)
    ran(store, clock, speed=None)
    return store


def test_runs_are_exported_a_row_each_in_their_own_order(three):
    rows = list(csv.DictReader(io.StringIO(exported(three, "runs"))))
    assert [row["id"] for row in rows] == ["1", "2", "3"]
    assert list(rows[0]) == list(FIELDS["runs"])
    assert (rows[0]["tags"], rows[0]["team"], rows[0]["allocated_s"]) == ('{"a": "1,2"}', "vision", "1200.0")
    assert (rows[1]["state"], rows[1]["failure_kind"], rows[2]["samples_per_s"]) == ("failed", "exit", "")
    assert rows[0]["submitted_at"] == "2026-01-05T09:00:00Z"


def test_filters_hold_for_the_export(three):
    assert [
        json.loads(line)["id"] for line in exported(three, "runs", JsonLines, RunFilter(node="n2")).splitlines()
    ] == [2]
    assert exported(three, "attempts", JsonLines, RunFilter(user="nobody")) == ""


def test_attempts_are_exported_with_their_place_their_failure_and_their_figures(three):
    first, second, third = (json.loads(line) for line in exported(three, "attempts", JsonLines).splitlines())
    assert list(first) == list(FIELDS["attempts"])
    assert (first["run_id"], first["number"], first["outcome"], first["samples_per_s"]) == (1, 1, "succeeded", 1000.0)
    assert (second["nodes"], second["leaves"], second["gpu"], second["gpus"]) == ("n0,n2", "leaf-0,leaf-1", "H100", 4)
    assert (second["failure_kind"], second["failure_node"], second["failure_rank"]) == ("exit", "n0", 0)
    assert (second["allocated_s"], third["steps"], third["started_at"][-1]) == (2400.0, None, "Z")


def test_series_are_exported_a_row_for_each_stretch(three):
    rows = [json.loads(line) for line in exported(three, "series", JsonLines).splitlines()]
    assert [(row["run_id"], row["seconds"], row["samples_per_s"]) for row in rows] == [(1, 10, 128.0), (2, 10, 128.0)]


def test_parquet_has_typed_columns(three, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    with whole_file(tmp_path / "runs.parquet", replace=False, binary=True) as file:
        writer = Parquet(file, FIELDS["runs"])
        for row in three.export("runs", RunFilter()):
            writer.write(row)
        writer.close()
    table = parquet.read_table(tmp_path / "runs.parquet")
    assert table.column("id").to_pylist() == [1, 2, 3]
    assert table.column("submitted_at").to_pylist()[0] == START
    assert table.column("tags").to_pylist()[0] == '{"a": "1,2"}'
    assert str(table.schema.field("samples_per_s").type) == "double"


def test_a_file_appears_whole_or_not_at_all(tmp_path):
    target = tmp_path / "runs.csv"
    with suppress(ZeroDivisionError), whole_file(target, replace=False, binary=False) as file:
        file.write("half")
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []
    with whole_file(target, replace=False, binary=False) as file:
        file.write("first")
        assert not target.exists()
    with pytest.raises(FileExistsError), whole_file(target, replace=False, binary=False):
        pass
    with whole_file(target, replace=True, binary=False) as file:
        file.write("second")
    assert target.read_text() == "second"
    assert list(tmp_path.iterdir()) == [target]


# --- forgotten ---


def count(store, table):
    with store._database.read() as connection:
        return len(connection.execute(select(table)).all())


def test_a_run_that_expired_is_gone_with_all_its_details_and_still_counted(store, clock):
    old = ran(store, clock, tags={"a": "1"})
    clock.advance(10 * DAY)
    young = ran(store, clock)
    before = store.groups(RunFilter(), ("user",))
    with store._database.read() as connection:
        used = connection.execute(text("SELECT sum(allocated_s) FROM v_gpu_time")).scalar()
    assert store.expire_runs(clock() - timedelta(days=5), clock(), 10) == [old]
    assert store.expire_runs(clock() - timedelta(days=5), clock(), 10) == []
    assert [run.id for run in store.runs()] == [young]
    assert store.get(old) is None
    assert (
        store.expired(old)
        == f"run {old} (train) succeeded and has expired: its details were deleted on 2026-01-15 (history: keep_runs)"
    )
    assert store.expired(young) is None
    assert store.groups(RunFilter(), ("user",)) == before
    with store._database.read() as connection:
        assert connection.execute(text("SELECT sum(allocated_s) FROM v_gpu_time")).scalar() == used
    kept = {"runs": 1, "attempts": 1, "allocations": 2, "events": 3, "tags": 0, "attempt_nodes": 1, "run_summaries": 1,
            "gpu_time": 1, "attempt_progress": 1, "gang_samples": 1}  # fmt: skip
    assert {name: count(store, METADATA.tables[name]) for name in kept} == kept
    assert store.verify(young)


def test_no_more_runs_expire_at_once_than_asked_for_the_oldest_first(store, clock):
    runs = [ran(store, clock) for _ in range(3)]
    assert store.expire_runs(clock() + timedelta(1), clock(), 2) == runs[:2]


def test_a_run_that_lives_or_whose_gpus_are_fenced_does_not_expire(store, clock):
    lives = store.submit(NewRun(a_spec(), "ana", None, "/w"), clock())[0].id
    fenced = store.submit(NewRun(a_spec(), "ana", None, "/w"), clock())[0].id
    store.place(fenced, a_placement(n0=(0,)), clock())
    until = {"n0": clock() + timedelta(seconds=30)}
    store.count([store.finish(fenced, Event.FAILED, Outcome.INFRA_ERROR, clock(), fenced=until)], clock())
    clock.advance(10 * DAY)
    assert store.expire_runs(clock(), clock(), 10) == []
    assert {run.id for run in store.runs()} == {lives, fenced}


def test_events_go_only_with_a_run_that_is_named_as_expired(store, clock, raw, url):
    run = ran(store, clock)
    waits = store.submit(NewRun(a_spec(), "ana", None, "/w"), clock())[0].id
    expire = (
        "INSERT INTO expired_runs (run_id, name, state, expired_at) VALUES ({}, 'x', 'failed', '2026-01-01 00:00:00')"
    )
    with raw(url) as connection:
        for refused in (f"DELETE FROM events WHERE run_id = {run}", expire.format(waits)):
            with pytest.raises(DBAPIError, match=r"append-only|only a run that has ended expires"):
                connection.execute(text(refused))
        connection.execute(text(expire.format(run)))
        for refused in ("DELETE FROM events", f"UPDATE events SET reason = 'x' WHERE run_id = {run}"):
            with pytest.raises(DBAPIError, match="append-only"):
                connection.execute(text(refused))
        connection.execute(text(f"DELETE FROM events WHERE run_id = {run}"))


def test_series_go_earlier_than_their_runs(store, clock):
    old = ran(store, clock)
    clock.advance(10 * DAY)
    young = ran(store, clock)
    after, more = store.drop_series(clock() - timedelta(days=5), 0, 10)
    assert (after, more) == (old, False)
    assert {row["run_id"] for row in store.export("series", RunFilter())} == {young}
    assert store.rows(RunFilter(sort="id"), ["id", "samples_per_s"]) == [
        {"id": old, "samples_per_s": 1000.0}, {"id": young, "samples_per_s": 1000.0},
    ]  # fmt: skip
    ran(store, clock)
    assert store.drop_series(clock() + timedelta(1), 0, 1) == (young, True)


def test_a_sweep_forgets_runs_series_logs_and_code_that_nobody_names(store, clock, tmp_path):
    old = ran(store, clock, code="a" * 64)
    clock.advance(20 * DAY)
    middle = ran(store, clock, code="b" * 64)
    clock.advance(10 * DAY)
    young = ran(store, clock, code="c" * 64)
    for run in (old, middle, young):
        (tmp_path / "logs" / str(run) / "1").mkdir(parents=True)
    (tmp_path / "code").mkdir()
    snapshots = {letter: tmp_path / "code" / f"{letter * 64}.tar.gz" for letter in "abcd"}
    for letter, path in snapshots.items():
        path.touch()
        if letter != "d":  # which was sent just now, and is about to be submitted
            os.utime(path, (0, 0))

    async def sweep():
        settings = Settings(tmp_path, tmp_path, keep=Keep(runs=25 * DAY, series=5 * DAY, logs=5 * DAY))
        runtime = Runtime(store, settings, now=clock)
        await Expiry(runtime).sweep()
        await runtime.close()

    asyncio.run(sweep())
    assert {run.id for run in store.runs()} == {middle, young}
    assert {row["run_id"] for row in store.export("series", RunFilter())} == {young}
    assert {path.name for path in (tmp_path / "logs").iterdir()} == {str(young)}
    assert {letter for letter, path in snapshots.items() if path.exists()} == {"b", "c", "d"}


def test_the_first_run_of_an_array_stays_until_the_others_are_gone(store, clock):
    first = store.submit(NewRun(a_spec(array={"seed": "0..1"}, run="train.py {seed}"), "ana", None, "/w"), clock())[
        0
    ].id
    store.record(first, Event.CANCEL_ASKED, clock())
    clock.advance(10 * DAY)
    assert store.expire_runs(clock(), clock(), 10) == []
    store.record(first + 1, Event.CANCEL_ASKED, clock())
    clock.advance(DAY)
    assert store.expire_runs(clock(), clock(), 10) == [first + 1]
    assert store.expire_runs(clock(), clock(), 10) == [first]
    assert store.runs() == []
