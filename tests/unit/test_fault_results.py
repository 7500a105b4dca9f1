"""The harness of the fault tests itself: what a test measured reaches the results, and the table tells it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from rows import ROWS, fault

ROOT = Path(__file__).parents[2]

TESTS = """
import pytest
from rows import fault

@fault(1)
@fault(7)
def test_a_rank_dies(measured):
    measured.seed(3)
    measured.injected()
    measured.detected()
    measured.lost(steps=4)

@fault(2)
def test_breaks():
    assert False, "not today"

@fault(5)
def test_lacks_something():
    pytest.skip("no lab: not root")

def test_of_no_row():
    pass
"""


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("faults")
    (folder / "test_some.py").write_text(TESTS)
    options = ["-q", "-p", "measuring", "-p", "no:cacheprovider", f"--rootdir={folder}", "-c", "/dev/null"]
    options += ["-n2", "--fault-results=results.jsonl", "test_some.py"]
    env = {"PYTHONPATH": str(ROOT / "tests" / "faults"), "PATH": ""}
    subprocess.run([sys.executable, "-m", "pytest", *options], cwd=folder, env=env, capture_output=True)
    return folder / "results.jsonl"


def test_each_fault_test_leaves_a_line_also_of_tests_that_ran_side_by_side(results):
    by_test = {line["test"].split("::")[1]: line for line in map(json.loads, results.read_text().splitlines())}
    assert by_test.keys() == {"test_a_rank_dies", "test_breaks", "test_lacks_something"}
    dies = by_test["test_a_rank_dies"]
    assert (dies["rows"], dies["outcome"], dies["seed"], dies["lost_steps"]) == ([1, 7], "passed", 3, 4)
    assert 0 <= dies["detected_s"] < 10
    assert "recovered_s" not in dies
    assert (by_test["test_breaks"]["outcome"], by_test["test_breaks"]["why"]) == ("failed", "AssertionError: not today")
    assert by_test["test_lacks_something"]["why"] == "no lab: not root"


def test_the_table_has_every_row_and_says_how_each_went(results, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "scripts")
    import reliability_table

    lines = reliability_table.table(reliability_table.read([results])).splitlines()
    drawn = {int(line.split("|")[1]): line for line in lines if re.match(r"\| \d", line)}
    assert drawn.keys() == ROWS.keys()
    states = {number: line.split("|")[-2].strip() for number, line in drawn.items()}
    assert (states[1], states[7]) == ("passed", "passed")
    assert states[2] == "**failed**: `test_breaks`"
    assert states[5] == "not injectable here: no lab: not root"
    assert states[3] == "not run"
    assert "4 steps" in drawn[1]


def test_the_rows_are_numbered_without_a_gap_and_no_test_names_another():
    assert list(ROWS) == list(range(1, 44))
    with pytest.raises(KeyError):
        fault(44)
