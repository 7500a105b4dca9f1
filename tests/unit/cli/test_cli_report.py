"""`orch report`: where the page goes, and what is said where there is none."""

from __future__ import annotations

import json
from typing import Any

import pytest

RUN = {
    "at": "2026-11-23T10:05:00Z",
    "from": 1_795_428_005.0,
    "to": 1_795_428_185.0,
    "series": [],
    "ranks": None,
    "gpus": None,
    "nodes": {},
    "measured_busbw": None,
    "past": [],
}


@pytest.fixture
def answered(stub: Any, a_run: Any) -> Any:
    stub.answers["GET /runs/42/report"] = 200, RUN | {"run": a_run()}
    return stub


def test_a_page_goes_into_the_file_that_is_named_and_its_name_to_stdout(answered: Any, orch: Any) -> None:
    done = orch("report", 42, "-o", "page.html")
    assert (done.returncode, done.stdout) == (0, "page.html\n")
    page = (orch.home.parent / "page.html").read_text()
    assert page.startswith("<!DOCTYPE html>")
    assert "resnet50" in page
    assert not list(orch.home.parent.glob("*.part"))


def test_into_a_pipe_goes_the_page_itself_and_with_json_its_data(answered: Any, orch: Any) -> None:
    assert orch("report", 42).stdout.startswith("<!DOCTYPE html>")
    assert json.loads(orch("report", 42, "--json").stdout)["run"]["id"] == 42


def test_a_run_that_is_not_there_leaves_no_file(stub: Any, orch: Any) -> None:
    done = orch("report", 7, "-o", "page.html")
    assert done.returncode == 3
    assert "no such run" in done.stderr
    assert not (orch.home.parent / "page.html").exists()


def test_a_file_that_cannot_be_written_is_a_mistake_of_use(answered: Any, orch: Any) -> None:
    done = orch("report", 42, "-o", "nowhere/page.html")
    assert done.returncode == 2
    assert "nowhere/page.html cannot be written" in done.stderr


def test_without_a_run_the_cluster_is_asked_for_since_then(stub: Any, orch: Any) -> None:
    stub.answers["GET /report"] = 200, {"runs": 0}
    assert json.loads(orch("report", "--since", "7d", "--json").stdout) == {"runs": 0}
    assert "since" in stub.asked[-1][1]
