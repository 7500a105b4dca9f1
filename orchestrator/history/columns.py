"""What the columns of all tables are made of: times and texts that both databases keep alike, and what tables have in common."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    CheckConstraint,
    Constraint,
    DateTime,
    Dialect,
    ForeignKeyConstraint,
    Integer,
    PrimaryKeyConstraint,
    String,
    TypeDecorator,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from orchestrator.scheduling.lifecycle import Event, Outcome, State


class UtcDateTime(TypeDecorator[datetime]):
    """An aware datetime: UTC without its zone in SQLite (which has none), timestamptz in PostgreSQL, UTC when read."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        return None if value is None else _utc(value)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        return None if value is None else value.astimezone(UTC)

    # SQLite in one step: a row has several times, and SQLAlchemy's own way to its text is three steps for each.

    def bind_processor(self, dialect: Dialect) -> Callable[[Any], Any] | None:
        return _to_sqlite if dialect.name == "sqlite" else super().bind_processor(dialect)

    def result_processor(self, dialect: Dialect, coltype: object) -> Callable[[Any], Any] | None:
        return _from_sqlite if dialect.name == "sqlite" else super().result_processor(dialect, coltype)


def _utc(value: datetime) -> datetime:
    if value.tzinfo is None:
        raise ValueError(f"a time without a zone cannot be recorded: {value!r}")
    return value if value.tzinfo is UTC else value.astimezone(UTC)


def _to_sqlite(value: datetime | None) -> str | None:
    return None if value is None else _utc(value).replace(tzinfo=None).isoformat(" ", "microseconds")


def _from_sqlite(value: str | None) -> datetime | None:
    return None if value is None else datetime.fromisoformat(value).replace(tzinfo=UTC)


def words(text: str) -> str:
    """Text from anywhere, a rank's last words included: what a database cannot hold becomes U+FFFD instead of an error.

    PostgreSQL refuses NUL, and both refuse the lone surrogates that Python makes of bytes that are not UTF-8.
    """
    if text.isascii():
        return text if "\0" not in text else text.replace("\0", "\ufffd")
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace").replace("\0", "\ufffd")


class Words(TypeDecorator[str]):
    """Text as `words` makes it."""

    impl = String
    cache_ok = True

    def bind_processor(self, dialect: Dialect) -> Callable[[Any], Any]:
        return _to_words  # without two calls more for each text of each row


def _to_words(value: str | None) -> str | None:
    return None if value is None else words(value)


# SQLite gives out each number once only for a column that is exactly INTEGER.
Key = BigInteger().with_variant(Integer, "sqlite")


def one_of(
    column: str, values: type[State] | type[Event] | type[Outcome] | tuple[str, ...], name: str
) -> CheckConstraint:
    listed = ", ".join(f"'{value}'" for value in values)
    return CheckConstraint(f"{column} IN ({listed})", name=name)


class Base(DeclarativeBase):
    type_annotation_map = {
        datetime: UtcDateTime(),
        str: Words(),
        int: BigInteger(),
        # Not JSONB: it refuses \u0000, which an environment or a log line may bring.
        dict[str, Any]: JSON(none_as_null=True),
    }


class OfAttempt:
    """What is of one attempt of one run."""

    run_id: Mapped[int] = mapped_column(Key, sort_order=-2)
    attempt: Mapped[int] = mapped_column(sort_order=-1)


def attempt_key(*more: str) -> tuple[Constraint, ...]:
    """The keys of a table that has a row for each attempt, or several, which `more` columns tell apart."""
    return (
        PrimaryKeyConstraint("run_id", "attempt", *more),
        ForeignKeyConstraint(["run_id", "attempt"], ["attempts.run_id", "attempts.number"]),
    )


class GpuTimeColumns:
    """Allocated GPU time (or that of CPU slots) in milliseconds, and its parts, which sum to it exactly."""

    allocated_ms: Mapped[int] = mapped_column(sort_order=50)
    starting_ms: Mapped[int] = mapped_column(sort_order=51)
    productive_ms: Mapped[int] = mapped_column(sort_order=52)
    checkpoint_ms: Mapped[int] = mapped_column(sort_order=53)
    lost_ms: Mapped[int] = mapped_column(sort_order=54)
    idle_ms: Mapped[int] = mapped_column(sort_order=55)
