"""`orch why`: why a run waits, when it should start and what would start it now; or what it waited for and why it ended."""

from __future__ import annotations

import json
from typing import Any

import click

from cli import context, history
from cli import output as out
from cli.times import local, span


@click.command()
@context.run_argument()
@out.output_option
def why(run: str, output: str) -> None:
    """Why a run waits, or ended as it did.

    Of one that waits: every reason, the weightiest first, who is ahead, when it should start and how sure that is, and
    what change would start it now. Of one that has ended: why, and what it had waited for.

    \b
    orch why 42
    orch why 'sweep[3]' --json
    """
    answer = history.why(run)
    if output == "json":
        out.print_json(answer)
    elif output == "jsonl":
        click.echo(json.dumps(answer))
    elif output == "name":
        click.echo(str(answer["id"]))
    else:
        for line in lines(answer):
            click.echo(out.wrapped(out.clean(line)))


def lines(answer: dict[str, Any]) -> list[str]:
    """As a person reads it."""
    who = f"run {answer['id']} ({answer['name']})"
    said = []
    if (ended := answer.get("ended")) is not None:
        reason = f": {ended['reason']}" if ended.get("reason") else ""
        by = f" by {ended['by']}" if ended.get("by") else ""
        said.append(f"{who} {'was ' if answer['state'] == 'cancelled' else 'has '}{answer['state']}{by}{reason}")
        said += failure_lines(ended.get("failure") or {})
    elif (waits := answer.get("waits")) is not None:
        said.append(f"{who} has waited for {span(waits['seconds'])}, at position {waits['position']}")
        said += waiting_lines(waits)
    else:
        said.append(f"{who} is {answer['state']}" + (f": {answer['reason']}" if answer.get("reason") else ""))
    said += [f"  {local(note['at'])}  {note['text']}" for note in answer.get("noted") or ()]
    for one in answer.get("broke") or ():
        said.append(f"attempt {one['attempt']} ended {local(one['at'])}: {one['reason']}")
    for wait in answer.get("waited") or ():
        said.append(f"before attempt {wait['attempt']} it waited {span(wait['seconds'])}:")
        said += [f"  {span(one['seconds'])}  {one['text']}" for one in wait["reasons"]]
    return said


def failure_lines(failure: dict[str, Any]) -> list[str]:
    """Whose fault the end was, and what the rank or the kernel said of it."""
    from cli.watch import cause_text, detail_lines

    cause = cause_text(failure)
    return ([f"  {failure['kind']}: {cause}"] if cause else []) + [f"    {line}" for line in detail_lines(failure)]


def waiting_lines(waits: dict[str, Any]) -> list[str]:
    """Reasons, who is ahead, the start, the choice, what would start it now."""
    said = [f"  {number}. {reason['text']}" for number, reason in enumerate(waits["reasons"], 1)]
    if waits["ahead"]:
        names = ", ".join(f"{run['id']} ({run['name']})" for run in waits["ahead"][:5])
        more = waits["ahead_count"] - len(waits["ahead"][:5])
        said.append(f"ahead of it: {names}" + (f" and {more} more" if more > 0 else ""))
    if waits.get("start"):
        said.append(f"should start {_SURE.get(waits['sure'], '')} {local(waits['start'])}".replace("  ", " "))
    elif waits.get("sure"):
        said.append("when it starts, nobody can say: it hangs on a run without time limit and history")
    if (choice := waits.get("choice")) is not None:
        now = f"now within one {choice['level']}: done in {span(choice['done_now_s'])}"
        if choice["wait_s"] is None:
            said.append(f"{now}, with steps {choice['slowdown']:.2g} times as long as within one {choice['tighter']}")
        else:
            said.append(
                f"{now}; waiting {span(choice['wait_s'])} for one {choice['tighter']}: done in "
                f"{span(choice['done_waiting_s'])}"
            )
    if waits.get("suggestions"):
        said.append("what would start it now:")
        said += [f"  {one['text']}" for one in waits["suggestions"]]
    return said


_SURE = {"promised": "at the latest", "expected": "by about", "rough": "not before"}
