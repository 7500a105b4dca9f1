"""What tests are built from: small runs in one line, and a clock that moves when it is told to.

Shipped, so that others can test against orch as its own tests do.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from orchestrator.placement.values import NodePlacement, Placement
from orchestrator.scheduling.lifecycle import State
from orchestrator.scheduling.run import Code, NewRun, Run
from orchestrator.spec import JobSpec
from orchestrator.spec_values import Workers

START = datetime(2026, 1, 5, 9, 0, tzinfo=UTC)
"""When a test begins, unless it says otherwise: a Monday morning."""


class ManualClock:
    """A clock that stands still until it is moved."""

    def __init__(self, now: datetime = START) -> None:
        self.now = now

    def __call__(self) -> datetime:
        return self.now

    def advance(self, seconds: float) -> datetime:
        self.now += timedelta(seconds=seconds)
        return self.now


def a_spec(workers: int | str = 1, **fields: Any) -> JobSpec:
    """A job that trains; `workers` as in a job file: 16 or "2x8"."""
    if isinstance(workers, str):
        nodes, per_node = map(int, workers.split("x"))
        shape = Workers(total=nodes * per_node, nodes=nodes)
    else:
        shape = Workers(total=workers)
    return JobSpec(**{"name": "train", "run": "train.py", "workers": shape, **fields})


def a_new_run(user: str = "ana", key: str | None = None, **spec: Any) -> NewRun:
    """A submission of `a_spec(**spec)`."""
    return NewRun(a_spec(**spec), user, Code("0" * 64), "/home/ana/job", key)


def a_placement(level: str = "node", **nodes: tuple[int, ...]) -> Placement:
    """A gang on those GPUs, ranks in the order given: a_placement(a=(0, 1), b=(0, 1))."""
    parts, rank = [], 0
    for node, gpus in nodes.items():
        parts.append(NodePlacement(node, gpus, tuple(range(rank, rank + len(gpus)))))
        rank += len(gpus)
    return Placement("cuda", level, tuple(parts))


def a_run(id: int = 1, state: State = State.QUEUED, at: datetime = START, **fields: Any) -> Run:  # noqa: A002
    """A run that was submitted `at`; `fields` are Run's own, or else the spec's."""
    own = {key: fields.pop(key) for key in tuple(fields) if key in Run.__dataclass_fields__}
    defaults: dict[str, Any] = {
        "spec": own.pop("spec", None) or a_spec(**fields),
        "user": "ana",
        "code": Code("0" * 64),
        "workdir": "/home/ana/job",
        "reason": None,
        "submitted_at": at,
        "queued_at": at,
    }
    return Run(id=id, state=state, **{**defaults, **own})
