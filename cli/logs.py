"""`orch logs`: what the ranks printed."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from cli import context, history
from cli import output as out
from cli.errors import NOT_FOUND, Fail, Unreachable
from cli.times import Ago

if TYPE_CHECKING:
    from orchestrator.config import Config


@click.command()
@context.run_argument()
@click.option("-f", "--follow", is_flag=True, help="Goes on until the run has ended.")
@click.option("--rank", type=click.IntRange(0), help="Only this rank, without a prefix.")
@click.option("--attempt", type=click.IntRange(1), help="This attempt (default: the latest).")
@click.option("--nccl", is_flag=True, help="What NCCL said of its links instead, as `orch doctor --nccl-log` reads it.")
@click.option(
    "--stacks", is_flag=True, help="Where the ranks stand instead: now, or when the attempt was ended for hanging."
)
@click.option("--since", type=Ago(), help="Only what was printed within 5m, 2h ... or since a time.")
@click.option(
    "--raw", is_flag=True, help="Lines as they were printed, with their colours and whatever else a terminal obeys."
)
@out.output_option
def logs(
    run: str,
    follow: bool,
    rank: int | None,
    attempt: int | None,
    nccl: bool,
    stacks: bool,
    since: float | None,
    raw: bool,
    output: str,
) -> None:
    """What the ranks of a run printed.

    Of a failed run the first failing rank comes first. Every line begins with its rank where there are several.
    In -o json and jsonl each line is an object. Escapes that a terminal would obey are taken out, but for --raw.

    \b
    orch logs 42 -f
    orch logs resnet50 --rank 3 --since 5m
    orch logs 42 --attempt 1 -o jsonl
    orch logs 42 --nccl | orch doctor --nccl-log -
    orch logs 42 --stacks --rank 3
    """
    if output in ("csv", "name"):
        raise click.UsageError(f"logs are text: -o {output} says nothing of them (json and jsonl do)")
    if follow and output == "json":
        raise click.UsageError("an array has no end while the run goes on: follow with -o jsonl")
    if (nccl or stacks) and (follow or since is not None):
        what = "what NCCL said" if nccl else "a stack"
        raise click.UsageError(f"{what} has no times, and does not grow: leave out --follow and --since")
    if nccl and stacks:
        raise click.UsageError("--nccl and --stacks are two questions: ask one of them")
    settings = context.config()
    try:
        found = context.one_run(context.get_run(context.controller(settings), run))
        query = {"rank": rank, "attempt": attempt, "since": since, "follow": int(follow)}
        query |= {"nccl": int(nccl) or None, "stacks": int(stacks) or None}
        lines = _from_controller(settings, found["id"], query)
    except Unreachable as down:
        found = history.read(settings, down, lambda store: history.found(store, run))
        lines = _from_files(settings, found, rank, attempt, since, "nccl" if nccl else "stacks" if stacks else None)
        if follow:
            out.say("they cannot be followed without the controller")
    _check(found, rank, attempt)
    try:
        shown = _print(lines, found, rank, raw, output)
        if stacks and not shown and found.get("attempts"):
            out.say("no stacks are kept of that attempt: they are while it runs, and where it was ended for hanging")
    except KeyboardInterrupt:
        if found["state"] not in ("succeeded", "failed", "cancelled"):
            out.say(f"the run goes on; `orch cancel {found['id']}` ends it")
        click.get_current_context().exit(130)


def _print(lines: Iterator[dict[str, Any]], run: dict[str, Any], rank: int | None, raw: bool, output: str) -> int:
    """How many lines were shown."""
    from cli.watch import Screen, world_size

    if output == "json":
        out.print_json(whole := list(lines))
        return len(whole)
    screen = Screen(prefixed=rank is None and world_size(run) > 1, raw=raw)
    count = 0
    for line in lines:
        count += 1
        if output == "jsonl":
            sys.stdout.write(json.dumps(line) + "\n")
        else:
            screen.log(line)
    return count


def _from_controller(settings: Config, run: int, query: dict[str, Any]) -> Iterator[dict[str, Any]]:
    from cli.watch import watch

    told: set[str] = set()
    for item in watch(settings.home, run, "logs", query):
        if item is None:
            sys.stdout.flush()
        elif "lost" in item:
            out.say(item["lost"])
        elif "notice" in item:
            if item["notice"] not in told:
                told.add(item["notice"])
                out.say(item["notice"])
        elif "line" in item:
            yield item


def _from_files(
    settings: Config, run: dict[str, Any], rank: int | None, attempt: int | None, since: float | None, kept: str | None
) -> Iterator[dict[str, Any]]:
    """The controller's own files, read without it: the same lines in the same order."""
    import time

    from orchestrator.control.logs import LogFolder

    folder = LogFolder(settings.home / "logs")
    for past in run.get("attempts") or []:
        number = past["number"]
        if number != (attempt or len(run["attempts"])):
            continue
        if kept is not None:
            for line in {"nccl": folder.nccl, "stacks": folder.stacks}[kept](run["id"], number, rank):
                yield {"rank": line.rank, "attempt": number, "offset": line.offset, "line": line.text}
            continue
        first = (past.get("failure") or {}).get("rank")
        for of in sorted(folder.ranks(run["id"], number), key=lambda other: (other != first, other)):
            if rank is None or of == rank:
                start = 0 if since is None else folder.since(run["id"], number, of, time.time() - since)
                for line in folder.lines(run["id"], number, of, start, whole=True):
                    yield {"rank": of, "attempt": number, "offset": line.offset, "line": line.text}


def _check(run: dict[str, Any], rank: int | None, attempt: int | None) -> None:
    """Refuses a rank or an attempt that the run does not have, instead of printing nothing."""
    from cli.watch import world_size

    attempts = [past["number"] for past in run.get("attempts") or []]
    if attempt is not None and attempt not in attempts:
        has = f"it has had {len(attempts)}" if attempts else "it has not been started yet"
        raise Fail(f"run {run['id']} has no attempt {attempt}: {has}", NOT_FOUND)
    if rank is not None and rank >= (size := world_size(run)):
        raise Fail(f"run {run['id']} has no rank {rank}: its ranks are 0 to {size - 1}", NOT_FOUND)
    if not attempts:
        from orchestrator.scheduling.lifecycle import said

        why = f": {run['reason']}" if run.get("reason") else ""
        out.say(f"run {run['id']} ({run['name']}) {said(run['state'])} and has printed nothing yet{why}")
