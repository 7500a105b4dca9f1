"""ps, show, runs, nodes, status, config and what they print where."""

from __future__ import annotations

import csv
import io
import json
import os
import socket
import subprocess
import time
from datetime import UTC, datetime, timedelta

import pytest
from rows import fault, representative

from cli.output import clean
from cli.runs import transport_lines

WAITING = {
    "id": 43,
    "name": "bert",
    "user": "bo",
    "team": None,
    "state": "queued",
    "position": 1,
    "reason": "needs 8 GPUs of one node;\n\x1b[31mfree are 6\x1b[0m",
    "submitted_at": "2026-11-23T10:00:00Z",
    "started_at": None,
    "finished_at": None,
    "priority": 0,
    "attempts": [],
}


@pytest.fixture
def rows(stub, a_run):
    running = a_run(state="running", finished_at=None)
    for name in ("spec", "events"):
        del running[name]
    rows = [running, WAITING]
    stub.answers["GET /runs"] = (200, rows)
    stub.answers["GET /runs/42"] = (200, a_run())
    return rows


def test_json_is_what_the_controller_said(orch, rows):
    for arguments in (["ps", "--json"], ["ps", "-o", "json"], ["runs", "--json"]):
        assert json.loads(orch(*arguments).stdout) == rows
    lines = orch("ps", "-o", "jsonl").stdout.splitlines()
    assert [json.loads(line) for line in lines] == rows
    assert orch("ps", "-o", "name").stdout == "42\n43\n"


def test_a_pipe_gets_one_line_a_run_with_tabs_and_without_a_title(orch, rows):
    first, second = orch("ps").stdout.splitlines()
    assert first.split("\t")[:4] == ["42", "resnet50", "ana", "running"]
    fields = second.split("\t")
    assert fields[:5] == ["43", "bert", "bo", "queued", "1"]
    assert fields[-1] == "needs 8 GPUs of one node; free are 6"


def test_csv_has_titles_and_survives_line_ends_in_fields(orch, rows):
    found = list(csv.DictReader(io.StringIO(orch("ps", "-o", "csv").stdout)))
    assert [row["id"] for row in found] == ["42", "43"]
    assert found[0]["where"] == "gpu-01:2"


def test_ps_all_adds_what_ended_within_a_day_and_repeats_nothing(orch, stub, rows, a_run):
    now = datetime.now(UTC).isoformat()
    old = a_run(id=40, finished_at=(datetime.now(UTC) - timedelta(days=2)).isoformat())
    ended = [rows[0] | {"finished_at": now}, a_run(id=41, submitted_at="2020-01-01T00:00:00Z", finished_at=now), old]

    def answer(handler):
        handler.answer(200, rows if "live=1" in handler.path else ended)

    stub.answers["GET /runs"] = answer
    assert orch("ps", "--all", "-o", "name").stdout.split() == ["42", "43", "41"]
    assert stub.asked[-1][1]["state"] == ["succeeded", "failed", "cancelled"]


def test_ps_all_shows_an_array_that_ended_as_one_row(orch, stub, a_run):
    def one(index, state, array=50):
        element = {"array": array, "index": index, "values": {}}
        return a_run(id=array + index, state=state, array=element, finished_at=datetime.now(UTC).isoformat())

    live = [a_run(id="60[]", array={"id": 60, "states": {"running": 1, "failed": 1}})]
    ended = [one(1, "failed"), one(0, "succeeded"), one(2, "succeeded"), one(0, "failed", 60)]
    stub.answers["GET /runs"] = lambda handler: handler.answer(200, live if "live=1" in handler.path else ended)
    lines = [line.split("\t") for line in orch("ps", "-a").stdout.splitlines()]
    assert [line[0] for line in lines] == ["60[]", "50[]"]
    assert (lines[1][1], lines[1][3], lines[1][6]) == ("resnet50[]", "failed", "1 failed, 2 succeeded")
    stub.answers["GET /runs"] = lambda handler: handler.answer(200, [] if "live=1" in handler.path else ended)
    assert [run["id"] for run in json.loads(orch("ps", "-a", "--json").stdout)] == [51, 50, 52, 60]


def test_every_filter_of_runs_reaches_the_controller(orch, stub):
    stub.answers["GET /runs"] = (200, [])
    done = orch(
        "runs", "--name", "n", "--user", "u", "--team", "t", "--state", "failed",
        "--since", "7d", "--tag", "a=1", "--tag", "b=2", "--sort", "-finished", "--limit", "3",
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "")
    query = stub.asked[-1][1]
    since = query.pop("since")[0]
    assert since.endswith("+00:00")
    assert query == {
        "name": ["n"], "user": ["u"], "team": ["t"], "state": ["failed"], "tag": ["a=1", "b=2"],
        "sort": ["-finished"], "limit": ["3"],
    }  # fmt: skip


@pytest.mark.parametrize(
    "arguments",
    [["runs", "--state", "lost"], ["runs", "--since", "soon"], ["runs", "--tag", "a"], ["runs", "--sort", "color"],
     ["ps", "--json", "-o", "csv"], ["logs", "42", "-f", "--json"], ["submit"], ["nothing"], ["cancel"]],
)  # fmt: skip
def test_a_call_that_makes_no_sense_is_exit_2_and_changes_nothing(orch, stub, arguments):
    done = orch(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert stub.asked == []


def test_show_prints_fields_into_a_pipe(orch, rows):
    fields = dict(line.split("\t") for line in orch("show", "42").stdout.splitlines())
    assert fields["state"] == "succeeded"
    assert fields["workers"] == "1x2"
    assert fields["attempt.1.gpu-01"] == "0,1"
    assert json.loads(orch("show", "42", "--json").stdout)["id"] == 42


DEGRADED = {
    "verdict": "worse than planned",
    "links": {"SHM": 4},
    "reason": "4 of 4 links promised NVLink go over shared memory (such as rank 0 and rank 1)",
    "shortfalls": [
        {
            "text": "4 of 4 links promised NVLink go over shared memory (such as rank 0 and rank 1)",
            "causes": [
                {"text": "NCCL_P2P_DISABLE is set", "mend": "take it out", "shown": True},
                {"text": "the GPUs have no peer access", "mend": "look at nvidia-smi", "shown": False},
            ],
        }
    ],
    "nccl": "2.28.9",
    "channels": 4,
    "nvls": False,
    "algorithms": ["rings"],
}


def test_show_gives_the_transport_as_fields(orch, stub, a_run):
    run = a_run()
    run["attempts"][0]["transport"] = DEGRADED
    stub.answers["GET /runs/42"] = (200, run)
    fields = dict(line.split("\t") for line in orch("show", "42").stdout.splitlines())
    assert fields["attempt.1.transport"] == "worse than planned"
    assert fields["attempt.1.transport.links"] == "SHM=4"
    assert fields["attempt.1.transport.reason"] == DEGRADED["reason"]
    assert fields["attempt.1.transport.cause"] == "NCCL_P2P_DISABLE is set"


def test_the_transport_in_words_has_links_causes_and_remedies():
    assert transport_lines(DEGRADED) == [
        "transport worse than planned: 4 SHM (NCCL 2.28.9, 4 channels, rings)",
        "  4 of 4 links promised NVLink go over shared memory (such as rank 0 and rank 1)",
        "    because NCCL_P2P_DISABLE is set",
        "      take it out",
        "    perhaps the GPUs have no peer access",
        "      look at nvidia-smi",
    ]
    nothing = {"verdict": "not measured", "links": {}, "reason": "one rank has no links"}
    assert transport_lines(nothing) == ["transport not measured: one rank has no links"]
    assert transport_lines(None) == []


def test_an_unknown_run_is_exit_3_with_the_names_that_come_near(orch, rows):
    done = orch("show", "resnet5")
    assert done.returncode == 3
    assert "no such run" in done.stderr
    assert "Did you mean resnet50?" in done.stderr
    assert orch("show", "99").returncode == 3


def test_nodes_say_what_is_on_them(orch, stub):
    stub.answers["GET /nodes"] = (200, [
        {"node": "gpu-01", "address": "10.0.0.1", "state": "up", "device": "cuda", "total": 8, "busy": 2, "runs": [42],
         "gpus": [], "versions": {}, "note": None, "health": "ok", "findings": []},
    ])  # fmt: skip
    assert orch("nodes").stdout == "gpu-01\tup\t10.0.0.1\tcuda\t2\t8\t42\tok\t\n"
    assert orch("nodes", "-o", "name").stdout == "gpu-01\n"


def test_the_clusters_tree_is_drawn_and_what_disagrees_goes_to_stderr(orch, stub):
    drawing = ["cluster: 1 node, 1 of 2 GPUs free", "└─ gpu-01  ■□"]
    answer = {"nodes": [{"name": "gpu-01"}], "domains": [], "notes": ["gpu-01: declared 8 GPUs, found 2"]}
    stub.answers["GET /topo"] = (200, answer | {"drawing": drawing, "absent": ["gpu-02"], "busy": {}})
    done = orch("topo")
    assert done.stdout.splitlines() == drawing
    assert done.stderr.splitlines() == [
        "gpu-01: declared 8 GPUs, found 2",
        "gpu-02: is declared and has not joined",
    ]
    assert orch("topo", "-o", "name").stdout == "gpu-01\n"
    assert json.loads(orch("topo", "--json").stdout)["absent"] == ["gpu-02"]


def test_the_clusters_tree_is_a_list_too(orch, stub):
    nodes = [{"name": "gpu-01", "gpus": [{"index": 0, "model": "H100"}] * 2}, {"name": "gpu-02", "gpus": []}]
    domains = [
        {"level": "pod", "name": "p1", "parent": None, "members": ["l1"]},
        {"level": "leaf", "name": "l1", "parent": "p1", "members": ["gpu-01"]},
        {"level": "nvlink", "name": "n1", "parent": None, "members": ["gpu-01", "gpu-02"]},
    ]
    answer = {"nodes": nodes, "domains": domains, "notes": [], "drawing": [], "absent": [], "busy": {}}
    stub.answers["GET /topo"] = (200, answer)
    assert orch("topo", "-o", "csv").stdout.splitlines() == [
        "node,gpus,model,pod,leaf,nvlink",
        "gpu-01,2,H100,p1,l1,n1",
        "gpu-02,0,,,,n1",
    ]
    assert [json.loads(line) for line in orch("topo", "-o", "jsonl").stdout.splitlines()] == nodes


def test_a_file_without_its_option_is_no_question_about_the_cluster(orch, stub, tmp_path):
    done = orch("topo", tmp_path / "topology.conf")
    assert (done.returncode, "files are named with --from" in done.stderr) == (2, True)


def test_status_is_what_the_controller_says(orch, stub):
    done = orch("status", "--json")
    assert json.loads(done.stdout)["gpus"] == {"total": 16, "busy": 4}
    assert "gpus.busy\t4" in orch("status").stdout.splitlines()


def test_what_troubles_the_controller_is_in_its_status(orch, stub):
    code, answer = stub.answers["GET /status"]
    alarm = {"kind": "database", "since": "2026-01-05T09:00:00Z", "text": "The database is busy."}
    stub.answers["GET /status"] = code, answer | {"alarms": [alarm]}
    assert "alarm.database\tThe database is busy." in orch("status").stdout.splitlines()
    assert json.loads(orch("status", "--json").stdout)["alarms"] == [alarm]


def test_status_without_a_controller_says_so_and_is_exit_6(orch):
    done = orch("status", "--json")
    assert done.returncode == 6
    assert json.loads(done.stdout) == {
        "controller": "down", "address": None, "api_url": None, "dashboard_url": None, "nodes": 0,
        "gpus": {"total": 0, "busy": 0},
    }  # fmt: skip
    assert "orch up" in done.stderr


def test_a_controller_that_hangs_is_exit_6_within_its_time(orch, stub, monkeypatch):
    """It takes the connection and never answers; the limit is 10 s."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        (stub.home / "controller.json").write_text(json.dumps({"url": url, "pid": os.getpid(), "version": "0"}))
        began = time.monotonic()
        done = orch("nodes", timeout=20)
        assert 9 < time.monotonic() - began < 15
    assert done.returncode == 6
    assert "did not answer within 10 s" in done.stderr


@pytest.mark.parametrize(
    "written", ["", "{}", "[]", '{"url": "nowhere"}', '{"url": "http://127.0.0.1:99999999"}', '{"url": 3}', "\0"]
)
def test_a_damaged_controller_file_is_a_sentence(orch, stub, written):
    (stub.home / "controller.json").write_text(written)
    done = orch("nodes")
    assert done.returncode == 6
    assert "controller.json" in done.stderr


def test_the_token_is_not_shown_to_whoever_has_the_port_of_a_dead_controller(orch, stub):
    dead = subprocess.Popen(["true"])
    dead.wait()
    (stub.home / "controller.json").write_text(json.dumps({"url": stub.url, "pid": dead.pid, "version": "0"}))
    done = orch("nodes")
    assert done.returncode == 6
    assert stub.asked == []


def test_something_else_at_the_port_is_not_taken_for_a_controller(orch, stub):
    def answer(handler):
        data = b"<html>hello</html>"
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(data)))
        handler.end_headers()
        handler.wfile.write(data)

    stub.answers["GET /nodes"] = answer
    assert orch("nodes").returncode == 6


def test_a_wrong_token_is_exit_4(orch, stub):
    (stub.home / "token").write_text("another")
    done = orch("nodes")
    assert (done.returncode, "token" in done.stderr) == (4, True)


@fault(42)
@representative
@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda token: token.unlink(), "is gone: `orch up` makes a new one"),
        (lambda token: token.chmod(0o644), "(mode 0644); `chmod 600"),
        (lambda token: token.write_text(""), "holds no token; remove it for a new one"),
        (lambda token: token.write_bytes(b"\x1b[2J\r\nX: y"), "holds no token"),
    ],
    ids=["missing", "open to others", "empty", "hostile"],
)
def test_a_token_that_cannot_be_trusted_is_exit_4_and_is_not_sent(orch, stub, spoil, said):
    spoil(stub.home / "token")
    for command in (("ps",), ("cancel", "42"), ("logs", "42")):
        done = orch(*command)
        assert (done.returncode, done.stdout, said in done.stderr) == (4, "", True)
    assert stub.asked == []


@pytest.mark.parametrize("code", [2, 3, 4, 5, 6, 7])
def test_the_code_of_a_refusal_is_the_exit_code(orch, stub, code):
    stub.answers["GET /nodes"] = (
        {2: 400, 3: 404, 4: 403, 5: 422, 6: 503, 7: 409}[code],
        {"error": "so it is", "code": code},
    )
    done = orch("nodes")
    assert (done.returncode, done.stderr.strip(), done.stdout) == (code, "Error: so it is", "")


def test_a_reader_that_has_enough_ends_the_command_quietly(orch, stub, a_run):
    stub.answers["GET /runs"] = (200, [a_run(id=n) for n in range(5000)])
    process = subprocess.Popen(
        [*orch.command, "runs"],
        env=orch.env,
        cwd=stub.home.parent,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        assert process.stdout.readline().startswith("0\t")
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 141


def test_config_says_where_each_value_comes_from(orch, tmp_path):
    rows = {key: origin for key, _, origin in (line.split("\t") for line in orch("config").stdout.splitlines())}
    assert rows["home"] == "ORCH_HOME"
    assert rows["lease"] == "default"
    flagged = {row["key"]: row for row in json.loads(orch("--home", tmp_path / "x", "config", "--json").stdout)}
    assert flagged["home"] == {"key": "home", "value": str(tmp_path / "x"), "origin": "--home"}
    wrong = orch("config", ORCH_LEASE="soon")
    assert (wrong.returncode, "ORCH_LEASE" in wrong.stderr) == (2, True)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[31mred\x1b[0m", "red"),
        ("\x1b]0;title\x07x", "x"),
        ("\x1b]8;;http://a\x1b\\link\x1b]8;;\x1b\\", "link"),
        ("\x1bPqq\x1b\\x", "x"),
        ("\x1b(Bx\x1b7", "x"),
        ("a\rb\x08\x00\x7f\x9b", "a b    "),
        ("\x1b]unfinished", ""),
        ("evil\u202egnp.exe", "evil gnp.exe"),
        ("tab\tstays, é and 字 too", "tab\tstays, é and 字 too"),
    ],
)
def test_no_text_can_steer_the_terminal(text, shown):
    assert clean(text) == shown


def test_since_takes_a_duration_or_a_date(orch, stub):
    stub.answers["GET /runs"] = (200, [])
    for text in ("90s", "2026-11-01", "2026-11-01T12:00+00:00"):
        assert orch("runs", "--since", text).returncode == 0
    asked = [query["since"][0] for _, query, _ in stub.asked]
    assert [since[:10] for since in asked[1:]] == ["2026-11-01", "2026-11-01"]
