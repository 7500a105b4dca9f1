"""`orch up`, `down` and `status`: the cluster and its controller."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from operator import itemgetter
from typing import TYPE_CHECKING, Any

import click

from cli import context
from cli import output as out
from cli.errors import UNREACHABLE, Fail, Unreachable
from cli.output import Column

if TYPE_CHECKING:
    from cli.api import Controller
    from orchestrator.config import Config

AGENT = 15.0
"""Seconds that `up` waits for the first node's agent."""


@click.command()
def up() -> None:
    """Starts the cluster and its controller.

    Joins the cluster that is configured, or else starts one on this machine. Harmless where it is up.

    \b
    orch up
    """
    settings = context.config()
    start_local(settings)
    try:
        answer = once_nodes_answer(context.controller(settings))
    except Unreachable as error:
        raise Fail(f"the cluster was started, but {error.message}", UNREACHABLE) from None
    if (lost := lost_head(answer, settings)) is not None:
        raise Unreachable(lost)
    out.say(f"up: {_sum(answer)}")
    _warn(answer)


def once_nodes_answer(api: Controller) -> dict[str, Any]:
    """The status as soon as a node's agent has answered, at the latest after AGENT seconds."""
    deadline = time.monotonic() + AGENT
    while True:
        answer: dict[str, Any] = api.call("GET", "status")
        if answer["nodes"] or time.monotonic() > deadline:
            return answer
        time.sleep(0.1)


@click.command()
@click.option("--force", is_flag=True, help="Cancels the runs that live.")
def down(force: bool) -> None:
    """Ends the controller and the cluster.

    A cluster that orch did not start goes on without it. Refuses (exit 7) while a run lives.

    \b
    orch down
    orch down --force
    """
    was_up = _cluster(context.config(), "down", *(["--force"] if force else []))
    out.say("down; the history stays" if was_up else "nothing was up; the history stays")


@click.command()
@out.output_option
def status(output: str) -> None:
    """Whether the controller is up, and how busy it is.

    Exit code 6 where it is down, or where Ray's head does not answer it.

    \b
    orch status
    orch status --json | jq .gpus
    """
    settings = context.config()
    try:
        answer: dict[str, Any] = context.controller(settings).call("GET", "status")
    except Unreachable as error:
        gpus = {"total": 0, "busy": 0}
        answer = {"controller": "down", "address": settings.address, "api_url": None, "dashboard_url": None}
        _print_status(answer | {"nodes": 0, "gpus": gpus}, output)
        raise Unreachable(error.message) from None
    _print_status(answer, output)
    _warn(answer)
    if (lost := lost_head(answer, settings)) is not None:
        raise Unreachable(lost)


def _warn(answer: dict[str, Any]) -> None:
    """Says where anybody gets into the cluster."""
    if answer.get("ray_auth") == "none":
        from orchestrator.control.ray_auth import MEND, warning

        out.say(f"warning: {warning(answer['address'])}; {MEND}")


def lost_head(answer: dict[str, Any], settings: Config) -> str | None:
    """Where the controller cannot reach Ray's head any more: since when, and what to do."""
    cluster = answer.get("cluster") or {}
    if cluster.get("state") != "lost":
        return None
    do = "`orch up` starts it again" if settings.address is None else "start it again there (`ray start --head ...`)"
    return f"{cluster['why']}, for {cluster['for_s']:.0f} s now: {do}"


def _print_status(answer: dict[str, Any], output: str) -> None:
    if output == "json":
        out.print_json(answer)
    elif output == "jsonl":
        click.echo(json.dumps(answer))
    elif output == "name":
        click.echo(answer["controller"])
    elif output == "csv":
        flat = dict(_flat(answer))
        out.print_rows([flat], [Column(key, itemgetter(key)) for key in flat], "csv", "", "")
    elif not out.on_terminal():
        out.lines_of(_flat(answer))
    else:
        word = out.paint(out.word(answer["controller"]), out.state_color(answer["controller"]))
        click.echo(f"controller  {word}  {out.clean(str(answer.get('api_url') or ''))}".rstrip())
        out.lines_of(
            [
                ("cluster   ", answer.get("address")),
                ("dashboard ", answer.get("dashboard_url")),
                ("nodes     ", str(answer["nodes"])),
                ("busy      ", _busy(answer)),
                *(("alarm     ", f"{alarm['text']} (since {alarm['since']})") for alarm in answer.get("alarms", ())),
            ]
        )
    storage = answer.get("storage") or {}
    if storage.get("state") == "stalled":
        out.say(
            f"storage stalled {storage['for_s']:.0f} s: {storage['folder']} does not answer; runs that touch it wait"
        )


def _flat(answer: dict[str, Any]) -> list[tuple[str, Any]]:
    flat: list[tuple[str, Any]] = []
    for key, value in answer.items():
        if isinstance(value, dict):
            flat += [(f"{key}.{part}", one) for part, one in value.items()]
        elif key == "alarms":
            flat += [(f"alarm.{alarm['kind']}", alarm["text"]) for alarm in value]
        else:
            flat.append((key, value))
    return flat


def _busy(answer: dict[str, Any]) -> str:
    kinds = (("gpus", "GPUs"), ("cpu_slots", "CPU slots"))
    counts = [(answer.get(key) or {}, word) for key, word in kinds]
    return (
        ", ".join(f"{count['busy']} of {count['total']} {word}" for count, word in counts if count.get("total"))
        or "no GPUs"
    )


def _sum(answer: dict[str, Any]) -> str:
    nodes = answer["nodes"]
    return f"{nodes} node{'' if nodes == 1 else 's'}, {_busy(answer)} busy"


def start_local(settings: Config) -> None:
    """Brings the cluster up, with its progress on stderr. Raises Fail with the code that it gives."""
    _cluster(settings, "up")


def _cluster(settings: Config, *arguments: str) -> bool:
    """Runs the part that needs Ray in a process of its own, so that this one never imports it. Whether anything was changed."""
    command = [sys.executable, "-m", "orchestrator.control.cluster", *arguments]
    # It reads the configuration itself; what flags have overruled reaches it as variables.
    environment = {
        **os.environ,
        "ORCH_HOME": str(settings.home),
        "ORCH_ADDRESS": settings.address or "local",
        "ORCH_DATABASE": settings.database,
    }
    answer: dict[str, Any] = {}
    # Its complaints go to a file and not to the terminal: they are a library's, and needed only where it gives no answer.
    with tempfile.TemporaryFile("w+", errors="replace") as complaints:
        with subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=complaints,
            env=environment,
            text=True,
            # A cluster must not get the Ctrl-C that ends a follower, nor go with the terminal that started it.
            start_new_session=True,
        ) as process:
            for line in process.stdout or ():
                answer = _progress(line) or answer
                if answer.keys() & {"ok", "error"}:
                    break  # not at the end of the pipe: what was started may have inherited it
        if answer.keys() & {"ok", "error"}:
            if "error" in answer:
                raise Fail(answer["error"], int(answer.get("code", UNREACHABLE)))
            return bool(answer.get("changed", True))
        complaints.seek(0)
        last = (complaints.read().strip().splitlines() or ["it said nothing"])[-1]
        raise Fail(f"`{' '.join(command[1:])}` ended with exit code {process.returncode}: {last}", UNREACHABLE)


def _progress(line: str) -> dict[str, Any] | None:
    """Shows one step; gives what the line says, None for what a library printed."""
    try:
        said: dict[str, Any] = json.loads(line)
    except ValueError:
        return None
    if not isinstance(said, dict):
        return None
    live = out.colored(err=True)
    if "step" in said:
        step = out.clean(str(said["step"]))
        click.echo(f"\r\x1b[K{step} ..." if live else step, nl=not live, err=True)
    elif live:
        click.echo("\r\x1b[K", nl=False, err=True)
    return said
