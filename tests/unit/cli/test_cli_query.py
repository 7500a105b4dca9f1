"""runs by columns and groups, compare, export: what is asked, and how the answers are printed."""

from __future__ import annotations

import csv
import io
import json

import pytest

from cli import query
from orchestrator.history import filters, groups, listing
from orchestrator.history.store import Store
from orchestrator.scheduling.lifecycle import Event, Outcome
from orchestrator.testing import START, a_new_run, a_placement

GROUP = {
    "team": "vision", "week": "2026-01-05", "runs": 2, "succeeded": 1, "failed": 1, "cancelled": 0, "success_rate": 0.5,
    "attempts": 3, "wait_s": 61.5, "allocated_s": 7200.0, "starting_s": 0.0, "productive_s": 7200.0, "checkpoint_s": 0.0,
    "lost_s": 0.0, "idle_s": 0.0, "goodput": 1.0, "samples_per_s": None, "samples": None, "cost": None,
}  # fmt: skip
SUSPECT = {
    "factor": "leaves",
    "text": "2 leaves instead of 1",
    "evidence": "only this run has it",
    "standing": "untested",
}
COMPARED = {
    "runs": [
        {"id": 41, "name": "resnet50", "state": "succeeded", "samples_per_s": 1000.0, "samples_per_s_per_gpu": 125.0,
         "step_time_s": 0.064, "gpus": 8},
        {"id": 42, "name": "resnet50", "state": "succeeded", "samples_per_s": 820.0, "samples_per_s_per_gpu": 102.5,
         "step_time_s": 0.078, "gpus": 8},
    ],
    "differs": [{"factor": "leaves", "kind": "placement", "values": ["1", "2"]}],
    "neighbours": [{"run": 42, "count": 1, "others": [{"id": 40, "name": "bert", "user": "bo"}]}],
    "explanation": {"run": 42, "text": "18 % slower than the run before it", "slower": True, "suspects": [SUSPECT]},
}  # fmt: skip


def test_the_words_of_the_command_are_those_of_the_history():
    assert tuple(filters.SORTS) == query.SORTS
    assert tuple(listing.COLUMNS) == query.COLUMNS
    assert (groups.DIMENSIONS, groups.FIGURES) == (query.DIMENSIONS, query.FIGURES)


def test_every_new_filter_reaches_the_controller(orch, stub):
    stub.answers["GET /runs"] = (200, [])
    orch(
        "runs", "--name", "a*", "--name", "b", "--node", "n1", "--gpu", "h100", "--code", "abc", "--outcome", "infra_error",
        "--failure", "node_lost", "--min-throughput", "10", "--max-throughput", "20.5", "--until", "2026-01-01",
    )  # fmt: skip
    asked = stub.asked[-1][1]
    assert asked.pop("until")[0].startswith("2026-01-01T")
    assert asked == {
        "name": ["a*", "b"], "node": ["n1"], "gpu": ["h100"], "code": ["abc"], "outcome": ["infra_error"],
        "failure": ["node_lost"], "min_throughput": ["10.0"], "max_throughput": ["20.5"], "sort": ["-submitted"],
    }  # fmt: skip


def test_columns_are_printed_as_they_were_asked_for(orch, stub):
    stub.answers["GET /runs"] = (200, [{"id": 1, "samples_per_s": 812.5, "tags": {"a": "b"}}])
    assert orch("runs", "--columns", "id,samples_per_s,tags").stdout == '1\t812.5\t{"a": "b"}\n'
    assert stub.asked[-1][1]["columns"] == ["id,samples_per_s,tags"]
    titles, row = csv.reader(io.StringIO(orch("runs", "--columns", "id,samples_per_s,tags", "-o", "csv").stdout))
    assert (titles, row) == (["id", "samples_per_s", "tags"], ["1", "812.5", '{"a": "b"}'])
    assert json.loads(orch("runs", "--columns", "id,samples_per_s,tags", "--json").stdout)[0]["tags"] == {"a": "b"}


def test_groups_are_printed_with_their_keys_first(orch, stub):
    stub.answers["GET /runs"] = (200, [GROUP])
    (row,) = csv.DictReader(
        io.StringIO(orch("runs", "--by", "team,week", "--sort", "-allocated_s", "-o", "csv").stdout)
    )
    assert list(row)[:3] == ["team", "week", "runs"]
    assert (row["allocated_s"], row["goodput"], row["cost"]) == ("7200", "1", "")
    asked = stub.asked[-1][1]
    assert (asked["by"], asked["sort"], asked.get("limit")) == (["team,week"], ["-allocated_s"], None)


@pytest.mark.parametrize(
    "arguments",
    [["--columns", "id,spec"], ["--columns", ","], ["--by", "color"], ["--by", "team", "--columns", "id"],
     ["--sort", "goodput"], ["--by", "team", "--sort", "submitted"], ["--min-throughput", "-1"], ["--outcome", "bad"]],
    ids=" ".join,
)  # fmt: skip
def test_what_cannot_be_asked_is_exit_2_before_anybody_is_asked(orch, stub, arguments):
    done = orch("runs", *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert stub.asked == []


def test_compare_prints_what_differs_and_says_why(orch, stub):
    stub.answers["GET /compare"] = (200, COMPARED)
    done = orch("compare", "41", "resnet50")
    assert stub.asked[-1][1] == {"run": ["41", "resnet50"]}
    rows = dict(line.split("\t", 1) for line in done.stdout.splitlines())
    assert (rows["samples_per_s"], rows["leaves"]) == ("1000\t820", "1\t2")
    assert "run 42: 18 % slower than the run before it" in done.stderr
    assert "run 42 had on its leaves: 40 (bert)" in done.stderr
    assert json.loads(orch("compare", "41", "42", "--json").stdout) == COMPARED
    assert orch("compare", "41", "42", "-o", "name").stdout == "41\n42\n"


def test_compare_of_a_run_that_there_is_not_is_exit_3(orch, stub):
    stub.answers["GET /compare"] = (404, {"error": "no such run: 'x'", "code": 3})
    assert orch("compare", "x").returncode == 3


def test_show_says_by_itself_that_a_run_is_slower_than_its_like(orch, stub, a_run):
    stub.answers["GET /runs/42"] = (200, a_run(compared=COMPARED["explanation"]))
    fields = dict(line.split("\t") for line in orch("show", "42").stdout.splitlines())
    assert fields["slower"] == "18 % slower than the run before it"
    assert stub.asked[-1][1] == {"like": ["1"]}
    stub.answers["GET /runs/42"] = (200, a_run(compared=COMPARED["explanation"] | {"slower": False}))
    assert "slower" not in orch("show", "42").stdout


@pytest.fixture
def history(orch):
    """A home without a controller, with a run that ended and one that waits."""
    orch.home.mkdir(mode=0o700)
    with Store.open(f"sqlite:///{orch.home}/orch.db") as store:
        store.claim_epoch("test", START)
        run = store.submit(a_new_run(team="vision"), START)[0].id
        store.place(run, a_placement(n1=(0,)), START)
        store.count([store.finish(run, Event.SUCCEEDED, Outcome.SUCCEEDED, START)], START)
        store.submit(a_new_run(name="bert"), START)
    return orch.home


def test_without_a_controller_the_database_is_asked_the_same(orch, history):
    done = orch("runs", "--by", "team", "--json")
    assert "This is what its database says" in done.stderr
    assert [(row["team"], row["runs"]) for row in json.loads(done.stdout)] == [("vision", 1), (None, 1)]
    assert orch("runs", "--columns", "id,state", "--sort", "id").stdout == "1\tsucceeded\n2\tqueued\n"
    assert json.loads(orch("compare", "1", "--json").stdout)["explanation"] is None
    assert orch("compare", "7").returncode == 3
    assert orch("ps", "-o", "name").stdout == "2\n"


def test_export_writes_to_stdout_or_to_a_file_that_it_does_not_overwrite(orch, history, tmp_path):
    rows = list(csv.DictReader(io.StringIO(orch("export").stdout)))
    assert [row["name"] for row in rows] == ["train", "bert"]
    target = tmp_path / "runs.jsonl"
    done = orch("export", "--state", "succeeded", "-o", target)
    assert (done.returncode, done.stdout) == (0, "")
    assert [json.loads(line)["id"] for line in target.read_text().splitlines()] == [1]
    assert orch("export", "-o", target.parent / "no" / "such.csv").returncode == 2
    refused = orch("export", "-o", target)
    assert refused.returncode == 7
    assert "--force" in refused.stderr
    assert orch("export", "-o", target, "--force").returncode == 0
    assert len(target.read_text().splitlines()) == 2
    attempts = list(csv.DictReader(io.StringIO(orch("export", "--attempts").stdout)))
    assert [(row["run_id"], row["outcome"]) for row in attempts] == [("1", "succeeded")]


def test_export_says_what_parquet_needs(orch, history, tmp_path):
    (tmp_path / "lacks").mkdir()
    (tmp_path / "lacks" / "pyarrow.py").write_text("raise ImportError")
    path = f"{tmp_path / 'lacks'}:{orch.env['PYTHONPATH']}"
    done = orch("export", "-o", tmp_path / "runs.parquet", PYTHONPATH=path)
    assert done.returncode == 2
    assert "pip install 'orch-train[parquet]'" in done.stderr
    assert orch("export", "--format", "parquet").returncode == 2
    assert not (tmp_path / "runs.parquet").exists()


def test_export_without_a_database_is_exit_6(orch):
    done = orch("export")
    assert done.returncode == 6
    assert "does not exist yet" in done.stderr
