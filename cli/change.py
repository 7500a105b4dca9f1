"""`orch cancel`, `orch retry` and `orch set`: what changes a run, or an array, that is there."""

from __future__ import annotations

from typing import Any

import click

from cli import context
from cli import output as out
from cli.errors import CONFLICT, Fail
from cli.output import Column

_COLUMNS = (
    Column("id", lambda run: run["id"], right=True),
    Column("name", lambda run: run["name"]),
    Column(
        "state", lambda run: run["state"], lambda run: out.word(run["state"]), lambda run: out.state_color(run["state"])
    ),
)


@click.command()
@context.run_argument("refs", nargs=-1, required=True, metavar="RUN...")
@out.output_option
def cancel(refs: tuple[str, ...], output: str) -> None:
    """Ends runs, or takes them out of the queue.

    Every rank gets SIGTERM, and SIGKILL after the job's `grace`. The name of an array, or an id with empty brackets,
    means all runs of the array.

    \b
    orch cancel 42 43
    orch cancel resnet50
    orch cancel sweep 'sweep[3]' '101[]'
    """
    api = context.answering_controller()
    rows: list[dict[str, Any]] = []
    failed: Fail | None = None
    for ref in dict.fromkeys(refs):
        try:
            with context.naming(api, ref):
                run = api.call("POST", "runs", ref, "cancel", query={"by": context.user_name()})
        except Fail as error:
            # The others are cancelled all the same; the first failure gives the exit code.
            error.show()
            failed = failed or error
            continue
        if run.pop("already", False):
            kind = "array" if run.get("array") else "run"
            out.say(f"{kind} {run['id']} ({run['name']}) had ended already: {run['state']}")
        rows.append(run)
    out.print_rows(rows, _COLUMNS, output, "id", "")
    if failed is not None:
        click.get_current_context().exit(failed.exit_code)


@click.command()
@context.run_argument()
@out.output_option
def retry(run: str, output: str) -> None:
    """Queues an ended run again.

    RUN must have failed or been cancelled. The code and the checkpoint folder are the same as before; secrets are
    taken from your environment again. Of an array, those runs are tried again that failed; where none has, those that
    were cancelled.

    \b
    orch retry 42
    orch retry sweep
    """
    api = context.answering_controller()
    found = context.get_run(api, run)
    if not found.get("array") and found["state"] not in ("failed", "cancelled"):
        from orchestrator.scheduling.lifecycle import said

        raise Fail(
            f"run {found['id']} {said(found['state'])}: only one that failed or was cancelled is tried again",
            CONFLICT,
        )
    secrets = context.secrets_of((found.get("spec") or {}).get("secrets") or [], f"run {found['id']}")
    body = {"secrets": secrets}
    again = api.call("POST", "runs", found["id"], "retry", query={"by": context.user_name()}, body=body)
    if output == "json":
        out.print_json(again)
    else:
        out.print_rows([again], _COLUMNS, output, "id", "")
        if again.get("runs"):
            out.say(f"{again['runs']} runs are queued again")


@click.command("set")
@context.run_argument()
@click.argument("changes", nargs=-1, required=True, metavar="K=V...")
@out.output_option
def set_(run: str, changes: tuple[str, ...], output: str) -> None:
    """Changes what a run asks for.

    priority and near (`none` takes the wish away) while it waits; time_limit (`none`: as long as it takes) also while
    it runs, as long as it has not run for so long yet. Of an array: of all its runs that wait, and array_limit.

    \b
    orch set 42 priority=5 time_limit=2h
    orch set resnet50 near=none
    orch set sweep array_limit=8
    """
    wanted: dict[str, str] = {}
    for change in changes:
        key, equals, value = change.partition("=")
        if not equals or not key or not value:
            raise click.UsageError(f"{change}: write it as KEY=VALUE, such as priority=5")
        if key in wanted:
            raise click.UsageError(f"{key} is given twice")
        wanted[key] = value
    api = context.answering_controller()
    with context.naming(api, run):
        changed = api.call("POST", "runs", run, "set", query={"by": context.user_name()}, body={"changes": wanted})
    if output == "json":
        out.print_json(changed)
    else:
        out.print_rows([changed], _COLUMNS, output, "id", "")
