"""What `orch bench` found, as people and programs read it: by size, by pair, by time."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import click

from cli import output as out
from cli.bench_run import Done, size
from cli.output import Column
from cli.times import local
from orchestrator.bench.compare import FALLS_BEHIND, TELLS_BYTES, behind
from orchestrator.bench.pairs import Pair, verdicts
from orchestrator.bench.pairs import second_round as pairs_again
from orchestrator.bench.results import BACKENDS

Result = dict[str, Any]


# === what was found ===


def answer(done: Done, results: Sequence[Result], *, pairs: bool) -> dict[str, Any]:
    """The JSON of `orch bench`."""
    runs = [
        {"id": run["id"], "name": run["name"], "state": run["state"], "reason": run.get("reason"), "nodes": _nodes(run)}
        for run in done.runs
    ]
    skipped = [{"run": run, "collective": c, "backend": b, "reason": why} for run, c, b, why in done.skipped]
    found: dict[str, Any] = {"runs": runs, "results": list(results), "skipped": skipped}
    if not pairs:
        return found | {"suspects": suspects(results)}
    nodes = _of_nodes(done, results)
    return found | {"nodes": nodes, "suspects": [node for node in nodes if node["suspect"]]}


def _nodes(run: dict[str, Any]) -> list[str]:
    attempts = run.get("attempts") or []
    return [part["node"] for part in attempts[-1]["placement"]["nodes"]] if attempts else []


def suspects(results: Sequence[Result]) -> list[Result]:
    """The links that stay behind, each with the largest size of each collective and backend that shows it."""
    keys = ("nodes", "backend", "collective", "bytes", "busbw", "like_median", "of_like", "likes", "run")
    return [{key: row[key] for key in keys} for row in largest(results) if row["suspect"]]


def largest(results: Sequence[Result]) -> list[Result]:
    """Of each run, collective and backend the result of the largest size."""
    found: dict[tuple[Any, ...], Result] = {}
    for row in results:
        key = (row["run"], row["attempt"], row["backend"], row["collective"])
        if key not in found or row["bytes"] > found[key]["bytes"]:
            found[key] = row
    return list(found.values())


def _figures(done: Done, results: Sequence[Result]) -> dict[Pair, float | None]:
    """By pair, what its first collective reached at the largest size; None where its run gave nothing."""
    by_run: dict[int, float] = {}
    for row in largest(results):
        by_run.setdefault(row["run"], row["busbw"])
    return {(nodes[0], nodes[1]): by_run.get(run) for run, nodes in done.only.items() if len(nodes) == 2}


def second_round(done: Done, results: Sequence[Result]) -> list[Pair]:
    return pairs_again(_figures(done, results))


def _of_nodes(done: Done, results: Sequence[Result]) -> list[dict[str, Any]]:
    """Each node by the best pair that it was in."""
    best = verdicts(_figures(done, results))
    slow = behind({node: figure for node, figure in best.items() if figure is not None})
    return [
        {
            "node": node,
            "busbw": figure,
            "like_median": slow.get(node),
            "of_like": round(figure / slow[node], 4) if figure is not None and node in slow else None,
            "suspect": figure is None or node in slow,
        }
        for node, figure in best.items()
    ]


# === printed ===


def printed(found: dict[str, Any], output: str, *, plot: bool, pairs: bool) -> None:
    results = found["results"]
    if output == "json":
        out.print_json(found)
    elif output == "jsonl":
        for row in results:
            click.echo(json.dumps(row))
    elif output == "name":
        for run in found["runs"]:
            click.echo(str(run["id"]))
    else:
        rows = side_by_side(largest(results) if pairs else results)
        out.print_rows(
            rows, columns(results, several=pairs or len(found["runs"]) > 1), output, "link", "nothing was measured"
        )
    for one in {(s["collective"], s["backend"], s["reason"]): s for s in found["skipped"]}.values():
        out.say(f"{one['collective']} by {one['backend']} was not measured: {one['reason']}")
    _say_more(found, pairs=pairs)
    if plot and output in ("table",):
        from cli.plot import by_size

        click.echo(by_size(results))


def _say_more(found: dict[str, Any], *, pairs: bool) -> None:
    results = found["results"]
    for text in dict.fromkeys(_on(row) for row in results):
        out.say(text)
    if pairs:
        for node in found["suspects"]:
            rate = (
                "no pair with it ended well" if node["busbw"] is None else _behind(node["busbw"], node["like_median"])
            )
            out.say(f"{out.sign('failed')} {node['node']} stays behind: {rate}".lstrip())
        if results and not found["suspects"]:
            out.say(f"no node stays behind: {len(found['nodes'])} were measured in pairs")
        return
    for one in found["suspects"]:
        text = f"{' + '.join(one['nodes'])}: {one['collective']} by {one['backend']} {_behind(one['busbw'], one['like_median'])}"
        out.say(f"{out.sign('failed')} suspect: {text} of {one['likes']} links like it".lstrip())


def _behind(busbw: float, like: float) -> str:
    return f"{busbw:.3g} GB/s, {busbw / like:.0%} of the {like:.3g}"


def _on(row: Result) -> str:
    """Over what it was measured, and with what."""
    versions = ", ".join(f"{name} {value}" for name, value in row["versions"].items())
    via = f"; NCCL took {', '.join(row['transport'])}" if row["transport"] else ""
    bound = f", bounded by {row['bottleneck']}" if row["bottleneck"] else ""
    return f"{' + '.join(row['nodes'])}: {row['ranks']} ranks of {row['model']} within one {row['level']}{bound}; {versions}{via}"


def side_by_side(results: Sequence[Result]) -> list[dict[str, Any]]:
    """A row for each link, collective and size, with each backend's figure in it."""
    found: dict[tuple[Any, ...], dict[str, Any]] = {}
    for row in results:
        key = (row["run"], row["collective"], row["bytes"])
        line = found.setdefault(
            key,
            {
                "link": "+".join(row["nodes"]),
                "run": row["run"],
                "collective": row["collective"],
                "bytes": row["bytes"],
                "note": [],
            },
        )
        line[row["backend"]] = row
        line["note"] += [text] if (text := _note(row)) else []
    return list(found.values())


def _note(row: Result) -> str:
    parts = []
    if row["change"] is not None and abs(row["change"]) >= 1 - FALLS_BEHIND and row["bytes"] >= TELLS_BYTES:
        parts.append(f"{row['change']:+.0%} against {row['earlier']} earlier")
    if row["suspect"]:
        parts.append(f"suspect: {row['of_like']:.0%} of its like")
    return f"{row['backend']} {', '.join(parts)}" if parts else ""


def _figure(backend: str, name: str) -> Column:
    def value(line: dict[str, Any]) -> float | None:
        found = line.get(backend)
        return found[name] if found else None

    def shown(line: dict[str, Any]) -> str:
        number = value(line)
        return "" if number is None else f"{number:.0f}" if number >= 100 else f"{number:.3g}"

    def color(line: dict[str, Any]) -> str | None:
        return "red" if name == "busbw" and line.get(backend, {}).get("suspect") else None

    title = f"{backend}_{'GB/s' if name == 'busbw' else name}"
    return Column(title, value, shown, color, right=True)


def columns(results: Sequence[Result], *, several: bool) -> list[Column]:
    """Into a pipe every column is there, whichever backend was measured; on a terminal those that hold something."""
    collectives = {row["collective"] for row in results}
    link = Column("link", lambda line: line["link"])
    collective = Column("collective", lambda line: line["collective"])
    count = Column("bytes", lambda line: line["bytes"], lambda line: size(line["bytes"]), right=True)
    head = [link, collective, count]
    if out.on_terminal():
        head = [
            column for column, wanted in ((link, several), (collective, len(collectives) > 1), (count, True)) if wanted
        ]
    figures = [_figure(backend, name) for backend in BACKENDS for name in ("busbw", "predicted")]
    return [*head, *figures, Column("note", lambda line: "; ".join(line["note"]))]


# === the past ===

HISTORY = (
    Column("at", lambda row: row["at"], lambda row: local(row["at"])),
    Column("run", lambda row: row["run"], right=True),
    Column("link", lambda row: "+".join(row["nodes"])),
    Column("ranks", lambda row: row["ranks"], right=True),
    Column("collective", lambda row: row["collective"]),
    Column("backend", lambda row: row["backend"]),
    Column("bytes", lambda row: row["bytes"], lambda row: size(row["bytes"]), right=True),
    Column("GB/s", lambda row: row["busbw"], lambda row: f"{row['busbw']:.3g}", right=True),
    Column(
        "predicted",
        lambda row: row["predicted"],
        lambda row: f"{row['predicted']:.3g}" if row["predicted"] else "",
        right=True,
    ),
    Column(
        "change",
        lambda row: row["change"],
        lambda row: "" if row["change"] is None else f"{row['change']:+.1%}",
        lambda row: "red" if (row["change"] or 0) <= -0.05 else "green" if (row["change"] or 0) >= 0.05 else None,
        right=True,
    ),
    Column(
        "of_like", lambda row: row["of_like"], lambda row: f"{row['of_like']:.0%}" if row["of_like"] else "", right=True
    ),
    Column(
        "suspect",
        lambda row: row["suspect"],
        lambda row: "suspect" if row["suspect"] else "",
        lambda row: "red" if row["suspect"] else None,
    ),
)


def print_history(results: Sequence[Result], output: str, *, plot: bool) -> None:
    """JSON has every size; a table the largest of each run."""
    rows = results if output in ("json", "jsonl") else largest(results)
    out.print_rows(rows, HISTORY, output, "run", "no link was measured in that time: `orch bench` measures one")
    if plot and output == "table" and rows:
        from cli.plot import by_time

        click.echo(by_time(rows))


def links_of(results: Sequence[Result]) -> dict[tuple[Any, ...], list[Result]]:
    """The results by what a line of a plot is: link, collective and backend."""
    found: dict[tuple[Any, ...], list[Result]] = defaultdict(list)
    for row in results:
        found["+".join(row["nodes"]), row["collective"], row["backend"]].append(row)
    return dict(found)
