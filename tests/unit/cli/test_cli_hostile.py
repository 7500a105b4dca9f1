"""Whatever names, reasons and logs hold, and whatever is typed, no command prints an escape or a traceback."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cli.main import COMMANDS, orch

PAYLOAD = "\x1b]0;pwned\x07\x1b[2J\x9b31m\u202e\r\n\x08x"
TIME = re.compile(r"\d{4}-\d\d-\d\dT")


def hostile(value: Any) -> Any:
    """The same with the payload at the end of every text that is no time."""
    if isinstance(value, dict):
        return {key: hostile(one) for key, one in value.items()}
    if isinstance(value, list):
        return [hostile(one) for one in value]
    return value + PAYLOAD if isinstance(value, str) and not TIME.match(value) else value


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """Runs a command in this process, on a home of its own and without anybody's configuration."""
    monkeypatch.setenv("ORCH_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "none"))
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str, **more: Any) -> Result:
        return CliRunner().invoke(orch, list(arguments), prog_name="orch", **more)

    return call


def check(done: Result) -> None:
    printed = done.stdout + done.stderr
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e]", printed), printed
    # JSON has it as text.
    assert "pwned" not in printed or "\\u001b]0;pwned\\u0007" in printed
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exc_info


NODE = {"node": "gpu-01", "state": "up", "address": "10.0.0.1", "device": "cuda", "busy": 1, "total": 8, "runs": [1]}
WHY = {
    "id": 42,
    "name": "train",
    "state": "queued",
    "reason": "needs 8 GPUs",
    "ended": None,
    "waits": {
        "seconds": 5.0,
        "position": 2,
        "reasons": [{"kind": "room", "text": "needs 8 GPUs"}],
        "ahead": [{"id": 41, "name": "other"}],
        "ahead_count": 1,
        "start": None,
        "sure": "rough",
        "choice": None,
        "suggestions": [{"text": "workers: 4"}],
    },
    "waited": [],
}
TOPO = {
    "nodes": [{"name": "gpu-01"}],
    "notes": ["disagrees"],
    "absent": ["gpu-02"],
    "drawing": ["gpu-01  8 GPUs"],
    "busy": {},
    "domains": [],
}


def test_no_command_prints_an_escape_that_somebody_else_has_chosen(stub, a_run, stream, run) -> None:
    failed = a_run(state="failed", reason="rank 1 failed")
    failed["attempts"][0] |= {
        "outcome": "user_error",
        "failure": {"kind": "exit", "rank": 1, "node": "a", "message": "ValueError"},
    }
    waits = a_run(state="queued", reason="needs 8 GPUs", attempts=[], position=1)
    line = {"rank": 1, "attempt": 1, "offset": 9, "line": f"hello{PAYLOAD}"}
    stub.answers |= {
        "GET /runs": (200, hostile([failed, waits])),
        "GET /runs/42": (200, hostile(failed)),
        "GET /runs/43": (
            200,
            hostile(a_run(id=43, state="stopping", attempts=[failed["attempts"][0] | {"outcome": None}])),
        ),
        "GET /runs/42/why": (200, hostile(WHY)),
        "GET /runs/42/logs": stream(line, {"notice": f"worse{PAYLOAD}"}),
        "GET /nodes": (200, hostile([NODE | {"note": "drift"}])),
        "GET /topo": (200, hostile(TOPO)),
        "GET /status": (200, hostile(stub.answers["GET /status"][1])),
        "POST /runs/42/cancel": (409, hostile({"error": "cannot", "code": 7})),
        "POST /runs/42/retry": (404, {"error": f"no such run: {PAYLOAD}", "code": 3}),
        "POST /runs/42/set": (200, {"id": 42, "name": f"n{PAYLOAD}", "state": "queued"}),
    }
    commands = [
        "ps",
        "ps --all",
        "runs",
        "runs -o csv",
        "runs -o jsonl",
        "show 42",
        "show 43",
        "show 42 --json",
        "why 42",
        "logs 42",
    ]
    commands += [
        "logs 42 -o jsonl",
        "nodes",
        "nodes -o name",
        "topo",
        "topo -o name",
        "status",
        "status -o csv",
        "cancel 42",
        "retry 42",
    ]
    commands += ["set 42 priority=5", "compare 42 43", "report 42", "top --once", "doctor"]
    for command in commands:
        check(run(*command.split()))
    assert "hello" in run("logs", "42").stdout
    assert PAYLOAD in run("logs", "42", "--raw").stdout.replace("\n", "\r\n").replace("\r\r", "\r")


def test_what_a_hardware_file_says_is_shown_without_escapes(run, tmp_path: Path) -> None:
    (tmp_path / "topology.conf").write_text(f"SwitchName=s1{PAYLOAD[:-4]} Nodes=a[1-2]\n")
    (tmp_path / "places.csv").write_text(f"node,leaf\na,l1{PAYLOAD[:-4]}\n")
    for name in ("topology.conf", "places.csv"):
        for output in ("table", "json", "csv", "name", "jsonl"):
            check(run("topo", "--from", str(tmp_path / name), "-o", output))


# -- what is typed -----------------------------------------------------------------------------------------------------

CODES = {0, 1, 2, 3, 4, 5, 6, 7, 8, 124}
QUIET = sorted(set(COMMANDS) - {"up", "down", "submit", "top", "bench", "init"})
"""Those that start nothing, wait for nobody and write nothing."""


def words() -> st.SearchStrategy[list[str]]:
    options = sorted(
        {option for name in QUIET for one in command(name).params for option in one.opts if option.startswith("-")}
    )
    odd = [
        "",
        "-",
        "--",
        "0",
        "-1",
        "9" * 400,
        "²",
        "42",
        "a=b",
        "=",
        "..",
        "/dev/null",
        "\u202e",
        "1e999",
        "\x1b[2J",
        "a" * 300,
        "[",
        "*",
    ]
    word = (
        st.sampled_from(options)
        | st.sampled_from(odd)
        | st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=5)
    )
    return st.lists(word, max_size=4)


def command(name: str) -> click.Command:
    found = orch.get_command(click.Context(orch), name)
    assert found is not None
    return found


@pytest.mark.parametrize("name", QUIET)
def test_whatever_is_typed_ends_with_a_code_of_the_contract_and_no_traceback(name: str, run) -> None:
    @settings(
        max_examples=15,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
    )
    @given(words())
    def typed(arguments: list[str]) -> None:
        done = run(name, *[word for word in arguments if word not in ("-o", "--output-file", "--plot")], input="")
        assert done.exception is None or isinstance(done.exception, SystemExit), (name, arguments, done.exc_info)
        assert done.exit_code in CODES, (name, arguments, done.output)
        assert "Traceback" not in done.output

    typed()
