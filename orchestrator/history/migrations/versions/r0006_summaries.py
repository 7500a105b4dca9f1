"""Summaries that make a million runs quick to ask, views for other tools, and what lets old runs expire."""

import datetime

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"

KEY = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
WHEN = sa.DateTime(timezone=True)
GPU_TIME = ("allocated", "starting", "productive", "checkpoint", "lost", "idle")

# An event may go only together with its whole run, and a run only when it has ended and is named in expired_runs first.
EXPIRY = {
    "sqlite": [
        "DROP TRIGGER events_no_delete",
        """CREATE TRIGGER events_no_delete BEFORE DELETE ON events
           WHEN NOT EXISTS (SELECT 1 FROM expired_runs WHERE run_id = OLD.run_id)
           BEGIN SELECT RAISE(ABORT, 'events are append-only'); END""",
        """CREATE TRIGGER expired_runs_have_ended BEFORE INSERT ON expired_runs
           WHEN EXISTS (SELECT 1 FROM runs WHERE id = NEW.run_id AND state NOT IN ('succeeded', 'failed', 'cancelled'))
           BEGIN SELECT RAISE(ABORT, 'only a run that has ended expires'); END""",
    ],
    "postgresql": [
        """CREATE OR REPLACE FUNCTION events_append_only() RETURNS trigger LANGUAGE plpgsql AS
           $$ BEGIN
             IF TG_OP = 'DELETE' THEN
               IF EXISTS (SELECT 1 FROM expired_runs WHERE run_id = OLD.run_id) THEN RETURN OLD; END IF;
             END IF;
             RAISE EXCEPTION 'events are append-only';
           END $$""",
        """CREATE FUNCTION expired_runs_have_ended() RETURNS trigger LANGUAGE plpgsql AS
           $$ BEGIN
             IF EXISTS (SELECT 1 FROM runs WHERE id = NEW.run_id AND state NOT IN ('succeeded', 'failed', 'cancelled'))
             THEN RAISE EXCEPTION 'only a run that has ended expires'; END IF;
             RETURN NEW;
           END $$""",
        """CREATE TRIGGER expired_runs_have_ended BEFORE INSERT ON expired_runs
           FOR EACH ROW EXECUTE FUNCTION expired_runs_have_ended()""",
    ],
}


def upgrade() -> None:
    _summaries()
    _sums()
    op.create_table(
        "expired_runs",
        sa.Column("run_id", KEY, autoincrement=False, nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("finished_at", WHEN, nullable=True),
        sa.Column("expired_at", WHEN, nullable=False),
        sa.PrimaryKeyConstraint("run_id"),
    )
    dialect = op.get_bind().dialect.name
    for statement in EXPIRY[dialect]:
        op.execute(statement)
    # LIKE 'resnet%' can use an index in every collation only through this operator class.
    op.drop_index("runs_by_name", "runs")
    op.create_index("runs_by_name", "runs", ["name", "id"], postgresql_ops={"name": "text_pattern_ops"})
    op.create_index("runs_by_team", "runs", ["team", "submitted_at"])
    op.create_index("runs_by_end", "runs", ["finished_at"])
    for column in ("code_sha256", "code_git"):
        op.create_index(f"runs_by_{column}", "runs", [column], postgresql_ops={column: "text_pattern_ops"})
    for statement in _views(dialect):
        op.execute(statement)


def _gpu_time() -> list[sa.Column[int]]:
    return [sa.Column(f"{part}_ms", sa.BigInteger(), nullable=False) for part in GPU_TIME]


def _summaries() -> None:
    op.create_table(
        "attempt_nodes",
        sa.Column("run_id", KEY, nullable=False),
        sa.Column("attempt", sa.BigInteger(), nullable=False),
        sa.Column("node", sa.String(), nullable=False),
        sa.Column("leaf", sa.String(), nullable=True),
        sa.Column("gpu", sa.String(), nullable=True),
        sa.Column("gpus", sa.BigInteger(), nullable=False),
        sa.Column("started_at", WHEN, nullable=False),
        sa.Column("ended_at", WHEN, nullable=True),
        sa.Column("outcome", sa.String(), nullable=True),
        sa.Column("failure_kind", sa.String(), nullable=True),
        sa.Column("at_fault", sa.Boolean(), nullable=True),
        sa.ForeignKeyConstraint(["run_id", "attempt"], ["attempts.run_id", "attempts.number"]),
        sa.PrimaryKeyConstraint("run_id", "attempt", "node"),
    )
    op.create_index("attempt_nodes_by_node", "attempt_nodes", ["node", "ended_at"])
    op.create_index("attempt_nodes_by_leaf", "attempt_nodes", ["leaf", "ended_at"])
    op.create_index("attempt_nodes_by_outcome", "attempt_nodes", ["outcome", "run_id"])
    op.create_index("attempt_nodes_by_failure", "attempt_nodes", ["failure_kind", "run_id"])
    op.create_table(
        "run_summaries",
        sa.Column("run_id", KEY, autoincrement=False, nullable=False),
        sa.Column("day", sa.Date(), nullable=False),
        sa.Column("state", sa.String(), nullable=True),
        sa.Column("attempts", sa.BigInteger(), nullable=False),
        sa.Column("device", sa.String(), nullable=True),
        sa.Column("gpu", sa.String(), nullable=True),
        sa.Column("gpus", sa.BigInteger(), nullable=True),
        sa.Column("nodes", sa.BigInteger(), nullable=True),
        sa.Column("leaves", sa.BigInteger(), nullable=True),
        sa.Column("level", sa.String(), nullable=True),
        sa.Column("outcome", sa.String(), nullable=True),
        sa.Column("failure_kind", sa.String(), nullable=True),
        sa.Column("wait_ms", sa.BigInteger(), nullable=True),
        sa.Column("neighbours", sa.BigInteger(), nullable=True),
        sa.Column("samples_per_s", sa.Double(), nullable=True),
        sa.Column("step_time_s", sa.Double(), nullable=True),
        sa.Column("steps", sa.BigInteger(), nullable=True),
        sa.Column("samples", sa.BigInteger(), nullable=True),
        sa.Column("cost", sa.Double(), nullable=True),
        *_gpu_time(),
        sa.ForeignKeyConstraint(["run_id"], ["runs.id"]),
        sa.PrimaryKeyConstraint("run_id"),
    )
    op.create_index("run_summaries_by_throughput", "run_summaries", ["samples_per_s", "run_id"])
    op.create_index("run_summaries_by_gpu", "run_summaries", ["gpu", "run_id"])
    op.create_index("run_summaries_by_gpu_time", "run_summaries", ["allocated_ms", "run_id"])


def _sums() -> None:
    def counts() -> list[sa.Column[int] | sa.Column[float]]:
        whole = [
            sa.Column(name, sa.BigInteger(), nullable=False)
            for name in ("runs", "attempts", "waited", "wait_ms", "measured")
        ]
        return [
            *whole,
            sa.Column("samples_per_s", sa.Double(), nullable=False),
            sa.Column("samples", sa.BigInteger(), nullable=False),
            sa.Column("cost", sa.Double(), nullable=False),
        ]

    def keys(*names: str) -> list[sa.Column[str]]:
        return [sa.Column(name, sa.String(), nullable=False) for name in names]

    def day() -> sa.Column[datetime.date]:
        return sa.Column("day", sa.Date(), nullable=False)

    op.create_table(
        "run_sums",
        *keys("period"),
        sa.Column("start", sa.Date(), nullable=False),
        *keys("username", "team", "state", "gpu"),
        *_gpu_time(),
        *counts(),
        sa.CheckConstraint("period IN ('day', 'week', 'month')", name="run_sums_period"),
        sa.PrimaryKeyConstraint("period", "start", "username", "team", "state", "gpu"),
    )
    op.create_table(
        "name_sums",
        *keys("period"),
        sa.Column("start", sa.Date(), nullable=False),
        *keys("name", "state"),
        *_gpu_time(),
        *counts(),
        sa.CheckConstraint("period IN ('day', 'week', 'month')", name="name_sums_period"),
        sa.PrimaryKeyConstraint("period", "start", "name", "state"),
    )
    op.create_table(
        "gpu_days",
        day(),
        *keys("username", "team", "name", "gpu"),
        *_gpu_time(),
        sa.Column("cost", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("day", "username", "team", "name", "gpu"),
    )
    op.create_table(
        "node_days",
        day(),
        *keys("node"),
        *_gpu_time(),
        sa.Column("attempts", sa.BigInteger(), nullable=False),
        sa.Column("infra_failures", sa.BigInteger(), nullable=False),
        sa.Column("last_failure_at", WHEN, nullable=True),
        sa.PrimaryKeyConstraint("day", "node"),
    )


def _seconds(source: str, names: tuple[str, ...] = GPU_TIME) -> str:
    return ", ".join(f"CAST({source}.{name}_ms AS double precision) / 1000 AS {name}_s" for name in names)


def _views(dialect: str) -> list[str]:
    # ruff: noqa: S608 - made of constants
    sqlite = dialect == "sqlite"
    took = (
        "(julianday(r.finished_at) - julianday(r.started_at)) * 86400"
        if sqlite
        else "CAST(extract(epoch FROM r.finished_at - r.started_at) AS double precision)"
    )
    since = "date(t.since)" if sqlite else "CAST(t.since AT TIME ZONE 'UTC' AS date)"
    size = "json_extract(n.hardware, '$.total')" if sqlite else "CAST(n.hardware ->> 'total' AS double precision)"
    node_days = f"(CAST(d.allocated_ms AS double precision) / nullif({size}, 0) / 86400000)"
    return [
        f"""CREATE VIEW v_runs AS
            SELECT r.id, r.name, r.username, r.team, r.state, r.reason, r.priority,
                   r.submitted_at, r.started_at, r.finished_at, {took} AS took_s,
                   r.code_sha256, r.code_git, r.code_dirty,
                   coalesce(s.attempts, 0) AS attempts, s.device, s.gpu, s.gpus, s.nodes, s.leaves, s.level,
                   s.outcome, s.failure_kind, s.neighbours,
                   {_seconds("s", ("wait",))}, s.samples_per_s, s.step_time_s, s.steps, s.samples, {_seconds("s")}, s.cost
            FROM runs r LEFT JOIN run_summaries s ON s.run_id = r.id""",
        f"""CREATE VIEW v_gpu_time AS
            SELECT g.day, g.username, nullif(g.team, '') AS team, g.name, nullif(g.gpu, '') AS gpu,
                   {_seconds("g")}, nullif(g.cost, 0) AS cost
            FROM gpu_days g
            UNION ALL
            SELECT {since}, r.username, r.team, r.name, t.model, {_seconds("t")},
                   CAST(t.allocated_ms AS double precision) / 3600000 * t.price
            FROM runs r JOIN gpu_time t ON t.run_id = r.id
            WHERE r.state IN ('queued', 'starting', 'running', 'stopping')""",
        f"""CREATE VIEW v_node_reliability AS
            SELECT n.name AS node, n.state, n.first_seen, n.last_seen,
                   coalesce(d.attempts, 0) AS attempts, coalesce(d.infra_failures, 0) AS infra_failures,
                   coalesce({node_days}, 0) AS node_days,
                   {node_days} * 24 / nullif(d.infra_failures, 0) AS mtbf_hours,
                   d.infra_failures * 1000 / nullif({node_days}, 0) AS failures_per_1000_node_days,
                   d.last_failure_at,
                   coalesce(CAST(d.allocated_ms AS double precision) / 3600000, 0) AS gpu_hours
            FROM nodes n LEFT JOIN (
                SELECT node, CAST(sum(attempts) AS bigint) AS attempts,
                       CAST(sum(infra_failures) AS bigint) AS infra_failures,
                       sum(allocated_ms) AS allocated_ms, max(last_failure_at) AS last_failure_at
                FROM node_days GROUP BY node) d ON d.node = n.name""",
    ]
