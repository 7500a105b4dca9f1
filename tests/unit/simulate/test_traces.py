"""What the readers make of traces: their units, what is left out and said, and every mistake with its line."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path

import pytest

from orchestrator.scheduling.simulate.jobs import faster_arrivals, sampled
from orchestrator.scheduling.simulate.traces import TraceError, parse, read_trace
from orchestrator.scheduling.simulate.traces.sacct import clock


def real(name: str) -> Path:
    """A recorded file outside of the repository: in ORCH_REAL_FILES, or in a `shared/real` above."""
    above = [parent / "shared" / "real" for parent in Path(__file__).resolve().parents]
    for folder in [Path(os.environ.get("ORCH_REAL_FILES") or "/nowhere"), *above]:
        if (folder / "traces" / name).exists():
            return folder / "traces" / name
    pytest.skip(f"traces/{name} is not on this machine: ORCH_REAL_FILES names the folder that holds it")


CSV = "job_id,num_gpu,submit_time,duration\n"


def complaints(text: str, unit: str | None = None) -> list[str]:
    with pytest.raises(TraceError) as caught:
        parse(text, "t.csv", unit)
    return str(caught.value).split("\n")


# === CSV ===


def test_jobs_are_ordered_by_submission_and_the_clock_starts_at_the_first():
    trace = parse(CSV + "b,2,50,7\na,1,20,5\nc,4,20,6\n", "t.csv", "s")

    assert [(job.id, job.gpus, job.submit_s, job.duration_s) for job in trace.jobs] == [
        ("a", 1, 0, 5),
        ("c", 4, 0, 6),
        ("b", 2, 30, 7),
    ]
    assert trace.notes == ()
    assert trace.span_s == 30


@pytest.mark.parametrize(("unit", "seconds"), [("s", 1), ("min", 60), ("ms", 0.001)])
def test_a_unit_holds_for_every_time_of_the_trace(unit, seconds):
    trace = parse(CSV.strip() + ",time_limit\na,1,0,40,80\nb,1,10,40,\n", "t.csv", unit)

    assert trace.span_s == 10 * seconds
    assert trace.jobs[0].duration_s == 40 * seconds
    assert trace.jobs[0].limit_s == 80 * seconds
    assert trace.jobs[1].limit_s is None


UNITS = {
    "job_id,num_gpu,submit_time,duration,expect_time_list,best_effort\na,1,0,2,3,0\n": (
        120,
        "minutes: the columns are",
    ),
    CSV + "a,1,0,120000\n" + "".join(f"b{i},1,{i}000,60000\n" for i in range(19)): (
        120,
        "milliseconds: all are whole thousands",
    ),
    CSV + "a,1,0,120000\nb,1,5000,60000\n": (120000, "taken as seconds"),
    CSV + "a,1,0,120\n": (120, "taken as seconds"),
    CSV + "a,1,2026-01-05T09:00:00,120\n": (120, "seconds, as submissions have dates"),
}


@pytest.mark.parametrize("text", UNITS)
def test_a_unit_that_is_not_given_is_told_from_the_file_and_said(text):
    trace = parse(text, "t.csv")

    assert trace.jobs[0].duration_s == UNITS[text][0]
    assert UNITS[text][1] in trace.notes[-1]
    assert "--unit" in trace.notes[-1]


def test_dates_may_have_zones_and_are_seconds_apart_whatever_the_unit():
    text = CSV + "a,1,2026-01-05T09:00:00,1\nb,1,2026-01-05T11:00:30+01:00,1\n"

    assert parse(text, "t.csv", "min").span_s == 3630


def test_columns_are_found_by_name_and_the_useful_ones_are_kept():
    text = "\ufeffpriority,User,duration,submit_time,Model_Name,num_gpu,job_id,num_nodes,extra\n-5,ana,9,0,bert,16,j,2,x\n\n"
    (job,) = parse(text, "t.csv", "s").jobs

    assert (job.user, job.model, job.nodes, job.priority, job.name) == ("ana", "bert", 2, -5, "ana-bert")


def test_jobs_without_gpus_are_left_out_and_counted():
    trace = parse(CSV + "a,0,0,5\nb,1,3,5\n", "t.csv", "s")

    assert [job.id for job in trace.jobs] == ["b"]
    assert trace.notes == ("t.csv: jobs left out because they ask for no GPU: 1",)


def test_every_mistake_is_told_with_its_line():
    assert complaints(CSV + "a,two,0,5\nb,1,-3,nan\nc,1,0\nd,1.5,0,5\n") == [
        "t.csv:2: num_gpu: must be a number, not 'two'",
        "t.csv:3: submit_time: must be a number of at least 0, not '-3'",
        "t.csv:3: duration: must be a number of at least 0, not 'nan'",
        "t.csv:4: has 3 fields and the line of titles 4",
        "t.csv:5: num_gpu: must be a whole number, not '1.5'",
    ]


def test_no_more_than_twenty_mistakes_are_told():
    told = complaints(CSV + "a,x,0,5\n" * 30)

    assert len(told) == 21
    assert told[-1] == "... and 10 more"


WRONG = {
    "": "t.csv: is empty",
    "hello\n": "t.csv:1: is no trace: neither a CSV with job_id, num_gpu, submit_time, duration",
    "job_id,num_gpus,submit_time,duration\n": "t.csv:1: has no column num_gpu. Did you mean 'num_gpus'?",
    CSV: "t.csv: holds no job that can be replayed",
    CSV + "a,0,0,1\n": "t.csv: holds no job that can be replayed: t.csv: jobs left out because they ask for no GPU: 1",
    CSV + "a,1,2026-99-01,1\n": "t.csv:2: submit_time: must be a number or a date",
    CSV.strip() + ",num_nodes\na,4,0,1,3\n": "t.csv:2: num_nodes: 4 GPUs cannot be spread evenly over 3 nodes",
    CSV + 'a,1,0,"1\n': "t.csv:2: unexpected end of data",
}


@pytest.mark.parametrize("text", WRONG)
def test_what_cannot_be_replayed_is_refused_with_the_reason(text):
    assert complaints(text)[0].startswith(WRONG[text])


def test_a_file_may_be_gzipped_and_one_that_is_not_there_is_named(tmp_path):
    (tmp_path / "t.csv.gz").write_bytes(gzip.compress((CSV + "a,1,0,5\n").encode()))

    assert len(read_trace(tmp_path / "t.csv.gz", "s").jobs) == 1
    with pytest.raises(TraceError, match=r"gone\.csv: No such file"):
        read_trace(tmp_path / "gone.csv")
    (tmp_path / "half.gz").write_bytes(gzip.compress(b"x" * 1000)[:20])
    with pytest.raises(TraceError, match="cannot be read"):
        read_trace(tmp_path / "half.gz")


# === Pollux ===

POLLUX = "name,time,application,num_replicas,batch_size\n"


def test_a_pollux_workload_has_work_instead_of_durations():
    job, *_ = parse(POLLUX + "bert-0,9,bert,12,384\n", "w.csv").jobs

    assert (job.gpus, job.model, job.batch_size, job.steps, job.duration_s) == (12, "bert", 384, 480, None)


def test_an_application_of_unknown_length_needs_a_column_of_steps():
    assert "nobody knows how many steps 'gpt' of 8 takes" in complaints(POLLUX + "g,0,gpt,1,8\n")[0]
    assert parse(POLLUX.strip() + ",steps\ng,0,gpt,1,8,100\n", "w.csv").jobs[0].steps == 100


# === sacct ===

SACCT = "JobID|JobName|User|Account|State|Submit|Start|End|Elapsed|Timelimit|NNodes|AllocTRES|ReqTRES\n"
T = "2026-01-05T09:00:00|2026-01-05T09:10:00|2026-01-05T10:10:00"


def slurm(*rows: str) -> str:
    return SACCT + "".join(f"{row}\n" for row in rows)


def test_steps_are_no_jobs_and_tasks_of_arrays_are():
    text = slurm(
        f"7|train|ana|ml|COMPLETED|{T}|01:00:00|2:00:00|2|billing=9,cpu=9,gres/gpu:a100=8,gres/gpu=8,node=2|",
        f"7.batch|batch|||COMPLETED|{T}|01:00:00|||gres/gpu=8|",
        f"7.0|python|||COMPLETED|{T}|01:00:00|||gres/gpu=8|",
        f"8_3|sweep|bo|ml|FAILED|{T}|1-00:00:10|UNLIMITED|1|gres/gpu:h100=2,gres/gpu:a100=1|",
        "8_[4-9%2]|sweep|bo|ml|PENDING|2026-01-05T09:00:00|Unknown|Unknown|00:00:00|1:00:00|1||gres/gpu=1",
        f"9|cpu|bo|ml|COMPLETED|{T}|01:00:00|1:00:00|1|cpu=4|",
        f"10|x|bo|ml|CANCELLED by 1000|{T}|00:30|00:10:00|1|gres/gpu=1|",
    )
    trace = parse(text, "s.txt")

    assert [(job.id, job.gpus, job.nodes, job.duration_s, job.limit_s) for job in trace.jobs] == [
        ("7", 8, 2, 3600, 7200),
        ("8_3", 3, 1, 86410, None),
        ("10", 1, 1, 30, 600),
    ]
    assert (trace.jobs[0].user, trace.jobs[0].team, trace.jobs[0].name) == ("ana", "ml", "train")
    assert set(trace.notes) == {
        "s.txt: jobs left out because they had no GPU: 1",
        "s.txt: jobs left out because they never ran: 1",
    }


def test_a_requeued_job_is_one_and_a_running_one_counts_as_far_as_it_got():
    text = slurm(
        f"7|a|ana|ml|NODE_FAIL|{T}|01:00:00||1|gres/gpu=1|",
        "7|a|ana|ml|RUNNING|2026-01-05T10:10:00|2026-01-05T11:00:00|Unknown|00:20:00||1|gres/gpu=1|",
    )
    trace = parse(text, "s.txt")

    assert [job.duration_s for job in trace.jobs] == [4800]


def test_gpus_and_times_are_found_in_older_columns_too():
    text = "JobID|Submit|State|ElapsedRaw|TimelimitRaw|NNodes|ReqGRES\n5|2026-01-05T09:00:00|COMPLETED|90|10|2|gpu:tesla:4\n"
    (job,) = parse(text, "s.txt").jobs

    assert (job.gpus, job.duration_s, job.limit_s) == (8, 90, 600)


def test_without_elapsed_the_start_and_the_end_tell():
    text = (
        "JobID|Submit|Start|End|AllocTRES\n5|2026-01-05T09:00:00|2026-01-05T09:00:10|2026-01-05T09:01:00|gres/gpu=1\n"
    )

    assert parse(text, "s.txt").jobs[0].duration_s == 50


@pytest.mark.parametrize(
    "state", ["COMPLETED", "FAILED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED", "BOOT_FAIL"]
)
def test_whatever_ended_a_job_it_held_its_gpus(state):
    assert len(parse(slurm(f"7|a|a|m|{state}|{T}|01:00:00||1|gres/gpu=1|"), "s.txt").jobs) == 1


def test_mistakes_in_slurm_output_have_lines():
    said = complaints(
        slurm(f"7|a|a|m|DANCING|{T}|01:00:00||1|gres/gpu=1|", f"8|a|a|m|FAILED|{T}|an hour||1|gres/gpu=1|")
    )

    assert said == [
        "t.csv:2: State: 'DANCING' is no state of Slurm's",
        "t.csv:3: Elapsed: must be a time such as 1-02:03:04, not 'an hour'",
    ]
    assert "has no column AllocTRES" in complaints("JobID|Submit|State|Elapsed\n")[0]


def test_slurm_clocks():
    assert [clock(text) for text in ("1-02:03:04", "02:03:04", "03:04", "00:10.250")] == [93784, 7384, 184, 10]


# === orch's own ===


def a_run(**changes):
    attempt = {
        "started_at": "2026-11-23T10:00:05Z",
        "ended_at": "2026-11-23T10:03:05Z",
        "placement": {"device": "cuda", "nodes": [{"node": "a", "gpus": [0, 1]}, {"node": "b", "gpus": [0, 1]}]},
    }
    run = {"id": 4, "name": "resnet", "user": "ana", "team": "vision", "priority": 3, "attempts": [attempt, attempt]}
    return run | {"submitted_at": "2026-11-23T10:00:00Z", "spec": {"workers": "2x2", "time_limit": 7200.0}} | changes


def test_runs_of_the_history_last_as_long_as_their_attempts_had_gpus():
    text = "\n".join(
        json.dumps(run) for run in (a_run(), a_run(id=5, attempts=[], submitted_at="2026-11-23T10:01:00Z"))
    )
    trace = parse(text, "runs.jsonl")
    (job,) = trace.jobs

    assert (job.id, job.gpus, job.nodes, job.duration_s, job.limit_s) == ("4", 4, 2, 360, 7200)
    assert (job.name, job.user, job.team, job.priority) == ("resnet", "ana", "vision", 3)
    assert trace.notes == ("runs.jsonl: runs left out because they have no attempt that has ended: 1",)
    assert parse(json.dumps([a_run()], indent=2), "runs.json").jobs == trace.jobs


def test_a_line_that_is_no_run_is_named():
    text = json.dumps(a_run()) + '\n{"id": 1}\n{"id": \n[]\n'

    assert [line.partition(": ")[0] for line in complaints(text)] == ["t.csv:3", "t.csv:2", "t.csv:4"]


# === what is made of traces ===


def test_a_sample_is_the_same_for_the_same_seed_and_its_clock_starts_anew():
    trace = parse(CSV + "".join(f"{i},1,{i},5\n" for i in range(400)), "t.csv", "s")
    one, two, other = sampled(trace, 0.25, 1), sampled(trace, 0.25, 1), sampled(trace, 0.25, 2)

    assert one == two != other
    assert one.jobs[0].submit_s == 0
    assert 60 < len(one.jobs) < 140


def test_faster_arrivals_change_nothing_but_the_submissions():
    trace = parse(CSV + "a,1,0,5\nb,1,60,5\n", "t.csv", "s")

    assert [job.submit_s for job in faster_arrivals(trace, 2).jobs] == [0, 30]
    assert [job.duration_s for job in faster_arrivals(trace, 2).jobs] == [5, 5]


# === recorded ===


def test_the_philly_trace_is_read_whole():
    trace = read_trace(real("philly/trace_job_Philly_SLO.csv"))

    assert len(trace.jobs) == 30735
    assert sum(job.gpus * (job.duration_s or 0) for job in trace.jobs) / 3600 == pytest.approx(368_511, abs=1)
    assert trace.notes[0].endswith("no GPU: 205")
    assert "minutes" in trace.notes[1]


@pytest.mark.parametrize("number", range(1, 9))
def test_every_pollux_workload_is_read_whole(number):
    trace = read_trace(real(f"pollux/workloads/workload-{number}.csv"))

    assert len(trace.jobs) == 160
    assert all(job.steps for job in trace.jobs)
