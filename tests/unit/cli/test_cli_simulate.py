"""`orch simulate` as its users run it."""

from __future__ import annotations

import json

import pytest

CSV = "job_id,num_gpu,submit_time,duration\na,6,0,100\nb,8,1,50\nc,2,2,60\nd,2,3,200\n"
PLAIN = ("--nodes", "2", "--gpus", "4", "--unit", "s", "--communication", "0")


@pytest.fixture
def trace(tmp_path):
    file = tmp_path / "trace.csv"
    file.write_text(CSV)
    return file


def test_policies_stand_side_by_side(orch, trace):
    done = orch("simulate", trace, *PLAIN, "--policy", "fifo,backfill,orch", "--json")

    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)["policies"]
    assert [row["policy"] for row in rows] == ["fifo", "backfill", "orch"]
    assert rows[0]["runs"] == 4
    assert rows[0]["mean_completion"] == pytest.approx((100 + 149 + 208 + 347) / 4)
    assert rows[1]["mean_completion"] < rows[0]["mean_completion"]


def test_the_same_command_prints_the_same(orch, trace):
    lines = [orch("simulate", trace, *PLAIN, "--sample", "0.9", "--seed", "3", "-o", "csv").stdout for _ in range(2)]

    assert lines[0] == lines[1]
    assert lines[0].startswith("policy,cluster,runs,mean_wait_s,")


def test_what_if_there_were_more_nodes_prints_both(orch, trace):
    done = orch("simulate", trace, *PLAIN, "--policy", "fifo", "--add-nodes", "2", "--json")
    small, large = json.loads(done.stdout)["policies"]

    assert (small["nodes"], large["nodes"]) == (2, 4)
    assert large["mean_wait"] < small["mean_wait"]
    assert "(+2 nodes)" in large["cluster"]


def test_a_cluster_may_be_a_hardware_file(orch, trace, tmp_path):
    (tmp_path / "nodes.csv").write_text("node,gpus,model,leaf\nn1,4,H100,l1\nn2,4,H100,l2\nhead,0,,l2\n")
    done = orch("simulate", trace, "--cluster", tmp_path / "nodes.csv", "--unit", "s", "--policy", "fifo", "--json")

    assert done.returncode == 0, done.stderr
    (row,) = json.loads(done.stdout)["policies"]
    assert (row["nodes"], row["gpus"], row["cross_leaf"]) == (2, 8, 0.5)


def test_a_unit_that_was_told_from_the_file_is_said(orch, trace):
    done = orch("simulate", trace, *PLAIN[:4])

    assert "times are taken as seconds" in done.stderr
    assert "times" not in done.stdout


@pytest.mark.parametrize("suffix", ["html", "svg"])
def test_a_study_can_be_drawn(orch, trace, tmp_path, suffix):
    file = tmp_path / f"study.{suffix}"
    done = orch("simulate", trace, *PLAIN, "--policy", "fifo,las", "--add-nodes", "1", "--plot", file)
    text = file.read_text()

    assert done.returncode == 0, done.stderr
    assert text.count('class="line"') == 4 + 4 * 4
    assert "las +1 nodes" in text
    assert "http" not in text.replace("http://www.w3.org/2000/svg", "")


def test_jobs_that_never_fit_are_said_and_without_any_other_the_code_is_5(orch, trace, tmp_path):
    some = orch("simulate", trace, "--nodes", "1", "--gpus", "4", "--unit", "s")
    assert some.returncode == 0
    assert "2 jobs do not fit the empty cluster and are left out; the largest has 8 GPUs" in some.stderr

    trace.write_text("job_id,num_gpu,submit_time,duration\na,6,0,100\n")
    assert orch("simulate", trace, "--nodes", "1", "--gpus", "4", "--unit", "s").returncode == 5


USAGE = {
    "TRACE": "which cluster?",
    "TRACE --nodes 2": "--nodes and --gpus go together",
    "TRACE --nodes 2 --gpus 4 --cluster x.csv": "exclude each other",
    "TRACE --nodes 2 --gpus 4 --policy fiof": "there is no policy fiof. Did you mean 'fifo'?",
    "TRACE --nodes 2 --gpus 4 --plot x.png": "must end in .html or .svg",
    "TRACE --nodes 2 --gpus 4 --profiles .": "holds neither simulation_throughputs.json nor folders",
    "TRACE --cluster gone.csv": "gone.csv",
    "gone.csv --nodes 2 --gpus 4": "gone.csv: No such file",
    "--nodes 2 --gpus 4": "name one trace: a file, or --history",
    "TRACE --history --nodes 2 --gpus 4": "name one trace",
}


@pytest.mark.parametrize("line", USAGE)
def test_what_cannot_be_done_is_refused_in_a_sentence(orch, trace, line):
    done = orch("simulate", *line.replace("TRACE", str(trace)).split())

    assert done.returncode == 2
    assert USAGE[line] in done.stderr
    assert "Traceback" not in done.stderr


def test_mistakes_of_a_trace_have_lines(orch, trace):
    trace.write_text("job_id,num_gpu,submit_time,duration\na,x,0,5\nb,1,y,5\n")
    done = orch("simulate", trace, *PLAIN)

    assert done.returncode == 2
    assert f"{trace}:2: num_gpu: must be a number, not 'x'" in done.stderr
    assert f"{trace}:3: submit_time: must be a number, not 'y'" in done.stderr


def test_a_workload_without_durations_is_replayed_with_the_profiles_that_lie_with_it_or_those_of_pollux(orch, tmp_path):
    workload = tmp_path / "workloads" / "w.csv"
    workload.parent.mkdir()
    workload.write_text("name,time,application,num_replicas,batch_size\nb,0,bert,4,384\n")
    line = ("simulate", workload, "--nodes", "2", "--gpus", "4")

    def mean_completion(*more: object) -> tuple[float, str]:
        done = orch(*line, *more, "--json")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)["policies"][0]["mean_completion"], done.stderr

    took, said = mean_completion()
    assert took == pytest.approx(480 * 7.01)
    assert "--profiles DIR names others" in said

    profiles = tmp_path / "profiles"
    (profiles / "bert").mkdir(parents=True)
    (profiles / "bert" / "placements.csv").write_text("placement,local_bsz,step_time,sync_time\n4,96,0.5,0.1\n")
    took, said = mean_completion()
    assert took == 480 * 0.5
    assert f"measured speeds are those in {profiles}" in said
    assert mean_completion("--profiles", profiles)[0] == took

    (profiles / "bert").rename(profiles / "other")
    assert mean_completion()[0] == pytest.approx(480 * 7.01)


def test_work_that_nobody_measured_needs_profiles(orch, tmp_path):
    (tmp_path / "w.csv").write_text("name,time,application,num_replicas,batch_size,steps\nb,0,gpt,4,384,10\n")
    done = orch("simulate", tmp_path / "w.csv", "--nodes", "2", "--gpus", "4")
    assert done.returncode == 2
    assert "has no duration, and no profile knows gpt" in done.stderr


@pytest.mark.parametrize("delimiter", [";", "\t"])
def test_a_csv_may_have_other_delimiters(orch, tmp_path, delimiter):
    rows = [["Duration", "note", "Num_GPU", "job_id", "Submit_Time"], ["100.5", "a,b", "4", "x", "1e1"]]
    (tmp_path / "t.csv").write_text("\r\n".join(map(delimiter.join, rows)))
    done = orch("simulate", tmp_path / "t.csv", *PLAIN, "--json")

    assert json.loads(done.stdout)["policies"][0]["mean_completion"] == 100.5


def test_the_controllers_history_is_a_trace(orch, stub, a_run):
    attempt = {
        "started_at": "2026-11-23T10:00:05Z",
        "ended_at": "2026-11-23T10:03:05Z",
        "placement": {"device": "cuda", "nodes": [{"node": "gpu-01", "gpus": [0, 1]}]},
    }
    stub.answers["GET /runs"] = (200, [a_run(attempts=[attempt]), a_run(id=43, attempts=[])])
    done = orch("simulate", "--history", "--nodes", "1", "--gpus", "4", "--json")

    assert done.returncode == 0, done.stderr
    (row,) = json.loads(done.stdout)["policies"]
    assert (row["runs"], row["mean_completion"]) == (1, 180)
    assert "the history: runs left out because they have no attempt that has ended: 1" in done.stderr


def test_orch_goes_by_the_policy_that_is_configured(orch, trace, tmp_path):
    trace.write_text("job_id,num_gpu,submit_time,duration,team\na,4,0,100,vision\nb,4,0,100,vision\n")
    (tmp_path / "cluster.yaml").write_text("metadata:\n  orch:\n    teams: {vision: {limit: 4}}\n")
    orch.env["ORCH_CONFIG"] = str(tmp_path / "cluster.yaml")
    done = orch("simulate", trace, *PLAIN, "--json")

    assert done.returncode == 0, done.stderr
    # There is room for both, and the team may hold four.
    assert json.loads(done.stdout)["policies"][0]["makespan"] == 200
