"""What is measured of attempts: progress, its series by gang, rank and GPU, and the ledger of GPU time."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"

KEY = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
WHEN = sa.DateTime(timezone=True)


def whole(name: str, nullable: bool = False) -> sa.Column[int]:
    return sa.Column(name, sa.BigInteger(), nullable=nullable)


def real(name: str) -> sa.Column[float]:
    return sa.Column(name, sa.Double(), nullable=True)


def of_attempt(*more: str) -> list[sa.Constraint]:
    return [
        sa.PrimaryKeyConstraint("run_id", "attempt", *more),
        sa.ForeignKeyConstraint(["run_id", "attempt"], ["attempts.run_id", "attempts.number"]),
    ]


def upgrade() -> None:
    op.create_table(
        "attempt_progress",
        sa.Column("run_id", KEY, nullable=False),
        whole("attempt"),
        sa.Column("source", sa.String(), nullable=False),
        whole("steps"),
        whole("samples", nullable=True),
        real("samples_per_s"),
        real("step_time"),
        real("step_time_p50"),
        real("step_time_p99"),
        real("rank_time_min"),
        real("rank_time_max"),
        whole("slowest_rank", nullable=True),
        real("data_wait"),
        sa.Column("first_step_at", WHEN, nullable=True),
        sa.Column("last_step_at", WHEN, nullable=True),
        whole("busy_ms"),
        whole("save_ms"),
        whole("idle_ms"),
        whole("unsaved_ms"),
        whole("saves"),
        whole("saved_steps"),
        sa.Column("saved_at", WHEN, nullable=True),
        sa.Column("resumed", sa.Boolean(), nullable=True),
        whole("repeated_steps", nullable=True),
        sa.Column("metrics", sa.JSON(), nullable=True),
        sa.Column("updated_at", WHEN, nullable=False),
        sa.CheckConstraint("source IN ('auto', 'log', 'report')", name="attempt_progress_source"),
        *of_attempt(),
    )
    op.create_table(
        "gang_samples",
        sa.Column("run_id", KEY, nullable=False),
        whole("attempt"),
        sa.Column("at", WHEN, nullable=False),
        whole("seconds"),
        whole("measured_ms"),
        whole("steps"),
        whole("samples", nullable=True),
        real("step_time"),
        real("step_time_p50"),
        real("step_time_p99"),
        real("rank_time_min"),
        real("rank_time_max"),
        sa.Column("metrics", sa.JSON(), nullable=True),
        *of_attempt("at"),
    )
    op.create_table(
        "rank_samples",
        sa.Column("run_id", KEY, nullable=False),
        whole("attempt"),
        whole("rank"),
        sa.Column("at", WHEN, nullable=False),
        whole("seconds"),
        whole("measured_ms"),
        whole("steps"),
        whole("samples", nullable=True),
        real("step_time"),
        real("own_time"),
        whole("data_wait_ms"),
        *of_attempt("rank", "at"),
    )
    op.create_table(
        "gpu_samples",
        sa.Column("run_id", KEY, nullable=False),
        whole("attempt"),
        sa.Column("node", sa.String(), nullable=False),
        whole("gpu"),
        sa.Column("at", WHEN, nullable=False),
        whole("seconds"),
        whole("looks"),
        real("utilization"),
        real("memory_mib"),
        real("power_w"),
        real("temperature_c"),
        real("sm_clock_mhz"),
        real("throttled"),
        sa.Column("throttled_by", sa.String(), nullable=True),
        *of_attempt("node", "gpu", "at"),
    )
    op.create_table(
        "gpu_time",
        sa.Column("run_id", KEY, nullable=False),
        whole("attempt"),
        sa.Column("node", sa.String(), nullable=False),
        whole("gpus"),
        sa.Column("device", sa.String(), nullable=False),
        sa.Column("model", sa.String(), nullable=True),
        real("price"),
        sa.Column("since", WHEN, nullable=False),
        sa.Column("until", WHEN, nullable=False),
        whole("allocated_ms"),
        whole("starting_ms"),
        whole("productive_ms"),
        whole("checkpoint_ms"),
        whole("lost_ms"),
        whole("idle_ms"),
        sa.CheckConstraint(
            "allocated_ms = starting_ms + productive_ms + checkpoint_ms + lost_ms + idle_ms", name="gpu_time_sums"
        ),
        *of_attempt("node"),
    )
    op.create_index("gpu_time_by_node", "gpu_time", ["node", "since"], unique=False)
    op.create_index("gpu_time_by_time", "gpu_time", ["since"], unique=False)
