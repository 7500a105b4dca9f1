"""What is asked of the history in the API's words: the parameters of `GET /runs` as a filter, columns and groups."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from orchestrator.history.filters import RunFilter
from orchestrator.history.groups import check_groups
from orchestrator.history.listing import check_columns

SEVERAL = ("name", "user", "team", "state", "node", "gpu", "outcome", "failure")
"""May be given more than once: one of them must hold."""
USUAL_LIMIT = 50


@dataclass(frozen=True)
class Asked:
    """One question."""

    wanted: RunFilter
    columns: tuple[str, ...] = ()
    """Flat rows of these; empty: runs as `orch runs --json` prints them."""
    by: tuple[str, ...] = ()
    """Groups by these instead of runs."""
    sort: str | None = None
    """The order of groups."""
    array: str | None = None
    """Only runs of this array: whoever answers finds out which those are (`of_array`)."""

    def of_array(self, ids: range) -> Asked:
        return replace(self, wanted=replace(self.wanted, ids=ids))


def asked(query: Mapping[str, Sequence[str]]) -> Asked:
    """The question in these parameters, each with all its values. Raises ValueError in words for the user."""

    def one(name: str) -> str | None:
        given = query.get(name)
        return given[-1] if given else None

    by = check_groups(_listed(query.get("by", ())))
    columns = _listed(query.get("columns", ()))
    limit = _limit(one("limit"))
    sort, live = one("sort"), one("live") == "1"
    wanted = RunFilter(
        **{name: tuple(query[name]) for name in SEVERAL if query.get(name)},  # type: ignore[arg-type]
        since=moment("since", one("since")),
        until=moment("until", one("until")),
        tags=dict(tag.partition("=")[::2] for tag in query.get("tag", ())),
        code=one("code"),
        min_throughput=_number("min_throughput", one("min_throughput")),
        max_throughput=_number("max_throughput", one("max_throughput")),
        sort=sort if sort and not by else "-submitted",
        limit=USUAL_LIMIT if limit is None and not by and not live else limit,
        live_only=live,
    )
    if by and columns:
        raise ValueError("by and columns exclude each other: groups have columns of their own")
    return Asked(wanted, check_columns(columns) if columns else (), by, sort, one("array"))


def _listed(given: Sequence[str]) -> list[str]:
    return [word.strip() for text in given for word in text.split(",") if word.strip()]


def _limit(text: str | None) -> int | None:
    if text is None:
        return None
    if not text.isdecimal() or len(text) > 9:
        raise ValueError(f"limit: {text!r} is not a number")
    return int(text)


def moment(name: str, text: str | None) -> datetime | None:
    """The time that an RFC 3339 text means; None where nothing is said. Raises ValueError in words for the user."""
    if not text:
        return None
    try:
        found = datetime.fromisoformat(text)
        if found.tzinfo is not None:
            return found.astimezone(UTC)
    except (ValueError, OverflowError):
        raise ValueError(f"{name}: {text!r} is not a time") from None
    raise ValueError(f"{name}: {text!r} lacks its zone")


def _number(name: str, text: str | None) -> float | None:
    if text is None:
        return None
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"{name}: {text!r} is not a number") from None
