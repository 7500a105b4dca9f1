"""Time limits, dependencies, arrays and changes, as users have them: real ranks on a real Ray."""

import json

from orch_home import COUNTS_ON, until

SAVES_WHEN_TOLD = """
import os, pathlib, signal, sys, time
folder = pathlib.Path(os.environ["ORCH_CHECKPOINT_DIR"])
folder.mkdir(parents=True, exist_ok=True)
print("resumed" if (folder / "saved").exists() else "begun", flush=True)
def save(*_):
    (folder / "saved").touch()
    print("saved", flush=True)
    sys.exit(0)
signal.signal(signal.SIGTERM, save)
while True:
    time.sleep(1)
"""

TELLS_ITS_VALUES = """
import os, sys
print(sys.argv[1:], os.environ["SEED"])
sys.exit(sys.argv[1] == "bad")
"""


def test_a_run_over_its_time_limit_saves_what_it_has_and_has_failed(home, job):
    run = home.submit(job(SAVES_WHEN_TOLD, checkpoint="ckpt", time_limit="1s"), "--wait", code=1)
    found = home.show(run)
    (attempt,) = found["attempts"]
    assert (found["state"], found["reason"]) == ("failed", "reached its time limit of 1s")
    assert (attempt["outcome"], attempt["failure"]["kind"]) == ("user_error", "time_limit")
    assert home.logs(run) == ["begun", "saved"]
    assert "reached its time limit of 1s" in home("why", run).stdout


def test_a_run_that_gives_way_saves_and_goes_on_after_the_other_from_its_checkpoint(home, job, gate):
    low = home.submit(job(COUNTS_ON, name="low", arguments=gate, workers=7, checkpoint="ckpt"))
    home.prints(low, "from 0", ranks=7)
    waits = home.submit(job("print('waited')", name="waits", folder="waits", workers=7))
    high = home.submit(job("print('first')", name="high", folder="high", workers=7, priority=10))
    home.end(high)
    gave_way = home.reaches(low, "running")
    first, second = gave_way["attempts"]
    assert (first["outcome"], first["failure"], second["outcome"]) == ("preempted", None, None)
    assert (first["stop"]["kind"], first["stop"]["for_run"]) == ("preempted", high)
    # It kept its age: what came after it still waits.
    assert home.show(waits)["state"] == "queued"
    home.prints(low, "from 7", ranks=7)
    gate.touch()
    ended = home.end(low)
    assert [one["event"] for one in ended["events"]].count("stop_asked") == 1
    home.end(waits)


def test_an_array_is_one_row_and_one_run_for_each_combination(home, job, waiting_job, gate):
    everything = home.submit(waiting_job(workers=12))
    path = job(
        TELLS_ITS_VALUES,
        name="sweep",
        arguments="{lr}",
        env='{SEED: "s{seed}"}',
        array="{lr: [0.1, a b], seed: 0..1}",
        array_limit=2,
    )
    ids = [int(line) for line in home("submit", path, "-o", "name").stdout.split()]
    assert ids == list(range(ids[0], ids[0] + 4))
    rows = [line.split("\t") for line in home("ps").stdout.splitlines()]
    assert [row[:4] for row in rows][1] == [f"{ids[0]}[]", "sweep[]", rows[1][2], "queued"]
    assert len(rows) == 2
    home("set", "sweep[3]", "priority=5")
    gate.touch()
    home.end(everything)
    until(lambda: home.json("show", "sweep")["state"] == "succeeded", 60, "the array has ended")
    assert [home.logs(run) for run in ids] == [["['0.1'] s0"], ["['0.1'] s1"], ["['a b'] s0"], ["['a b'] s1"]]
    assert [run["id"] for run in home.json("runs", "--array", "sweep", "--sort", "id")] == ids
    events = home.show("sweep[3]")["events"]
    assert [(one["event"], one["reason"]) for one in events][1] == ("changed", "priority 0 → 5")


def test_what_follows_a_failure_is_cancelled_with_its_name_and_an_array_ends_with_the_worst_of_its_runs(home, job):
    path = job(TELLS_ITS_VALUES, name="some", arguments="{kind}", env="{SEED: x}", array="{kind: [good, bad]}")
    done = home("submit", path, "--wait", "--json", code=1)
    first, second = json.loads(done.stdout)
    assert [first["state"], second["state"]] == ["succeeded", "failed"]
    follower = job("print('never')", name="after", after="[some]")
    assert "so nothing that follows it can run" in home("submit", follower, code=7).stderr
    home("retry", "some")
    run = home.submit(follower)
    found = home.reaches(run, "cancelled")
    assert found["reason"].startswith(f"run {second['id']} (some[1]), which it was to follow, failed")
    assert found["attempts"] == []
