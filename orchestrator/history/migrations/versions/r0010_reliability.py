"""What happened to nodes, counted by day beside what became of attempts there, and shown in v_node_reliability."""

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"

COUNTS = {"drains": "drained", "quarantines": "quarantined", "degraded": "degraded", "fatal": "fatal"}

# A controller that starts tells anew what is still so. Such an event has the word of the one before of its kind.
NEWS = """
    SELECT at, node, what FROM (
        SELECT at, node, what, lag(what) OVER (
            PARTITION BY node, CASE WHEN what IN ('drained', 'undrained') THEN 1 ELSE 2 END ORDER BY id
        ) AS earlier
        FROM node_events WHERE what IN ('drained', 'undrained', 'degraded', 'fatal', 'recovered')
    ) told WHERE earlier IS NULL OR earlier <> what
    UNION ALL SELECT at, node, what FROM node_events WHERE what = 'quarantined'"""


def upgrade() -> None:
    for name in COUNTS:
        op.add_column("node_days", sa.Column(name, sa.BigInteger(), nullable=False, server_default=sa.text("0")))
    dialect = op.get_bind().dialect.name
    op.execute(_counted(dialect))
    if dialect == "sqlite":
        op.execute("DROP VIEW v_node_reliability")
    op.execute(_view(dialect))


def _counted(dialect: str) -> str:
    """The events that are there already."""
    # ruff: noqa: S608 - made of constants
    day = "date(at)" if dialect == "sqlite" else "CAST(at AT TIME ZONE 'UTC' AS date)"
    zero = ("allocated_ms", "starting_ms", "productive_ms", "checkpoint_ms", "lost_ms", "idle_ms",
            "attempts", "infra_failures")  # fmt: skip
    words = "', '".join(COUNTS.values())
    return f"""
        INSERT INTO node_days (day, node, {", ".join(zero)}, {", ".join(COUNTS)})
        SELECT {day}, node, {", ".join("0" for _ in zero)},
               {", ".join(f"sum(CASE WHEN what = '{word}' THEN 1 ELSE 0 END)" for word in COUNTS.values())}
        FROM ({NEWS}) news WHERE what IN ('{words}') GROUP BY 1, 2
        ON CONFLICT (day, node) DO UPDATE SET {", ".join(f"{name} = excluded.{name}" for name in COUNTS)}"""


def _view(dialect: str) -> str:
    """New columns come last: PostgreSQL then replaces a view on which somebody's own are built, and would not drop it."""
    sqlite = dialect == "sqlite"
    size = "json_extract(n.hardware, '$.total')" if sqlite else "CAST(n.hardware ->> 'total' AS double precision)"
    node_days = f"(CAST(d.allocated_ms AS double precision) / nullif({size}, 0) / 86400000)"
    drained = "datetime(json_extract(m.drain, '$.at'))" if sqlite else "CAST(m.drain ->> 'at' AS timestamptz)"
    stage = "json_extract(m.quarantine, '$.stage')" if sqlite else "m.quarantine ->> 'stage'"
    counts = ("attempts", "infra_failures", *COUNTS)
    return f"""
        CREATE {"" if sqlite else "OR REPLACE"} VIEW v_node_reliability AS
        SELECT n.name AS node, n.state, n.first_seen, n.last_seen,
               coalesce(d.attempts, 0) AS attempts, coalesce(d.infra_failures, 0) AS infra_failures,
               coalesce({node_days}, 0) AS node_days,
               {node_days} * 24 / nullif(d.infra_failures, 0) AS mtbf_hours,
               d.infra_failures * 1000 / nullif({node_days}, 0) AS failures_per_1000_node_days,
               d.last_failure_at,
               coalesce(CAST(d.allocated_ms AS double precision) / 3600000, 0) AS gpu_hours,
               {", ".join(f"coalesce(d.{name}, 0) AS {name}" for name in COUNTS)},
               {drained} AS drained_at, nullif({stage}, 'cleared') AS quarantine
        FROM nodes n
        LEFT JOIN (
            SELECT node, {", ".join(f"CAST(sum({name}) AS bigint) AS {name}" for name in counts)},
                   sum(allocated_ms) AS allocated_ms, max(last_failure_at) AS last_failure_at
            FROM node_days GROUP BY node) d ON d.node = n.name
        LEFT JOIN node_marks m ON m.node = n.name"""
