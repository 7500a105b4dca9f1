"""The command as a whole: what it imports, what its help and docs say, what the shell completes."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from cli.main import COMMANDS
from cli.main import orch as group
from cli.times import span

ROOT = Path(__file__).resolve().parents[3]
DOCS = (ROOT / "docs/cli.md").read_text()
HEAVY = ("ray", "torch", "sqlalchemy", "alembic", "aiohttp", "rich", "pydantic", "pyarrow")


@pytest.mark.parametrize("line", ["ps", "show 42", "runs", "submit JOB", "logs 42", "cancel 42", "nodes", "--help"])
def test_no_command_of_every_day_imports_what_is_slow(orch, stub, job, a_run, stream, line):
    stub.answers["GET /runs"] = (200, [a_run()])
    stub.answers["GET /runs/42"] = (200, a_run())
    stub.answers["GET /nodes"] = (200, [])
    stub.answers["GET /runs/42/logs"] = stream({"rank": 0, "attempt": 1, "offset": 3, "line": "hi"})
    stub.answers["POST /runs/42/cancel"] = (200, {"id": 42, "name": "a", "state": "cancelled"})
    probe = (
        "import atexit, sys\n"
        f"atexit.register(lambda: print('SLOW', [m for m in {HEAVY!r} if m in sys.modules], file=sys.stderr))\n"
        "from cli.main import main\n"
        "main()\n"
    )
    orch.command = [sys.executable, "-c", probe]
    done = orch(*line.replace("JOB", str(job)).split())
    assert done.returncode == 0, done.stderr
    assert "SLOW []" in done.stderr


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_with_an_example_and_is_in_the_docs(name):
    shown = CliRunner().invoke(group, [name, "--help"])
    assert shown.exit_code == 0
    assert re.search(rf"^ +(\w+=\$\()?orch {name}\b", shown.output, re.MULTILINE), "an example"
    assert f"orch {name}" in DOCS
    command = group.get_command(click.Context(group), name)
    assert command.get_short_help_str(limit=80) == COMMANDS[name][1], "the list says the same"
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            assert parameter.help, f"{name} {parameter.opts} has no help"
            assert max(parameter.opts, key=len) in DOCS, f"{name} {parameter.opts} is not in the docs"


def test_help_lists_every_command_with_its_whole_sentence():
    shown = CliRunner().invoke(group, ["--help"], terminal_width=80)
    listed = re.findall(r"^  ([a-z]+) {2,}(\S.*)$", shown.output.partition("Commands:")[2], re.MULTILINE)
    assert [name for name, _ in listed] == list(COMMANDS)
    assert not [text for _, text in listed if text.endswith("...")]


def test_the_shell_completes_runs_and_is_quiet_without_a_controller(orch, stub, a_run):
    stub.answers["GET /runs"] = (200, [a_run(), a_run(id=7, name="bert")])
    assert orch.complete("orch show ") == ["42", "7", "bert", "resnet50"]
    assert orch.complete("orch cancel re") == ["resnet50"]
    (stub.home / "controller.json").unlink()
    assert orch.complete("orch show ") == []


SPANS = {
    0: "0.0s",
    9.94: "9.9s",
    59.4: "59s",
    59.6: "1m00s",
    75: "1m15s",
    3599.9: "1h00m",
    10920: "3h02m",
    187200: "2d04h",
}


@pytest.mark.parametrize("seconds", SPANS)
def test_durations_are_short_and_never_read_60_seconds(seconds):
    assert span(seconds) == SPANS[seconds]
