"""`orch cancel` and `orch retry`: what changes a run that is there."""

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

    Every rank gets SIGTERM, and SIGKILL after the job's `grace`.

    \b
    orch cancel 42 43
    orch cancel resnet50
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
            out.say(f"run {run['id']} ({run['name']}) had ended already: {run['state']}")
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
    taken from your environment again.

    \b
    orch retry 42
    """
    api = context.answering_controller()
    found = context.get_run(api, run)
    if found["state"] not in ("failed", "cancelled"):
        raise Fail(
            f"run {found['id']} is {found['state']}: only one that failed or was cancelled is tried again",
            CONFLICT,
        )
    secrets = context.secrets_of((found.get("spec") or {}).get("secrets") or [], f"run {found['id']}")
    body = {"secrets": secrets}
    again = api.call("POST", "runs", found["id"], "retry", query={"by": context.user_name()}, body=body)
    if output == "json":
        out.print_json(again)
    else:
        out.print_rows([again], _COLUMNS, output, "id", "")
