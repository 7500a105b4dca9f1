"""What the history answers to filters, columns and groups, on SQLite and PostgreSQL alike."""

from collections import defaultdict
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import insert, update

from orchestrator.health.failure import Failure
from orchestrator.history import filters
from orchestrator.history.asking import asked
from orchestrator.history.filters import SORTS, RunFilter
from orchestrator.history.groups import DIMENSIONS, FIGURES
from orchestrator.history.listing import COLUMNS
from orchestrator.history.measured_models import GpuTimeRow, ProgressRow
from orchestrator.history.store import Store
from orchestrator.history.summaries import recounting
from orchestrator.history.summary_models import RunSumRow
from orchestrator.placement.fabric import NodeFabric
from orchestrator.scheduling.lifecycle import Event, Outcome
from orchestrator.scheduling.run import Code, NewRun
from orchestrator.testing import a_placement, a_spec

MONDAY = datetime(2026, 1, 5, tzinfo=UTC)
H100, A100 = "NVIDIA H100 80GB HBM3", "NVIDIA A100-SXM4-80GB"
FABRIC = {
    "n1": NodeFabric("leaf-1", H100),
    "n2": NodeFabric("leaf-1", H100),
    "n3": NodeFabric("leaf-2", A100),
}


@dataclass
class Past:
    """Writes runs that are over, each hour of the clock another."""

    store: object
    now: datetime = MONDAY
    ids: list[int] = field(default_factory=list)
    figures: dict[tuple[int, int], dict[str, int]] = field(default_factory=dict)

    def attempt(self, run, nodes, minutes, event=Event.SUCCEEDED, outcome=Outcome.SUCCEEDED, failure=None, speed=None):
        placement = a_placement(**dict.fromkeys(nodes, (0, 1)))
        number = len(self.store.place(run, placement, self.now, fabric=FABRIC).attempts)
        self.store.record(run, Event.STARTED, self.now)
        self.now += timedelta(minutes=minutes)
        if speed is not None:
            measured = {
                "samples_per_s": speed,
                "step_time": 64 / speed,
                "steps": 100,
                "samples": 6400,
                "source": "auto",
            }
            zeros = dict.fromkeys(("busy_ms", "save_ms", "idle_ms", "unsaved_ms", "saves", "saved_steps"), 0)
            with self.store._database.write() as connection:
                connection.execute(
                    insert(ProgressRow).values(run_id=run, attempt=number, updated_at=self.now, **measured, **zeros)
                )
        self.store.finish(run, event, outcome, self.now, failure=failure)
        ended = self.store.get(run)
        self.store.count([ended], self.now)
        allocated = round(minutes * 60_000) * 2
        lost = allocated // 2 if outcome is Outcome.INFRA_ERROR else 0
        productive = allocated - 1000 - lost
        self.figures[run, number] = {
            **{"starting_ms": 1000, "productive_ms": productive, "lost_ms": lost},
            **{"checkpoint_ms": 0, "idle_ms": 0},
        }
        with self.store._database.write() as connection, recounting(connection, [ended]):
            for each in range(1, number + 1):  # a count is of all attempts of a run
                connection.execute(
                    update(GpuTimeRow)
                    .where(GpuTimeRow.run_id == run, GpuTimeRow.attempt == each)
                    .values(price=3.6, **self.figures[run, each])
                )

    def submit(self, user="ana", code=None, **spec):
        run = self.store.submit(NewRun(a_spec(**spec), user, code, "/w"), self.now)[0].id
        self.ids.append(run)
        self.now += timedelta(minutes=1)
        return run


@pytest.fixture(scope="module", params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def new(request):
    """A function that opens a store of a new database, for all tests of this file that only read it."""
    opened = []

    def open_one():
        opened.append(Store.open(request.getfixturevalue(f"new_{request.param}")()))
        opened[-1].claim_epoch("test", MONDAY)
        return opened[-1]

    yield open_one
    for one in opened:
        one.close()


@pytest.fixture(scope="module")
def past(new):
    """1 fast, on n1 and n2 · 2 lost n3, then slow on n1 · 3 its script failed, a week later · 4 cancelled · 5 waits."""
    store = new()
    past = Past(store)
    code = Code("ab" * 32, "cd" * 20, False)
    one = past.submit(name="resnet-a", team="vision", tags={"sweep": "a", "lr": "0.1"}, code=code)
    past.attempt(one, ("n1", "n2"), 60, speed=800.0)
    two = past.submit(name="resnet-b", team="vision", tags={"sweep": "b"})
    lost = Failure("node_lost", "gone", node="n3")
    past.attempt(two, ("n3",), 10, Event.REQUEUED, Outcome.INFRA_ERROR, lost)
    past.attempt(two, ("n1",), 30, speed=200.0)
    past.now = MONDAY + timedelta(days=7)
    three = past.submit("ben", name="bert", team="text")
    past.attempt(three, ("n3",), 20, Event.FAILED, Outcome.USER_ERROR, Failure("exit", "rank 0 ended with 1", rank=0))
    four = past.submit("ben", name="bert")
    store.record(four, Event.CANCEL_ASKED, past.now)
    past.submit(name="gpt", team="text")
    return past


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        ({"name": "resnet-*"}, [2, 1]),
        ({"name": "resnet-?"}, [2, 1]),
        ({"name": ("bert", "gp*")}, [5, 4, 3]),
        ({"name": "*"}, [5, 4, 3, 2, 1]),
        ({"name": "r[e]snet*"}, []),
        ({"name": "resnet%"}, []),
        ({"user": ("ana", "ben"), "state": ("failed", "queued")}, [5, 3]),
        ({"until": MONDAY + timedelta(days=1)}, [2, 1]),
        ({"since": MONDAY + timedelta(minutes=1), "until": MONDAY + timedelta(days=1)}, [2]),
        ({"node": "n3"}, [3, 2]),
        ({"node": "n1", "team": "vision", "tags": {"sweep": "a"}}, [1]),
        ({"gpu": "h100"}, [2, 1]),
        ({"gpu": "A100"}, [3]),
        ({"gpu": "v100"}, []),
        ({"code": "abab"}, [1]),
        ({"code": "CDCD"}, [1]),
        ({"code": "ff"}, []),
        ({"outcome": "infra_error"}, [2]),
        ({"failure": ("node_lost", "exit")}, [3, 2]),
        ({"min_throughput": 500}, [1]),
        ({"max_throughput": 500}, [2]),
        ({"min_throughput": 100, "max_throughput": 900, "user": "ana"}, [2, 1]),
        ({"sort": "-samples_per_s"}, [1, 2, 5, 4, 3]),
        ({"sort": "samples_per_s", "limit": 3}, [2, 1, 3]),
        ({"sort": "-allocated_s", "limit": 3}, [1, 2, 3]),
        ({"sort": "-nodes", "node": "n1"}, [1, 2]),
        ({"sort": "team"}, [3, 5, 1, 2, 4]),
    ],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("few", [0, 20_000], ids=["all filters are common", "the rarest filter leads"])
def test_runs_are_found_by_every_filter_whichever_way_leads_to_them(past, wanted, expected, few, monkeypatch):
    monkeypatch.setattr(filters, "FEW", few)
    assert [run.id for run in past.store.runs(RunFilter(**wanted))] == expected


def test_columns_have_what_was_recorded(past):
    first, second = past.store.rows(RunFilter(name="resnet-*", sort="id"), list(COLUMNS))
    assert list(first) == list(COLUMNS)
    expected = {
        "name": "resnet-a", "user": "ana", "team": "vision", "state": "succeeded", "submitted_at": "2026-01-05T00:00:00Z",
        "attempts": 1, "device": "cuda", "gpu": H100, "gpus": 4, "nodes": 2, "leaves": 1, "level": "node",
        "outcome": "succeeded", "failure_kind": None, "wait_s": 60.0, "samples_per_s": 800.0, "steps": 100, "samples": 6400,
        "allocated_s": 14400.0, "starting_s": 2.0, "productive_s": 14398.0, "lost_s": 0.0, "tags": {"lr": "0.1", "sweep": "a"},
        "code_git": "cd" * 20, "code_dirty": False, "neighbours": 0,
    }  # fmt: skip
    assert {name: first[name] for name in expected} == expected
    assert first["took_s"] == pytest.approx(3600)  # SQLite's julianday counts days, in a double
    assert first["cost"] == pytest.approx(4 * 3.6)
    assert {name: second[name] for name in ("attempts", "gpu", "leaves", "outcome", "lost_s", "allocated_s")} == {
        "attempts": 2, "gpu": H100, "leaves": 1, "outcome": "succeeded", "lost_s": 600.0, "allocated_s": 4800.0,
    }  # fmt: skip


def test_groups_are_sums_of_the_runs_that_a_list_would_show(past):
    rows = past.store.groups(RunFilter(), ("team", "week"))
    assert [(row["team"], row["week"], row["runs"]) for row in rows] == [
        ("text", "2026-01-12", 2), ("vision", "2026-01-05", 2), (None, "2026-01-12", 1),
    ]  # fmt: skip
    text, vision, alone = rows
    assert tuple(vision)[2:] == FIGURES
    assert {name: vision[name] for name in ("succeeded", "failed", "success_rate", "attempts")} == {
        "succeeded": 2, "failed": 0, "success_rate": 1.0, "attempts": 3,
    }  # fmt: skip
    assert (
        vision["allocated_s"]
        == 14400 + 4800
        == sum(vision[f"{part}_s"] for part in ("starting", "productive", "checkpoint", "lost", "idle"))
    )
    assert (vision["wait_s"], vision["samples_per_s"], vision["cost"]) == (
        60.0,
        500.0,
        pytest.approx(3.6 * (4 + 8 / 6)),
    )
    assert (text["runs"], text["failed"], text["success_rate"], text["samples_per_s"]) == (2, 1, 0.0, None)
    assert (alone["cancelled"], alone["success_rate"], alone["goodput"], alone["wait_s"]) == (1, None, None, None)


@pytest.mark.parametrize("by", ["day", "month", "gpu", "name", "state", "user"])
def test_each_run_is_in_exactly_one_group(past, by):
    rows = past.store.groups(RunFilter(), (by,))
    assert sum(row["runs"] for row in rows) == 5
    assert len({row[by] for row in rows}) == len(rows)


def test_groups_are_sorted_by_their_figures_and_cut(past):
    assert [row["user"] for row in past.store.groups(RunFilter(), ("user",), "-runs")] == ["ana", "ben"]
    assert [row["team"] for row in past.store.groups(RunFilter(), ("team",), "allocated_s")] == [None, "text", "vision"]
    assert [row["name"] for row in past.store.groups(RunFilter(limit=1), ("name",), "-samples_per_s")] == ["resnet-a"]
    assert [row["team"] for row in past.store.groups(RunFilter(), ("team",), "samples_per_s")][:1] == ["vision"]
    with pytest.raises(ValueError, match="sort: 'speed' is not one of team, runs"):
        past.store.groups(RunFilter(), ("team",), "speed")
    with pytest.raises(ValueError, match="by: 'color' is not one of user, team"):
        past.store.groups(RunFilter(), ("color",))


def counted(rows, by):
    """The groups of flat rows, counted by hand."""
    groups = defaultdict(lambda: [0, 0.0])
    for row in rows:
        at = datetime.fromisoformat(row["submitted_at"]).date()
        calendar = {"day": at, "week": at - timedelta(days=at.weekday()), "month": at.isoformat()[:7]}
        key = tuple(str(calendar[name]) if name in calendar else row[name] for name in by)
        groups[key][0] += 1
        groups[key][1] += row["allocated_s"] or 0
    return {key: tuple(value) for key, value in groups.items()}


moments = st.none() | st.integers(0, 60 * 24 * 4).map(lambda quarter: MONDAY + timedelta(minutes=15 * quarter))


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    by=st.lists(st.sampled_from(DIMENSIONS), min_size=1, max_size=3, unique=True),
    since=moments,
    until=moments,
    other=st.sampled_from(
        [
            {},
            {"user": "ana"},
            {"team": "text"},
            {"state": "succeeded"},
            {"gpu": "h100"},
            {"name": "resnet-*"},
            {"node": "n1"},
        ]
    ),
)
def test_groups_count_what_the_list_has_however_the_filters_cut_the_days(month, by, since, until, other):
    wanted = {"since": since, "until": until, **other}
    rows = month.rows(RunFilter(**wanted), list(COLUMNS))
    expected = counted(rows, by)
    found = {
        tuple(row[name] for name in by): (row["runs"], row["allocated_s"])
        for row in month.groups(RunFilter(**wanted), by)
    }
    assert found == expected


@pytest.fixture(scope="module")
def month(new):
    """A run every nine hours or so for a month, some of them queued and running at its end."""
    store = new()
    past = Past(store)
    for number in range(60):
        past.now = MONDAY + timedelta(hours=9.7 * number)
        run = past.submit(
            ("ana", "ben")[number % 2],
            name=("resnet-a", "bert", "resnet-b")[number % 3],
            team=(None, "text")[number % 5 > 2],
        )
        if number % 7 == 3:
            store.record(run, Event.CANCEL_ASKED, past.now)
        elif number < 55:
            past.attempt(run, (("n1",), ("n3",), ("n1", "n2"))[number % 3], 100 + number)
    store.place(past.ids[-2], a_placement(n1=(0,)), past.now, fabric=FABRIC)
    return store


def test_groups_over_everything_take_ended_runs_from_the_sums_over_periods(new, monkeypatch):
    store = new()
    past = Past(store)
    past.attempt(past.submit(team="vision"), ("n1",), 10)
    past.submit(team="vision")
    with store._database.write() as connection:
        connection.execute(update(RunSumRow).values(runs=41))
    assert [(row["team"], row["runs"]) for row in store.groups(RunFilter(), ("team",))] == [("vision", 42)]
    assert [(row["team"], row["runs"]) for row in store.groups(RunFilter(node="n1"), ("team",))] == [("vision", 1)]


@pytest.mark.parametrize(
    ("query", "complaint"),
    [
        ({"columns": ["spec"]}, "columns: 'spec' is not one of id"),
        ({"columns": ["id"], "by": ["team"]}, "exclude each other"),
        ({"by": ["team; DROP TABLE runs"]}, "is not one of user, team"),
        ({"state": ["lost"]}, "state: 'lost' is none of queued"),
        ({"outcome": ["bad"]}, "outcome: 'bad' is none of succeeded"),
        ({"since": ["soon"]}, "since: 'soon' is not a time"),
        ({"since": ["2026-01-01"]}, "lacks its zone"),
        ({"min_throughput": ["fast"]}, "is not a number"),
        ({"min_throughput": ["nan"]}, "must be 0 or more"),
        ({"limit": ["-1"]}, "limit: '-1' is not a number"),
        ({"sort": ["spec"]}, "sort: 'spec' is not one of id"),
    ],
)
def test_what_cannot_be_asked_is_refused_in_words(query, complaint):
    with pytest.raises(ValueError, match=complaint):
        asked(query)


@pytest.mark.parametrize("sort", [*SORTS, *(f"-{name}" for name in SORTS)])
def test_every_order_has_every_run_once(past, sort):
    assert sorted(run.id for run in past.store.runs(RunFilter(sort=sort))) == [1, 2, 3, 4, 5]
