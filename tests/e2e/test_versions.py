"""What nodes and interpreters have: doctor over the cluster, `requires:` before placement, and what is recorded."""

from __future__ import annotations

import sys

import pytest

pytestmark = pytest.mark.ray

PRINTS_TORCH = "import sys, torch; print(torch.__version__, sys.version.split()[0])"


def test_what_a_job_requires_is_checked_recorded_and_pinned_as_doctor_saw_it(home, job):
    run = home.submit(job(PRINTS_TORCH, workers=2, requires='{torch: ">=2"}'), "--wait")
    torch, python = home.logs(run, "--rank", 0)[0].split()
    seen = home.json("doctor", code=None)
    (node,) = seen["nodes"]
    assert (seen["source"], seen["pending"], seen["absent"]) == ("cluster", [], {})
    assert (node["torch"], node["python_version"], node["python"]) == (torch, python, sys.executable)
    ((name, has),) = home.show(run)["attempts"][0]["environment"].items()
    assert (name, has["torch"], has["python_version"], has["driver"]) == (node["node"], torch, python, node["driver"])
    assert f'  torch: "=={torch.partition("+")[0]}"\n' in home("show", run, "--lock").stdout
    # Another interpreter is asked when it is named.
    other = home.json("doctor", "--node", name, "--python", "/nowhere/python", code=1)
    assert other["findings"][0]["problem"] == "/nowhere/python is not there: no rank can start"
    assert home("doctor", "--node", "nowhere", code=3).stderr == "Error: no such node: 'nowhere'\n"


def test_what_no_node_has_is_refused_with_the_reason_and_nothing_is_queued(home, job):
    if home.json("doctor", code=None)["nodes"][0]["driver"]:
        pytest.skip("this machine has NVIDIA's driver")
    before = [row["id"] for row in home.json("runs")]
    path = job(PRINTS_TORCH, requires='{driver: ">=570"}')
    for command in ("submit", "plan"):
        refused = home(command, path, code=5)
        assert "driver is not there, >=570 is asked for" in refused.stderr
    assert [row["id"] for row in home.json("runs")] == before
