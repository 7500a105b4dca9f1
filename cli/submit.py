"""`orch submit`: a job file to a queued run."""

from __future__ import annotations

import json
import os
import sys
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cli import context
from cli import output as out
from cli.array import submitted as array_submitted
from cli.errors import TIMED_OUT, USAGE, Fail, Unreachable
from cli.job import Job, checked
from cli.output import Column
from cli.times import Duration

if TYPE_CHECKING:
    from cli.api import Controller
    from orchestrator.config import Config
    from orchestrator.control.snapshot import Snapshot


@click.command()
@click.argument("job", type=click.Path(path_type=Path))
@click.option(
    "--set", "overrides", multiple=True, metavar="K=V", help="Overrides a key of the file, e.g. --set workers=2x8."
)
@click.option("-f", "--follow", is_flag=True, help="Shows the queue, then the logs, until the run has ended.")
@click.option("-w", "--wait", is_flag=True, help="Waits silently until the run has ended.")
@click.option(
    "--timeout", type=Duration(), help="With --follow or --wait: gives up waiting after 30m, 12h ... (exit 124)."
)
@click.option("--dry-run", is_flag=True, help="Checks everything and queues nothing.")
@click.option("--key", help="A second submission with the same key is the first one: makes a repeat harmless.")
@out.output_option
def submit(
    job: Path,
    overrides: tuple[str, ...],
    follow: bool,
    wait: bool,
    timeout: float | None,
    dry_run: bool,
    key: str | None,
    output: str,
) -> None:
    """Queues a run of JOB and prints its id.

    The run's code is a snapshot of the job's workdir, so that later edits do not change it. Starts the local cluster
    first where no cluster is configured.

    \b
    orch submit job.yaml --follow
    orch submit job.yaml --set workers=2x8 --set env.LR=0.1
    orch submit sweep.yaml -o name | tail -1
    id=$(orch submit job.yaml) && orch logs -f "$id"

    Exit code with --follow or --wait: 0 succeeded, 1 failed or cancelled, 124 timed out, 130 interrupted (the run goes
    on). Before that: 2 bad job file, 5 never fits this cluster, 6 cluster out of reach.
    """
    if timeout is not None and not (follow or wait):
        raise click.UsageError("--timeout says how long to wait: give it with --wait or --follow")
    settings = context.config()
    spec = checked(settings, job, overrides)
    secrets = context.secrets_of(spec.secrets, str(job))
    snapshot = _snapshot(spec, job, settings.code_limit)
    body = {
        "spec": spec.spec,
        "code": {"sha256": snapshot.sha256, "git": snapshot.git, "dirty": snapshot.dirty},
        "workdir": str(spec.workdir.resolve()),
        "user": context.user_name(),
        "secrets": secrets,
        # With a key of its own every submission can be sent again when the answer to it got lost.
        "key": key or f"once-{os.urandom(12).hex()}",
        "dry_run": dry_run,
    }
    api = connect(settings, dry_run)
    if api is None:
        out.say(f"{job} is well-formed; no cluster is up, so whether it fits one was not looked at")
        _print({"id": None, "name": spec.name, "state": "valid"}, output)
        return
    if not dry_run and not api.has_code(snapshot.sha256):
        api.put_code(snapshot.sha256, snapshot.archive)
    run = _post(api, body)
    for notice in run.pop("notices", None) or ():
        out.say(notice)
    if dry_run:
        _say_plan(spec.name, run, snapshot)
        _print({"id": None, "name": spec.name, "state": "valid"}, output, run)
    elif "array" in run:
        array_submitted(settings, run, follow or wait, timeout, output)
    elif follow or wait:
        _to_the_end(settings, run, spec.ranks, follow, timeout, output)
    else:
        _print(run, output)
        if output == "table":
            from orchestrator.scheduling.lifecycle import said

            out.say(f"run {run['id']} ({run['name']}) {said(run['state'])}: `orch logs -f {run['id']}` follows it")


def _snapshot(spec: Job, job: Path, limit: int) -> Snapshot:
    """The code, with the script in it. Raises Fail(2)."""
    from orchestrator.control.snapshot import SnapshotError, take

    script, workdir = spec.script, spec.workdir
    if Path(script).is_absolute():
        raise Fail(
            f"{job}: run: {script} is an absolute path, and what runs is a snapshot of {workdir}: "
            f"give the script's path inside that folder",
            USAGE,
        )
    try:
        snapshot = take(workdir, limit)
    except SnapshotError as error:
        raise Fail(f"{job}: workdir: {error}", USAGE) from None
    if os.path.normpath(script) not in snapshot.files:
        raise Fail(
            f"{job}: run: {script} is left out of the snapshot, because .gitignore or .orchignore names it: "
            f"add the line `!{Path(script).name}` to {workdir / '.orchignore'}",
            USAGE,
        )
    return snapshot


def connect(settings: Config, dry_run: bool) -> Controller | None:
    """The controller, after starting the local cluster where none is configured; None in a dry run without one."""
    from cli.cluster import lost_head

    api = None
    try:
        api = context.controller(settings)
        lost = lost_head(api.call("GET", "status"), settings)
    except Unreachable:
        if settings.address is not None:
            raise
    else:
        if lost is not None and settings.address is not None:
            out.say(f"{lost}; what is submitted meanwhile waits until it answers")
        if lost is None or settings.address is not None:
            return api
    if dry_run:
        return api
    from cli.cluster import start_local

    start_local(settings)
    return context.controller(settings)


def _post(api: Controller, body: dict[str, Any]) -> dict[str, Any]:
    from cli.api import Lost

    try:
        run: dict[str, Any] = api.call("POST", "runs", body=body)
    except Lost:
        run = context.controller().call("POST", "runs", body=body)  # the key makes one run of both
    return run


def _to_the_end(
    settings: Config, run: dict[str, Any], ranks: int, follow: bool, timeout: float | None, output: str
) -> None:
    """Waits for the run's end and ends the command with its code."""
    from cli.watch import Screen, exit_code, say_end
    from cli.watch import follow as to_the_end

    # An object that a program reads comes once, with the state that was reached; an id at once, so that it is not lost.
    late = output in ("json", "jsonl", "csv")
    if not late:
        _print(run, output)
        sys.stdout.flush()
    screen = Screen(prefixed=ranks > 1, to_stderr=late or output == "name") if follow else None
    code = TIMED_OUT
    try:
        end = to_the_end(settings.home, run, screen, timeout)
        run["state"], code = end["state"], exit_code(end)
        say_end(end)
    except TimeoutError:
        _stop(
            screen,
            f"run {run['id']} has not ended within {timeout:.0f} s and goes on; `orch cancel {run['id']}` ends it",
        )
    except KeyboardInterrupt:
        _stop(screen, f"the run goes on; `orch cancel {run['id']}` ends it")
        code = 130
    if late:
        _print(run, output)
    click.get_current_context().exit(code)


def _say_plan(name: str, answer: dict[str, Any], snapshot: Snapshot) -> None:
    """Where a dry run would have gone."""
    from cli.plan import lines

    for line in lines(name, answer):
        out.say(line)
    out.say(f"{len(snapshot.files)} files, {snapshot.size:,} bytes of code. Nothing was changed")


def _stop(screen: Any, text: str) -> None:
    if screen is not None:
        screen.clear()
    out.say(text)


def _print(run: dict[str, Any], output: str, more: dict[str, Any] | None = None) -> None:
    answer = {name: run.get(name) for name in ("id", "name", "state")} | (more or {})
    if output == "json":
        out.print_json(answer)
    elif output == "jsonl":
        click.echo(json.dumps(answer))
    elif output == "csv":
        columns = [Column(name, itemgetter(name)) for name in ("id", "name", "state")]
        out.print_rows([answer], columns, "csv", "id", "")
    elif answer["id"] is not None:
        click.echo(str(answer["id"]))
