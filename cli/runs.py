"""`orch ps`, `orch runs` and `orch show`: what runs and waits, what ran, and one run whole."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import Any

import click

from cli import context, history, measured
from cli import output as out
from cli.output import Column
from cli.times import between, local, moment, now, span
from cli.versions import version_lines


def _where(run: dict[str, Any]) -> str:
    """The nodes of the last attempt and how many of their GPUs: `gpu-01:8,gpu-02:8`."""
    attempts = run.get("attempts") or []
    placement = attempts[-1].get("placement") if attempts else None
    return ",".join(f"{part['node']}:{len(part['gpus'])}" for part in (placement or {}).get("nodes", []))


def _place(run: dict[str, Any]) -> str:
    """Where a run that holds a place is; nothing for one that waits."""
    return "" if run["state"] == "queued" else _where(run)


def _why(run: dict[str, Any]) -> str:
    from cli.watch import failure_of

    return failure_of(run) or run.get("reason") or ""


def _named(run: dict[str, Any]) -> str:
    """`sweep[3]` of an array's run, `sweep[]` of an array."""
    array = run.get("array")
    if not array:
        return str(run["name"])
    return f"{run['name']}[{array.get('index', '')}]"


def _placed(run: dict[str, Any]) -> str:
    """Where a run that holds a place is; of an array, how many of its runs are how far."""
    states = (run.get("array") or {}).get("states")
    return ", ".join(f"{count} {state}" for state, count in states.items()) if states else _place(run)


def _since(run: dict[str, Any]) -> float | None:
    """Seconds that it has waited since it was submitted, or run since it was started."""
    start = run["submitted_at"] if run["state"] == "queued" else run.get("started_at")
    return between(start, run.get("finished_at"))


_ID = Column("id", lambda run: run["id"], right=True)
_NAME = Column("name", _named)
_USER = Column("user", lambda run: run["user"])
_STATE = Column(
    "state", lambda run: run["state"], lambda run: out.word(run["state"]), lambda run: out.state_color(run["state"])
)
_REASON = Column("reason", _why)

ON_A_SCREEN = 200
ENDED = ("succeeded", "failed", "cancelled")
ENDED_AT_MOST = 1000
"""Ended runs that `ps --all` looks at."""

PS = (
    _ID,
    _NAME,
    _USER,
    _STATE,
    Column("position", lambda run: run.get("position"), right=True),
    Column("for_s", _since, lambda run: span(_since(run)), right=True),
    Column("where", _placed),
    _REASON,
)
RUNS = (
    _ID,
    _NAME,
    _USER,
    Column("team", lambda run: run.get("team"), spare=2),
    _STATE,
    Column("submitted", lambda run: run["submitted_at"], lambda run: local(run["submitted_at"])),
    Column(
        "took_s",
        lambda run: between(run.get("started_at"), run.get("finished_at")) if run.get("finished_at") else None,
        lambda run: span(between(run.get("started_at"), run.get("finished_at"))),
        right=True,
    ),
    Column("attempts", lambda run: len(run.get("attempts") or []), right=True, spare=1),
    measured.SAMPLES_PER_S,
    Column("where", _where),
    _REASON,
)


@click.command()
@click.option("-a", "--all", "everything", is_flag=True, help="The runs that ended within the last day too.")
@click.option(
    "--limit", type=click.IntRange(1, 100_000), help="At most so many rows (on a terminal: 200; a pipe gets all)."
)
@out.output_option
def ps(everything: bool, limit: int | None, output: str) -> None:
    """What runs, and what waits for what.

    An array is one row, with how many of its runs are in which state; with --json each run is by itself.

    \b
    orch ps
    orch ps -o name | xargs orch cancel
    """
    most = limit or (ON_A_SCREEN if output == "table" and out.on_terminal() else None)
    one_row = None if output in ("json", "jsonl") else 1
    # One more than is shown tells that there are more.
    rows = history.many({"live": 1, "arrays": one_row, "limit": most and most + 1})
    more, rows = len(rows) > (most or len(rows)), rows[:most]
    if everything:
        rows += _ended_today(rows, one_row is not None)
    out.print_rows(rows, PS, output, "id", "nothing runs and nothing waits")
    if more and output == "table":
        out.say(f"only the first {most} rows are shown: `orch ps --limit N` shows more, `orch ps --json` all")


def _ended_today(live: list[dict[str, Any]], one_row: bool) -> list[dict[str, Any]]:
    """What ended within the last day, the latest first, and is not among `live`; with `one_row` an array once."""
    day_ago = now() - timedelta(days=1)
    latest = history.many({"state": list(ENDED), "sort": "-finished", "limit": ENDED_AT_MOST})
    shown = {row["id"] for row in live}
    rows: dict[Any, dict[str, Any]] = {}
    for run in latest:
        if run["id"] in shown or (moment(run.get("finished_at")) or day_ago) <= day_ago:
            continue
        element = run.get("array")
        if not one_row or not element:
            rows[run["id"]] = run
        elif (array := f"{element['array']}[]") not in shown:
            counts = rows.setdefault(array, _array_row(run, array))["array"]["states"]
            counts[run["state"]] = counts.get(run["state"], 0) + 1
    for row in rows.values():
        if states := (row.get("array") or {}).get("states"):
            row["state"] = next(state for state in ("failed", "cancelled", "succeeded") if state in states)
    return list(rows.values())


def _array_row(run: dict[str, Any], array: str) -> dict[str, Any]:
    """An array's row from the last of its runs that ended."""
    return run | {"id": array, "reason": None, "attempts": [], "array": {"states": {}}}


@click.command()
@context.run_argument()
@click.option(
    "--lock", is_flag=True, help="Print the `requires:` block that pins the versions of its last good attempt."
)
@out.output_option
def show(run: str, lock: bool, output: str) -> None:
    """One run whole.

    What was asked, its attempts and where they were, why it failed, what happened when. RUN is an id, or a name
    for its latest run.

    \b
    orch show 42
    orch show resnet50 --json | jq .attempts
    orch show resnet50 --lock >> job.yaml
    """
    found = history.one(run, like=not lock)
    if lock:
        from cli.versions import print_lock

        print_lock(context.one_run(found), output)
    elif "size" in (found.get("array") or {}) and output in ("table", "csv", "name"):
        _show_array(found, output)
    elif output in ("json", "jsonl"):
        whole = _whole_array(found) if "size" in (found.get("array") or {}) else found
        out.print_json(whole) if output == "json" else click.echo(json.dumps(whole))
    elif output in ("csv", "name"):
        out.print_rows([found], RUNS, output, "id", "")
    else:
        _show(found)


def _whole_array(array: dict[str, Any]) -> dict[str, Any]:
    """An array under the names that a run has: when the first of its runs started and the last ended, and their GPU time."""
    ref = array["id"]
    (sums,) = history.many({"array": ref, "by": "name"})
    ends = {
        key: history.many({"array": ref, "columns": key, "sort": sort, "limit": 1})[0][key]
        for key, sort in (("started_at", "started"), ("finished_at", "-finished"))
    }
    parts = ("allocated", "starting", "productive", "checkpoint", "lost", "idle")
    return array | {
        "reason": None,
        "started_at": ends["started_at"],
        "finished_at": ends["finished_at"] if array["state"] in ENDED else None,
        "code": history.one(str(array["array"]["first"]))["code"],
        "attempts": [],
        "throughput": None,
        "gpu_seconds": {part: sums[f"{part}_s"] for part in parts},
        "events": [{"at": array["submitted_at"], "state": "queued", "reason": None}],
    }


def _show_array(array: dict[str, Any], output: str) -> None:
    if output != "table":
        out.print_rows([array], RUNS, output, "id", "")
        return
    of = array["array"]
    out.lines_of(
        [
            ("array", f"{array['id']} ({array['name']})" if out.on_terminal() else array["id"]),
            ("state", out.word(array["state"]) if out.on_terminal() else array["state"]),
            ("runs", f"{of['first']} to {of['last']}: {_placed(array)}"),
            ("limit", of["limit"]),
            *((f"values.{key}", values) for key, values in of["values"].items()),
            ("user", array["user"]),
            ("team", array.get("team")),
            ("submitted", _time(array["submitted_at"])),
            ("after", ", ".join(map(_need, array.get("after") or ()))),
            ("run", array["spec"]["run"]),
        ]
    )
    out.say(f"its runs: orch runs --array {array['name']}; one of them: orch show '{array['name']}[0]'")


def _need(need: dict[str, Any]) -> str:
    """One of the runs that must have succeeded before: `41 (pretrain)`."""
    ids = str(need["first"]) if need["first"] == need["last"] else f"{need['first']} to {need['last']}"
    return f"{ids} ({need['word']})"


def _show(run: dict[str, Any]) -> None:
    """Readable on a terminal; `field TAB value` lines into a pipe."""
    code = run.get("code") or {}
    commit = (code.get("git") or "")[:12] + (" with changes" if code.get("dirty") else "")
    position = run.get("position")
    out.lines_of(
        [
            ("run", f"{run['id']} ({_named(run)})") if out.on_terminal() else ("id", run["id"]),
            ("name", None if out.on_terminal() else _named(run)),
            ("state", out.word(run["state"]) if out.on_terminal() else run["state"]),
            ("position", position),
            ("reason", run.get("reason")),
            ("user", run["user"]),
            ("team", run.get("team")),
            ("submitted", _time(run["submitted_at"])),
            ("started", _time(run.get("started_at"))),
            ("finished", _time(run.get("finished_at"))),
            ("took", _span(between(run.get("started_at"), run.get("finished_at")))),
            *measured.fields(run),
            ("code", code.get("sha256", "")[:12] + (f", git {commit}" if commit else "")),
            ("after", ", ".join(map(_need, run.get("after") or ()))),
            *(
                (key, _spec_value(key, value))
                for key, value in (run.get("spec") or {}).items()
                if key not in ("name", "after")
            ),
            ("slower", compared["text"] if (compared := run.get("compared") or {}).get("slower") else None),
        ]
    )
    for attempt in run.get("attempts") or []:
        _show_attempt(attempt)
    if run.get("events") and out.on_terminal():
        click.echo(out.paint("\nevents", bold=True))
        for event in run["events"]:
            reason = f"  {event['reason']}" if event.get("reason") else ""
            click.echo(out.clean(f"  {local(event['at'])}  {event['state']:<9}{reason}"))


def _show_attempt(attempt: dict[str, Any]) -> None:
    prefix = f"attempt.{attempt['number']}."
    failure, placement, stop = attempt.get("failure"), attempt.get("placement") or {}, attempt.get("stop") or {}
    nodes = placement.get("nodes") or []
    if not out.on_terminal():
        fields = [(f"{prefix}outcome", attempt.get("outcome"))]
        fields += [(f"{prefix}failure.{key}", value) for key, value in (failure or {}).items()]
        fields += [(f"{prefix}stop", stop.get("reason"))]
        fields += [(f"{prefix}started", attempt.get("started_at")), (f"{prefix}ended", attempt.get("ended_at"))]
        fields += [(f"{prefix}{part['node']}", part["gpus"]) for part in nodes]
        fields += [(f"{prefix}versions", text) for text in version_lines(attempt)]
        fields += [
            (f"{prefix}transport{key}", value) for key, value in _transport_fields(attempt.get("transport") or {})
        ]
        out.lines_of(fields)
        return
    took = span(between(attempt.get("started_at"), attempt.get("ended_at")))
    outcome = attempt.get("outcome")
    color = {"succeeded": "green", None: "blue"}.get(outcome, "red")
    title = out.paint(f"\nattempt {attempt['number']}", bold=True)
    click.echo(f"{title}  {out.paint(out.clean((outcome or 'lives').replace('_', ' ')), color)}  {took}")
    if failure:
        from cli.watch import cause_text, detail_lines, failure_text

        click.echo(out.paint("  " + out.clean(f"{failure['kind']}: {failure_text(failure)}"), "red"))
        if said := cause_text(failure):
            click.echo("  " + out.clean(said))
        for line in detail_lines(failure):
            click.echo(out.paint("    " + out.clean(line), dim=True))
    elif stop:
        click.echo("  " + out.clean(stop["reason"] or stop["kind"]))
    for text in version_lines(attempt):
        click.echo(out.clean(f"  {text}"))
    kind = "slot" if placement.get("device") == "cpu" else "GPU"
    if nodes:
        bandwidth = placement.get("busbw_predicted")
        promised = f", {bandwidth:.3g} GB/s predicted, {placement.get('busbw_bottleneck')}" if bandwidth else ""
        click.echo(out.wrapped(out.clean(f"  placed: {placement.get('level', 'cluster')}{promised}")))
    codes = attempt.get("exit_codes") or {}
    for number, part in enumerate(nodes):
        branch, trunk = ("└─", "   ") if number == len(nodes) - 1 else ("├─", "│  ")
        click.echo(out.clean(f"  {branch} {part['node']}"))
        gpus = part["gpus"]
        ranks = part.get("ranks") or [None] * len(gpus)
        for rank, gpu in zip(ranks, gpus, strict=True):
            end = codes.get(str(rank))
            ended = "" if end is None else f"  exit {end}" if end >= 0 else f"  killed by signal {-end}"
            leaf = "└─" if gpu == gpus[-1] else "├─"
            click.echo(f"  {trunk}{leaf} {kind} {gpu}: rank {rank}{ended}")
    for line in transport_lines(attempt.get("transport")):
        worse = line.startswith("transport worse")
        click.echo(out.paint("  " + out.clean(line), "yellow") if worse else "  " + out.clean(line))


def _transport_fields(transport: dict[str, Any]) -> list[tuple[str, Any]]:
    shortfalls = transport.get("shortfalls") or []
    causes = shortfalls[0]["causes"] if shortfalls else []
    return [
        ("", transport.get("verdict")),
        (".links", ",".join(f"{kind}={count}" for kind, count in (transport.get("links") or {}).items())),
        (".reason", transport.get("reason")),
        (".cause", causes[0]["text"] if causes else None),
    ]


def transport_lines(transport: dict[str, Any] | None) -> list[str]:
    """What NCCL's log showed: the verdict with the links, then each shortfall with its causes."""
    if not transport:
        return []
    links = ", ".join(f"{count} {kind}" for kind, count in transport["links"].items())
    facts = [f"NCCL {transport['nccl']}"] if transport.get("nccl") else []
    facts += [f"{transport['channels']} channels"] if transport.get("channels") else []
    facts += list(transport.get("algorithms") or ())
    if transport.get("nvls") and "NVLS" not in facts:
        facts.append("NVLS")
    said = links or transport["reason"]
    lines = [f"transport {transport['verdict']}: {said}" + (f" ({', '.join(facts)})" if facts else "")]
    for one in transport.get("shortfalls") or ():
        lines.append(f"  {one['text']}")
        for cause in one["causes"]:
            lines.append(f"    {'because' if cause['shown'] else 'perhaps'} {cause['text']}")
            lines.append(f"      {cause['mend']}")
    return lines


def _time(text: str | None) -> str | None:
    return local(text) if text and out.on_terminal() else text


def _span(seconds: float | None) -> Any:
    return span(seconds) if out.on_terminal() else seconds


def _spec_value(key: str, value: Any) -> Any:
    """A part of the spec as a job file would have it."""
    if key in ("grace", "time_limit") and value and out.on_terminal():
        return span(value)
    if isinstance(value, dict) and out.on_terminal():
        return ", ".join(f"{key}={item}" for key, item in value.items())
    return value
