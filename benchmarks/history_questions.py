"""The statements behind the commands of benchmarks/history_scale.py, asked of an open store: for its `plans`."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from orchestrator.history.filters import RunFilter
from orchestrator.history.store import Store

SUMMER = datetime(2026, 6, 1, tzinfo=UTC)
QUESTIONS: tuple[tuple[str, Callable[[Store], Any]], ...] = (
    ("runs --user --state", lambda store: store.runs(RunFilter(user="user007", state="failed", limit=50))),
    ("runs --tag --state", lambda store: store.runs(RunFilter(tags={"sweep": "s1200"}, state="succeeded", limit=50))),
    (
        "runs --node --failure --since",
        lambda store: store.runs(RunFilter(node="n017", failure="node_lost", since=SUMMER, limit=50)),
    ),
    (
        "runs --name --gpu --sort -samples_per_s",
        lambda store: store.runs(RunFilter(name="resnet-*", gpu="a100", sort="-samples_per_s", limit=50)),
    ),
    (
        "runs --team --state --columns",
        lambda store: store.rows(
            RunFilter(team="team03", state="succeeded", limit=50), ("id", "name", "samples_per_s", "allocated_s")
        ),
    ),
    ("runs --sort -allocated_s", lambda store: store.runs(RunFilter(sort="-allocated_s", limit=20))),
    ("runs --by team,week", lambda store: store.groups(RunFilter(), ("team", "week"))),
    (
        "runs --by user --since --state",
        lambda store: store.groups(RunFilter(since=datetime(2026, 9, 1, 7, tzinfo=UTC), state="failed"), ("user",)),
    ),
    ("runs --by name --sort -allocated_s", lambda store: store.groups(RunFilter(), ("name",), "-allocated_s")),
    ("show", lambda store: store.against_its_like(store.get(777777) or store.runs(RunFilter(limit=1))[0])),
    ("compare RUN", lambda store: store.compare([777777])),
    ("compare RUN RUN", lambda store: store.compare([777777, 777700])),
    ("report RUN", lambda store: store.run_pictured(990000, datetime(2026, 11, 2, tzinfo=UTC))),
)
