"""`orch runs`: the history of runs by filters, in the columns or groups that are asked for."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any, TypeVar

import click

from cli import history
from cli import output as out
from cli.output import Column
from cli.runs import RUNS
from cli.times import Ago, local, now, span

F = TypeVar("F", bound=Callable[..., Any])
STATES = ("queued", "starting", "running", "stopping", "succeeded", "failed", "cancelled")
OUTCOMES = ("succeeded", "user_error", "infra_error", "preempted", "drained", "cancelled")
SORTS = (
    "id", "name", "user", "team", "state", "priority", "submitted", "started", "finished", "samples_per_s", "step_time_s",
    "allocated_s", "lost_s", "wait_s", "gpus", "nodes", "attempts",
)  # fmt: skip
COLUMNS = (
    "id", "name", "user", "team", "state", "reason", "priority", "submitted_at", "started_at", "finished_at", "took_s",
    "code_sha256", "code_git", "code_dirty", "attempts", "device", "gpu", "gpus", "nodes", "leaves", "level", "outcome",
    "failure_kind", "neighbours", "wait_s", "samples_per_s", "step_time_s", "steps", "samples", "allocated_s", "starting_s",
    "productive_s", "checkpoint_s", "lost_s", "idle_s", "cost", "tags",
)  # fmt: skip
DIMENSIONS = ("user", "team", "name", "state", "gpu", "day", "week", "month")
FIGURES = (
    "runs", "succeeded", "failed", "cancelled", "success_rate", "attempts", "wait_s", "allocated_s", "starting_s",
    "productive_s", "checkpoint_s", "lost_s", "idle_s", "goodput", "samples_per_s", "samples", "cost",
)  # fmt: skip
"""These five say what orchestrator/history knows, which a command must not load to print its help; a test compares them."""

GPU_TIME = ("allocated_s", "starting_s", "productive_s", "checkpoint_s", "lost_s", "idle_s")
ON_TERMINAL = ("runs", "success_rate", "wait_s", *GPU_TIME, "goodput", "samples_per_s", "cost")
TEXT = (
    "name",
    "user",
    "team",
    "state",
    "reason",
    "code_sha256",
    "code_git",
    "device",
    "gpu",
    "level",
    "outcome",
    "failure_kind",
)


def filter_options(command: F) -> F:
    """Adds the filters of the history; the command gets `query`, in the API's words."""
    options = [
        click.option("--name", multiple=True, metavar="PATTERN", help="Of this name; resnet-* and ? are patterns."),
        click.option("--user", multiple=True, help="Submitted by this user."),
        click.option("--team", multiple=True, help="Of this team."),
        click.option("--state", multiple=True, type=click.Choice(STATES), help="In this state."),
        click.option("--since", type=Ago(), help="Submitted within 12h, 7d ... or since a date."),
        click.option("--until", type=Ago(), help="Submitted before then: 30d ago, or a date."),
        click.option("--array", metavar="ARRAY", help="Of this array, by its name or as 101[]."),
        click.option("--tag", "tags", multiple=True, metavar="K=V", help="With this tag; all of them where several."),
        click.option("--node", multiple=True, help="An attempt was on this node."),
        click.option("--gpu", multiple=True, metavar="MODEL", help="On GPUs with this in their name: h100."),
        click.option("--code", metavar="HASH", help="The code's git commit or SHA-256 begins so."),
        click.option("--outcome", multiple=True, type=click.Choice(OUTCOMES), help="An attempt ended so."),
        click.option("--failure", multiple=True, metavar="KIND", help="An attempt failed so: node_lost, exit, ..."),
        click.option("--min-throughput", type=click.FloatRange(0), help="At least so many samples per second."),
        click.option("--max-throughput", type=click.FloatRange(0), help="At most so many."),
    ]

    @functools.wraps(command)
    def wrapper(*args: Any, since: float | None, until: float | None, tags: tuple[str, ...], **given: Any) -> Any:
        for tag in tags:
            if "=" not in tag:
                raise click.UsageError(f"--tag {tag}: write it as KEY=VALUE")
        names = ("name", "user", "team", "state", "node", "gpu", "outcome", "failure")
        query: dict[str, Any] = {name: list(given.pop(name)) or None for name in names}
        for name in ("array", "code", "min_throughput", "max_throughput"):
            query[name] = given.pop(name)
        query |= {"since": _moment(since), "until": _moment(until), "tag": list(tags) or None}
        return command(*args, query=query, **given)

    found: Any = wrapper
    for option in reversed(options):
        found = option(found)
    return found  # type: ignore[no-any-return]


def _moment(ago: float | None) -> str | None:
    return None if ago is None else (now() - timedelta(seconds=ago)).isoformat()


def listed(text: str | None, known: Sequence[str], option: str) -> list[str]:
    """The words between commas. Raises UsageError for one that is not known."""
    words = [word.strip() for word in (text or "").split(",") if word.strip()]
    if text is not None and not words:
        raise click.UsageError(f"{option}: name at least one of {', '.join(known)}")
    for word in words:
        if word not in known:
            raise click.UsageError(f"{option}: {word!r} is not one of {', '.join(known)}")
    return words


@click.command()
@filter_options
@click.option("--sort", metavar="FIELD", help=f"By {', '.join(SORTS)}; with - the largest first. Default: -submitted.")
@click.option("--limit", type=click.IntRange(1, 100_000), help="At most so many; default 50, of groups all.")
@click.option("--columns", metavar="LIST", help=f"Of {', '.join(COLUMNS)}.")
@click.option(
    "--by", metavar="LIST", help=f"Sums over groups, by one or more of {', '.join(DIMENSIONS)}; with --best a metric."
)
@click.option(
    "--best",
    type=click.IntRange(1, 100_000),
    help="Of an array the N best by the metric of --by: loss (the smallest is best), -accuracy (the largest is).",
)
@out.output_option
def runs(
    query: dict[str, Any],
    sort: str | None,
    limit: int | None,
    columns: str | None,
    by: str | None,
    best: int | None,
    output: str,
) -> None:
    """The history of runs, the latest first; or sums over groups of them.

    Filters go together; one that is given twice lets either through.

    \b
    orch runs --state failed --since 7d
    orch runs --tag sweep=a --sort -samples_per_s --columns id,name,samples_per_s,nodes
    orch runs --by team,week --since 90d
    orch runs --array sweep --best 3 --by loss
    """
    if best is not None:
        _best(query | {"sort": sort or "-submitted", "limit": limit}, best, by, output)
        return
    dimensions = listed(by, DIMENSIONS, "--by")
    chosen = listed(columns, COLUMNS, "--columns")
    if dimensions and chosen:
        raise click.UsageError("--by and --columns exclude each other: groups have columns of their own")
    fields = (*dimensions, *FIGURES) if dimensions else SORTS
    if sort is not None and sort.removeprefix("-") not in fields:
        raise click.UsageError(f"--sort: {sort!r} is not one of {', '.join(fields)} (with - for the largest first)")
    query |= {"sort": sort, "limit": limit}
    if dimensions:
        rows = history.many(query | {"by": ",".join(dimensions)})
        figures = ON_TERMINAL if out.on_terminal() and output == "table" else FIGURES
        out.print_rows(
            rows, [column(name) for name in (*dimensions, *figures)], output, dimensions[0], "no run is like that"
        )
    elif chosen:
        asked = chosen if "id" in chosen or output != "name" else ["id", *chosen]
        rows = history.many(query | {"columns": ",".join(asked)})
        out.print_rows(rows, [column(name) for name in chosen], output, "id", "no run is like that")
    else:
        out.print_rows(history.many(query | {"sort": sort or "-submitted"}), RUNS, output, "id", "no run is like that")


def _best(query: dict[str, Any], best: int, by: str | None, output: str) -> None:
    """The best runs of an array by a metric that they report."""
    if by is None or query["array"] is None:
        raise click.UsageError("--best and --by go together, with --array: --array sweep --best 3 --by loss")
    metric = by.removeprefix("-")
    value = Column(metric, lambda run: (run.get("metrics") or {}).get(metric), right=True)
    rows = history.many(query | {"best": best, "by": by})
    empty = f"no run of {query['array']} has reported {metric}"
    out.print_rows(rows, (*RUNS[:2], value, *RUNS[2:]), output, "id", empty)


def column(name: str) -> Column:
    """A column of flat rows: times and durations as people read them, GPU time in hours."""
    if name == "state":
        return Column(
            name, lambda row: row[name], lambda row: out.word(row[name]), lambda row: out.state_color(row[name])
        )
    read = next((read for names, read in _READ if name in names), None)
    shown = None if read is None else lambda row: "" if row[name] is None else read(row[name])
    return Column(name, lambda row: row[name], shown, right=name not in TEXT and not name.endswith("_at"))


def _figure(value: float) -> str:
    return f"{value:,.4g}" if value < 1000 else f"{value:,.0f}"


_READ: tuple[tuple[tuple[str, ...], Callable[[Any], str]], ...] = (
    (("submitted_at", "started_at", "finished_at"), local),
    (GPU_TIME, lambda seconds: f"{seconds / 3600:,.1f}h"),
    (("took_s", "wait_s"), span),
    (("success_rate", "goodput"), lambda share: f"{share:.0%}"),
    (("samples_per_s", "step_time_s", "cost"), _figure),
)
