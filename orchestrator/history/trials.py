"""What short collectives between nodes showed before runs were started: rows of the table trials to Kept values and back."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import Connection, insert, select

from orchestrator.bench.trial import Kept
from orchestrator.history.measured_models import TrialRow


def record(connection: Connection, found: Sequence[Kept]) -> None:
    if found:
        connection.execute(
            insert(TrialRow),
            [
                {
                    "run_id": one.run,
                    "at": one.at,
                    "link": "+".join(one.nodes),
                    "model": one.model,
                    "ranks": one.ranks,
                    "busbw": one.busbw,
                    "promised": one.promised,
                    "failure": one.failure,
                    "versions": dict(one.versions) | {"nodes": list(one.nodes)},
                }
                for one in found
            ],
        )


def since(connection: Connection, when: datetime) -> list[Kept]:
    """Those from then on, oldest first."""
    rows = connection.execute(select(TrialRow).where(TrialRow.at >= when).order_by(TrialRow.id))
    found = []
    for row in rows:
        versions = dict(row.versions)
        first, second = versions.pop("nodes")
        found.append(
            Kept(
                (first, second),
                row.at,
                row.run_id,
                row.model,
                row.ranks,
                row.busbw,
                row.promised,
                row.failure,
                versions,
            )
        )
    return found
