"""What a person at a terminal sees, and how Ctrl-C ends it."""

from __future__ import annotations

import re

import pexpect
import pytest
from rows import fault, representative

WAITS = {"state": "queued", "position": 2, "reason": "needs 8 GPUs"}


@pytest.fixture
def terminal(orch):
    """Runs `orch` at a terminal of 100 columns."""
    children = []

    def start(*args, **env):
        # A terminal of the user's own, whatever the one is that runs the tests.
        env = {k: v for k, v in orch.env.items() if k not in ("NO_COLOR", "COLUMNS")} | {"TERM": "xterm"} | env
        child = pexpect.spawn(orch.command[0], [*orch.command[1:], *map(str, args)], env=env, cwd=str(orch.home.parent),
                              dimensions=(40, 100), timeout=20, encoding="utf-8")  # fmt: skip
        children.append(child)
        return child

    yield start
    for child in children:
        child.close(force=True)


def whole(child) -> str:
    text = child.read()
    child.wait()
    return text


@pytest.fixture
def waiting(stub, a_run):
    long = "needs 8 GPUs of one leaf; \x1b]0;pwned\x07 free are " + "6, " * 40
    run = a_run(id=1234567, state="queued", reason=long, attempts=[], started_at=None, finished_at=None, position=1)
    stub.answers["GET /runs"] = (200, [run])


def test_a_terminal_gets_a_table_with_signs_and_words_whose_ids_are_whole(terminal, waiting):
    text = whole(terminal("ps"))
    assert re.search(r"ID +NAME +USER +STATE +POSITION +FOR ", text)
    assert "1234567" in text
    assert "○ queued" in text
    assert "…" in text
    assert "pwned" not in text
    assert all(len(re.sub(r"\x1b\[[0-9;]*m", "", line)) <= 100 for line in text.splitlines())
    assert "\x1b[36m" in text


@pytest.mark.parametrize("plain", [{"NO_COLOR": "1"}, {"TERM": "dumb"}])
def test_who_wants_no_colour_gets_none(terminal, waiting, plain):
    text = whole(terminal("ps", **plain))
    assert "\x1b" not in text
    assert "queued" in text


def test_a_terminal_without_unicode_gets_the_words(terminal, waiting):
    text = whole(terminal("ps", LC_ALL="C", LANG="C", PYTHONUTF8="0", PYTHONIOENCODING="ascii", NO_COLOR="1"))
    assert "queued" in text
    assert "○" not in text


def test_a_narrow_terminal_does_without_what_matters_least(terminal, stub, a_run):
    run = a_run(name="resnet50", team="vision", throughput={"samples_per_s": 8123.0})
    stub.answers["GET /runs"] = (200, [run])
    wide = whole(terminal("runs", COLUMNS="130", NO_COLOR="1")).splitlines()[0].split()
    assert wide == ["ID", "NAME", "USER", "TEAM", "STATE", "SUBMITTED", "TOOK", "ATTEMPTS", "SAMPLES/S", "WHERE"]
    lines = whole(terminal("runs", COLUMNS="80", NO_COLOR="1")).splitlines()
    assert [word for word in wide if word not in lines[0].split()] == ["TEAM", "ATTEMPTS"]
    assert all(len(line) <= 80 for line in lines)
    assert "gpu-01" in lines[1]


def test_a_replay_fits_a_terminal_of_80_columns(terminal, tmp_path):
    trace = tmp_path / "t.csv"
    trace.write_text("job_id,num_gpu,submit_time,duration\na,1,0,10\n")
    text = whole(terminal("simulate", trace, "--nodes", 2, "--gpus", 4, COLUMNS="80", NO_COLOR="1"))
    title = next(line for line in text.splitlines() if line.startswith("POLICY"))
    assert {"CLUSTER", "MEAN_WAIT", "MEAN_COMPLETION", "USED", "LOST_GPU_H"} <= set(title.split())
    assert all(len(line) <= 80 for line in text.splitlines())


def test_figures_of_the_last_column_stand_below_each_other(terminal, stub):
    node = {"node": "gpu-01", "state": "up", "address": "10.0.0.1", "device": "cuda", "busy": 8, "total": 8, "gpus": []}
    stub.answers["GET /nodes"] = (200, [node, node | {"busy": 0, "total": 16}])
    _, one, other = whole(terminal("nodes", NO_COLOR="1")).splitlines()
    assert (one[-2:], other[-2:]) == (" 8", "16")
    assert len(one) == len(other)


def test_names_and_units_in_titles_are_written_as_they_are(terminal, stub, a_run):
    head = {"user": "ana", "state": "succeeded", "submitted_at": None, "samples_per_s": 1.0}
    found = head | {"samples_per_s_per_gpu": 1.0, "step_time_s": 1.0, "gpus": 1, "gpu": None, "steps": 1}
    answer = {"runs": [found | {"id": 7, "name": "train"}], "differs": [], "neighbours": [], "explanation": None}
    stub.answers["GET /compare"] = (200, answer)
    assert "7 (train)" in whole(terminal("compare", "7", NO_COLOR="1"))


def test_show_says_why_an_attempt_gave_way(terminal, stub, a_run):
    run = a_run()
    run["attempts"][0] |= {"outcome": "preempted", "stop": {"kind": "preempted", "reason": "gives way to run 50 (big)"}}
    run["spec"] |= {"grace": 90.0, "priority": -5}
    stub.answers["GET /runs/42"] = (200, run)
    text = whole(terminal("show", "42", NO_COLOR="1"))
    assert re.search(r"attempt 1  preempted.*\r\n  gives way to run 50 \(big\)", text)
    assert re.search(r"grace +1m30s", text)
    assert len(re.findall("priority", text)) == 1


def test_show_draws_where_the_ranks_were(terminal, stub, a_run):
    stub.answers["GET /runs/42"] = (200, a_run())
    text = whole(terminal("show", "42", NO_COLOR="1"))
    assert "✓ succeeded" in text
    assert "└─ gpu-01" in text
    assert "GPU 1: rank 1" in text


def test_an_empty_list_says_so(terminal, stub):
    stub.answers["GET /runs"] = (200, [])
    assert "nothing runs" in whole(terminal("ps"))


def endless(*values):
    """A stream that tells these and then only beats, until its reader has gone."""
    import threading

    pause = threading.Event()

    def respond(handler):
        handler.begin()
        handler.tell(*values)
        try:
            while not pause.wait(0.05):
                handler.tell(None)
        except OSError:
            handler.close_connection = True

    return respond


def test_waiting_is_one_line_that_is_written_over(terminal, stub, job, a_run, stream):
    stub.answers["GET /runs/42/follow"] = stream(
        WAITS,
        WAITS | {"position": 1},
        {"progress": "1 of 2 ranks started"},
        {"rank": 1, "attempt": 1, "offset": 9, "line": "\x1b[2Jhello"},
        {"end": a_run()},
    )
    text = whole(terminal("submit", job, "--follow"))
    assert "\r\x1b[Kqueued, position 2: needs 8 GPUs" in text
    assert "\r\x1b[Kqueued, position 1: needs 8 GPUs" in text
    assert "\x1b[2J" not in text
    assert "\x1b[35m[rank 1]\x1b[0m hello\r\n" in text, "the rank has its colour and begins a line of its own"
    assert "succeeded after 3m00s" in text


@fault(18)
@representative
@pytest.mark.parametrize("how", ["--follow", "--wait"])
def test_ctrl_c_ends_the_follower_and_not_the_run(terminal, stub, job, how):
    stub.answers["GET /runs/42/follow"] = endless(WAITS)
    child = terminal("submit", job, how)
    child.expect("42\r\n")
    if how == "--follow":
        child.expect("position 2")
    child.sendintr()
    child.expect("the run goes on; `orch cancel 42` ends it")
    child.expect(pexpect.EOF)
    child.wait()
    assert child.exitstatus == 130
    assert not [call for call in stub.calls() if "cancel" in call]


@fault(18)
@representative
def test_ctrl_c_ends_following_logs(terminal, stub, a_run):
    stub.answers["GET /runs/42"] = (200, a_run(state="running"))
    stub.answers["GET /runs/42/logs"] = endless({"rank": 0, "attempt": 1, "offset": 6, "line": "step 1"})
    child = terminal("logs", "42", "-f")
    child.expect("step 1")
    child.sendintr()
    child.expect("orch cancel 42")
    child.expect(pexpect.EOF)
    child.wait()
    assert child.exitstatus == 130
