"""Times and durations as people write and read them."""

from __future__ import annotations

from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

import click

from orchestrator.units import parse_duration


class Ago(click.ParamType):  # type: ignore[type-arg] # generic since click 8.3
    """`5m`, `7d`, or a moment such as 2026-11-01 or 2026-11-01T12:00Z; gives seconds before now."""

    name = "since"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if isinstance(value, float):
            return value
        with suppress(ValueError):
            return parse_duration(value)
        try:
            moment = datetime.fromisoformat(value)
        except ValueError:
            self.fail(
                f"{value!r} is neither a duration such as 90s, 30m, 12h, 7d nor a date such as 2026-11-01", param, ctx
            )
        return max(0.0, (now() - moment.astimezone(UTC)).total_seconds())


class Duration(click.ParamType):  # type: ignore[type-arg]
    """`90s`, `30m`, `12h`, `2d`; gives seconds."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        try:
            return value if isinstance(value, float) else parse_duration(value)
        except ValueError as error:
            self.fail(f"{value!r} {error}", param, ctx)


def now() -> datetime:
    return datetime.now(UTC)


def moment(text: str | None) -> datetime | None:
    return datetime.fromisoformat(text) if text else None


def span(seconds: float | None) -> str:
    """A duration to read: `4.2s`, `75s` as `1m15s`, `3h02m`, `2d04h`."""
    if seconds is None:
        return ""
    seconds = max(0.0, seconds)
    if seconds < 59.5:
        return f"{seconds:.1f}s" if seconds < 9.95 else f"{seconds:.0f}s"
    whole = round(seconds)
    for size, unit, small, name in ((86400, "d", 3600, "h"), (3600, "h", 60, "m"), (60, "m", 1, "s")):
        if whole >= size:
            return f"{whole // size}{unit}{whole % size // small:02d}{name}"
    raise AssertionError(whole)


def between(start: str | None, end: str | None) -> float | None:
    """Seconds from one time of the API to another, or to now; None before the start."""
    begin = moment(start)
    return None if begin is None else ((moment(end) or now()) - begin).total_seconds()


def local(text: str | None) -> str:
    """A time of the API on the reader's clock."""
    when = moment(text)
    return "" if when is None else when.astimezone().strftime("%Y-%m-%d %H:%M:%S")
