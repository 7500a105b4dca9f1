"""What Slurm's accounting says: the output of `sacct -P`, columns by their names.

    sacct -P -a -X -S 2026-01-01 -o JobID,JobName,User,Account,Submit,Start,End,Elapsed,Timelimit,NNodes,AllocTRES,ReqTRES,State

A job is a row whose JobID has no dot: steps (`42.0`, `42.batch`) are parts of one. A task of an array (`42_7`) and a
component of a heterogeneous job (`42+1`) is a job; the rest of an array that was never split off (`42_[8-99]`) never ran.
A job that was requeued has several rows with --duplicates: one job, submitted at the first, its times added up.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field

from orchestrator.scheduling.simulate.jobs import Job, Trace, trace_of
from orchestrator.scheduling.simulate.traces.plain_csv import moment
from orchestrator.scheduling.simulate.traces.rows import Rows, number, whole

STATES = frozenset(
    word
    for line in (
        "BOOT_FAIL CANCELLED COMPLETED COMPLETING CONFIGURING DEADLINE FAILED LAUNCH_FAILED NODE_FAIL OUT_OF_MEMORY PENDING",
        "POWER_UP_NODE PREEMPTED RECONFIG_FAIL REQUEUED REQUEUE_FED REQUEUE_HOLD RESIZING RESV_DEL_HOLD REVOKED RUNNING",
        "SIGNALING SPECIAL_EXIT STAGE_OUT STOPPED SUSPENDED TIMEOUT",
    )
    for word in line.split()
)
LIVE = frozenset({"RUNNING", "SUSPENDED", "COMPLETING", "CONFIGURING", "RESIZING", "STAGE_OUT", "SIGNALING", "STOPPED"})

_UNKNOWN = frozenset({"", "Unknown", "None", "N/A", "INVALID", "Partition_Limit", "UNLIMITED"})
_CLOCK = re.compile(r"(?:(\d+)-)?(?:(\d+):)?(\d+):(\d+)(?:\.\d+)?")
_GRES = re.compile(r"\bgpu(?::[A-Za-z][^:,=()]*)?(?::(\d+))?")


def recognises(titles: list[str]) -> bool:
    return "jobid" in titles and ("state" in titles or "submit" in titles)


@dataclass
class _Heard:
    """What the rows of one job say together."""

    gpus: int
    submitted: float
    ran: float
    name: str
    user: str
    account: str | None
    nodes: int | None
    limit: float | None
    priority: int = 0
    live: bool = field(default=False)


def parse(text: str, source: str) -> Trace:
    """The jobs that had GPUs and ran. Raises TraceError."""
    rows = Rows(text, source, "|")
    rows.require("JobID", "Submit")
    if not any(map(rows.has, ("Elapsed", "ElapsedRaw"))):
        rows.require("Start", "End")
    if not any(map(rows.has, ("AllocTRES", "ReqTRES", "AllocGRES", "ReqGRES"))):
        rows.require("AllocTRES")
    heard: dict[str, _Heard] = {}
    left: Counter[str] = Counter()
    for _ in rows:
        identity, state = rows.text("JobID"), rows.text("State").partition(" ")[0].rstrip("+")
        if "." in identity:
            continue
        if state and not any(known.startswith(state) for known in STATES):
            rows.complain("State", f"{state!r} is no state of Slurm's")
            continue
        found = _row(rows, state)
        if found is None:
            continue
        if not found.gpus:
            left["had no GPU"] += 1
        elif not found.ran:
            left["never ran"] += 1
        elif identity in heard:
            first = heard[identity]
            first.submitted, first.ran = min(first.submitted, found.submitted), first.ran + found.ran
        else:
            heard[identity] = found
    rows.finish()
    notes = [f"{source}: jobs left out because they {why}: {count}" for why, count in left.items()]
    if live := sum(each.live for each in heard.values()):
        notes.append(f"{source}: jobs that had not ended and count as long as they had run: {live}")
    return trace_of((_job(identity, each) for identity, each in heard.items()), notes)


def _job(identity: str, heard: _Heard) -> Job:
    nodes = heard.nodes if heard.nodes and heard.gpus % heard.nodes == 0 else None
    return Job(
        identity,
        heard.gpus,
        heard.submitted,
        heard.ran,
        name=heard.name,
        user=heard.user,
        team=heard.account,
        nodes=nodes,
        limit_s=heard.limit,
    )


def _row(rows: Rows, state: str) -> _Heard | None:
    submitted = rows.read("Submit", moment)
    nodes = rows.read("NNodes", whole) if rows.text("NNodes") not in _UNKNOWN else None
    limit = _limit(rows)
    ran = _ran(rows)
    gpus = rows.read("AllocTRES", _tres)
    gpus = gpus or rows.read("ReqTRES", _tres)
    for older in ("AllocGRES", "ReqGRES"):
        gpus = gpus or rows.read(older, lambda text: _gres(text) * (nodes or 1))
    if submitted is None or gpus is None or ran is None:
        return None
    user, account = rows.text("User") or "user", rows.text("Account") or None
    return _Heard(gpus, submitted, ran, rows.text("JobName") or "job", user, account, nodes, limit, live=state in LIVE)


def _limit(rows: Rows) -> float | None:
    if rows.text("TimelimitRaw") not in _UNKNOWN:
        minutes = rows.read("TimelimitRaw", number)
        return None if minutes is None else minutes * 60
    return rows.read("Timelimit", clock) if rows.text("Timelimit") not in _UNKNOWN else None


def _ran(rows: Rows) -> float | None:
    if rows.text("ElapsedRaw") not in _UNKNOWN:
        return rows.read("ElapsedRaw", number)
    if rows.text("Elapsed") not in _UNKNOWN:
        return rows.read("Elapsed", clock)
    if rows.text("Start") in _UNKNOWN or rows.text("End") in _UNKNOWN:
        return 0.0
    start, end = rows.read("Start", moment), rows.read("End", moment)
    return None if start is None or end is None else max(0.0, end - start)


def clock(text: str) -> float:
    """Seconds of `DAYS-HH:MM:SS`, `HH:MM:SS` or `MM:SS`. ValueError."""
    found = _CLOCK.fullmatch(text)
    if found is None:
        raise ValueError("must be a time such as 1-02:03:04")
    days, hours, minutes, seconds = (int(part or 0) for part in found.groups())
    return float(((days * 24 + hours) * 60 + minutes) * 60 + seconds)


def _tres(text: str) -> int:
    """GPUs of a list of trackable resources: `billing=8,gres/gpu:a100=4,gres/gpu=4` has 4.

    `gres/gpu` is all of them; where only the types are counted, they add up.
    """
    counts = dict(part.split("=", 1) for part in text.split(",") if "=" in part)
    if "gres/gpu" in counts:
        return whole(counts["gres/gpu"])
    return sum(whole(count) for name, count in counts.items() if name.startswith("gres/gpu:"))


def _gres(text: str) -> int:
    """GPUs a node of the old form: `gpu:tesla:2`, `gpu:2`, `gpu`."""
    return sum(int(count or 1) for count in _GRES.findall(text))
