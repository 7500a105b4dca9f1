"""Runs of orch's own history, as `orch runs --json` and `orch export` print them: an array, or an object a line."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from datetime import datetime
from typing import Any

from orchestrator.scheduling.simulate.jobs import Job, Trace, trace_of
from orchestrator.scheduling.simulate.traces.errors import TraceError

Run = dict[str, Any]


def parse(text: str, source: str) -> Trace:
    """The runs that held GPUs. Raises TraceError."""
    complaints: list[str] = []
    runs = list(_objects(text, source, complaints))
    trace = trace_of_runs(runs, source, complaints)
    if complaints:
        raise TraceError(complaints)
    return trace


def trace_of_runs(runs: list[tuple[int, Run]], source: str, complaints: list[str]) -> Trace:
    """From runs, each with the line that it stands on (or 0). What is wrong with one goes to `complaints`.

    A run lasted as long as its attempts had GPUs, all together; one that has no attempt, or ran on CPUs, is left out.
    """
    jobs: list[Job] = []
    left: Counter[str] = Counter()
    for line, run in runs:
        try:
            found = _job(run)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            what = f"has no {error}" if isinstance(error, KeyError) else str(error)
            complaints.append(f"{source}:{line}: is no run as orch prints it: {what}")
            continue
        if isinstance(found, str):
            left[found] += 1
        else:
            jobs.append(found)
    return trace_of(jobs, [f"{source}: runs left out because they {why}: {count}" for why, count in left.items()])


def _objects(text: str, source: str, complaints: list[str]) -> Iterator[tuple[int, Run]]:
    if text.lstrip().startswith("["):
        try:
            yield from ((0, run) for run in json.loads(text))
        except json.JSONDecodeError as error:
            complaints.append(f"{source}:{error.lineno}: {error.msg}")
        return
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip():
            try:
                yield number, json.loads(line)
            except json.JSONDecodeError as error:
                complaints.append(f"{source}:{number}: {error.msg}")


def _job(run: Run) -> Job | str:
    """The job, or why there is none."""
    attempts = [attempt for attempt in run["attempts"] if attempt["started_at"] and attempt["ended_at"]]
    if not attempts:
        return "have no attempt that has ended"
    nodes = attempts[-1]["placement"]["nodes"]
    if attempts[-1]["placement"].get("device") == "cpu":
        return "ran on CPUs"
    gpus = sum(len(node["gpus"]) for node in nodes)
    spec = run.get("spec") or {}
    shaped = "x" in str(spec.get("workers", ""))
    return Job(
        str(run["id"]),
        gpus,
        _moment(run["submitted_at"]),
        sum(_moment(each["ended_at"]) - _moment(each["started_at"]) for each in attempts),
        name=run["name"],
        user=run["user"],
        team=run.get("team"),
        nodes=len(nodes) if shaped and gpus % len(nodes) == 0 else None,
        limit_s=spec.get("time_limit"),
        priority=int(run.get("priority") or 0),
    )


def _moment(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()
