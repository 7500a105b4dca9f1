"""A CSV with at least job_id, num_gpu, submit_time and duration: the traces that papers derive from Microsoft's Philly.

Used where they are there: user, team, name, model_name, batch_size, num_nodes, priority, time_limit. Everything else is
left alone.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import UTC, datetime

from orchestrator.scheduling.simulate.jobs import Job, Trace, trace_of
from orchestrator.scheduling.simulate.traces.rows import Rows, number, signed, whole

REQUIRED = ("job_id", "num_gpu", "submit_time", "duration")
ENOUGH_TO_TELL = 20
UNITS = {"ms": 0.001, "s": 1.0, "min": 60.0}

_CHRONUS = ("expect_time_list", "best_effort")
_SAID_OTHERWISE = "--unit says otherwise"


def parse(text: str, source: str, unit: str | None = None) -> Trace:
    """The jobs of the trace. `unit` is that of submit_time, duration and time_limit; without it, it is told from the
    file, with a note. Raises TraceError."""
    rows = Rows(text, source)
    rows.require(*REQUIRED)
    found: list[Job] = []
    dated = False
    without = 0
    for _ in rows:
        gpus = rows.read("num_gpu", whole)
        dated = dated or bool(re.match(r"\d{4}-\d\d-\d\d", rows.text("submit_time")))
        submitted = rows.read("submit_time", moment)
        duration = rows.read("duration", number)
        batch = rows.read("batch_size", whole) if rows.text("batch_size") else None
        nodes = rows.read("num_nodes", whole) if rows.text("num_nodes") else None
        limit = rows.read("time_limit", number) if rows.text("time_limit") else None
        priority = rows.read("priority", signed) if rows.text("priority") else 0
        if nodes and gpus and gpus % nodes:
            rows.complain("num_nodes", f"{gpus} GPUs cannot be spread evenly over {nodes} nodes")
        if gpus is None or submitted is None or duration is None:
            continue
        if not gpus:
            without += 1
            continue
        user, model = rows.text("user") or "user", rows.text("model_name") or None
        found.append(
            Job(
                rows.text("job_id"),
                gpus,
                submitted,
                duration,
                name=rows.text("name") or "-".join(filter(None, (user, model))),
                user=user,
                team=rows.text("team") or None,
                model=model,
                batch_size=batch or None,
                nodes=nodes or None,
                limit_s=limit,
                priority=priority or 0,
            )
        )
    rows.finish()
    notes = []
    if without:
        notes.append(f"{source}: jobs left out because they ask for no GPU: {without}")
    if unit is None:
        unit, note = _unit(found, rows.titles, dated)
        notes.append(note)
    scale = UNITS[unit]
    return trace_of((_scaled(job, scale, dated) for job in found), notes)


def _scaled(job: Job, scale: float, dated: bool) -> Job:
    from dataclasses import replace

    return replace(
        job,
        submit_s=job.submit_s * (1.0 if dated else scale),
        duration_s=(job.duration_s or 0.0) * scale,
        limit_s=None if job.limit_s is None else job.limit_s * scale,
    )


def _unit(jobs: Sequence[Job], titles: Sequence[str], dated: bool) -> tuple[str, str]:
    """The unit, and in a sentence what it is told from."""
    if dated:
        return "s", f"durations are taken as seconds, as submissions have dates; {_SAID_OTHERWISE}"
    if all(title in titles for title in _CHRONUS):
        return "min", f"times are taken as minutes: the columns are those of ChronusArtifact; {_SAID_OTHERWISE}"
    times = [time for job in jobs for time in (job.submit_s, job.duration_s or 0.0)]
    # A handful of round numbers proves nothing.
    if len(jobs) >= ENOUGH_TO_TELL and max(times) >= 100_000 and all(time % 1000 == 0 for time in times):
        return "ms", f"times are taken as milliseconds: all are whole thousands; {_SAID_OTHERWISE}"
    return "s", f"times are taken as seconds; {_SAID_OTHERWISE}"


def moment(text: str) -> float:
    """A number, or a date as seconds since 1970 (UTC where it has no zone). ValueError."""
    if not re.match(r"\d{4}-\d\d-\d\d", text):
        return number(text)
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        raise ValueError("must be a number or a date such as 2026-01-05T09:00:00") from None
    return (at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp()
