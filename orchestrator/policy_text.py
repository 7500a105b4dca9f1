"""Teams and the scheduler's settings as an operator writes them, to Policy; with a complaint for each mistake, at its place."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from orchestrator import checks, document
from orchestrator.document import Contents, DocumentError, KeyPath, nearest, shown
from orchestrator.policy import NO_TEAM, OTHERS, Policy, Quota, Team
from orchestrator.units import duration_between, format_duration

MOST_GPUS = 1_000_000
_KEYS = ("share", "guaranteed", "limit")


# === settings ===


@dataclass(frozen=True)
class Setting:
    """One setting: under `policy:` in a file."""

    description: str
    parse: Callable[[str], Any]
    show: Callable[[Any], str] = str


def _number(least: float, most: float) -> Callable[[str], float]:
    def parse(text: str) -> float:
        if not re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,9})?", text) or not least <= float(text) <= most:
            raise ValueError(f"must be a number from {least:g} to {most:g}, not {shown(text)}")
        return float(text)

    return parse


def _whole(least: int, most: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not re.fullmatch("[0-9]{1,9}", text) or not least <= int(text) <= most:
            raise ValueError(f"must be a whole number from {least:,} to {most:,}, not {shown(text)}")
        return int(text)

    return parse


def _duration_or_off(least: float, most: float) -> Callable[[str], float | None]:
    parse = duration_between(least, most)
    return lambda text: None if text == "off" else parse(text)


def _preemption(text: str) -> str:
    if text not in ("priority", "quota", "off"):
        raise ValueError(f"must be priority, quota or off, not {shown(text)}")
    return text


SETTINGS: dict[str, Setting] = {
    "half_life": Setting(
        "Age at which use counts half for the fair share", duration_between(60, 366 * 86400), format_duration
    ),
    "preemption": Setting(
        "Who gives way: to priority (and quota), to a guaranteed quota alone, or nobody", _preemption
    ),
    "min_runtime": Setting("How long no attempt is preempted", duration_between(0, 30 * 86400), format_duration),
    "overdue": Setting(
        "A run that has waited so long goes first in its priority", duration_between(60, 366 * 86400), format_duration
    ),
    "reservations": Setting("For how many of the first waiting runs a place is kept", _whole(1, 64)),
    "margin": Setting(
        "What the longest run of a name is multiplied by, to expect its next one", _number(1, 100), "{:g}".format
    ),
    "communication": Setting(
        "Part of a step at the best place that is communication nobody hides, until it is measured",
        _number(0, 1),
        "{:g}".format,
    ),
    "split": Setting(
        "Steps so many times as long are never the price of an earlier start: the run waits for the tighter place",
        _number(1, 1000),
        "{:g}".format,
    ),
    "service": Setting(
        "GPU-hours after which a run gives way to those of its priority that have had fewer (0: never)",
        _number(0, 10**9),
        "{:g}".format,
    ),
    "hang": Setting(
        "How long no rank of a run may get on between steps before it is ended as hung (or off)",
        _duration_or_off(1, checks.MAX_STANDSTILL),
        lambda seconds: "off" if seconds is None else format_duration(seconds),
    ),
    "first_step": Setting(
        "The same before its first step, and while it saves",
        duration_between(1, checks.MAX_STANDSTILL),
        format_duration,
    ),
    "quarantine": Setting(
        "Part of the nodes that may be left out at once for failing often, one at least (0: only proposed)",
        _number(0, 1),
        "{:g}".format,
    ),
    "assumed_duration": Setting(
        "How long a run takes of which nothing is known, to choose between places",
        duration_between(60, 366 * 86400),
        format_duration,
    ),
}
"""By the name of Policy's field."""


# === teams ===


def read_teams(found: Contents, path: KeyPath, data: Any) -> dict[str, Team] | None:
    """The teams that `data` at `path` declares; None where something is wrong, which `found` is told."""
    before = len(found.complaints)
    teams: dict[str, Team] = {}
    if not isinstance(data, dict):
        found.complain(path, f"must hold teams by their names, not {shown(data)}")
        return None
    for name, inner in data.items():
        here = (*path, name)
        if name != NO_TEAM:
            _name(found, here, name)
        if not isinstance(inner, dict):
            found.complain(here, f"must hold {', '.join((*_KEYS, 'users'))}, not {shown(inner)}")
            continue
        users_data = inner.get("users", {})
        if not isinstance(users_data, dict):
            found.complain((*here, "users"), f"must hold users by their names, not {shown(users_data)}")
            continue
        quota = _quota(found, here, {key: value for key, value in inner.items() if key != "users"}, (*_KEYS, "users"))
        users = {user: _quota(found, (*here, "users", user), one, _KEYS) for user, one in users_data.items()}
        teams[name] = Team(quota, users)
        promised = sum(one.guaranteed for user, one in users.items() if user != OTHERS)
        if quota.guaranteed and promised > quota.guaranteed:
            text = f"guarantees its users {promised} GPUs together, and has {quota.guaranteed} guaranteed itself"
            found.complain(here, text)
    return teams if len(found.complaints) == before else None


def _quota(found: Contents, path: KeyPath, data: Any, known: tuple[str, ...]) -> Quota:
    if not isinstance(data, dict):
        found.complain(path, f"must hold {', '.join(_KEYS)}, not {shown(data)}")
        return Quota()
    readers: dict[str, Callable[[str], Any]] = {
        "share": _number(0.001, MOST_GPUS),
        "guaranteed": _whole(0, MOST_GPUS),
        "limit": _whole(0, MOST_GPUS),
    }
    values: dict[str, Any] = {}
    for key, text in data.items():
        here = (*path, key)
        if key not in readers:
            found.complain(here, "unknown key", nearest(key, known), at=found.mark(here, key=True))
        elif not isinstance(text, str):
            found.complain(here, f"must be one value, not {shown(text)}")
        else:
            try:
                values[key] = readers[key](text)
            except ValueError as error:
                found.complain(here, str(error))
    quota = Quota(**values)
    if quota.limit is not None and quota.guaranteed > quota.limit:
        found.complain(path, f"guarantees {quota.guaranteed} GPUs and limits to {quota.limit}")
    return quota


def _name(found: Contents, path: KeyPath, name: str) -> None:
    try:
        checks.label(name)
    except ValueError as error:
        found.complain(path, f"a team's name: {error}", at=found.mark(path, key=True))


def teams_of(text: str) -> dict[str, Team]:
    """Teams in one line, as a variable gives them: `{vision: {share: 2, limit: 64}}`. Raises ValueError."""
    try:
        node = document.parse(text, "teams")
    except DocumentError as error:
        raise ValueError(error.complaints[0].message) from None
    if not isinstance(node, document.Mapping):
        raise ValueError(f"must hold teams by their names, not {shown(text)}")
    found = document.contents(node)
    teams = None if found.complaints else read_teams(found, (), found.data)
    if teams is None:
        raise ValueError("; ".join(f"{one.key}: {one.message}" for one in found.complaints))
    return teams


def teams_as_text(teams: Mapping[str, Team]) -> str:
    """What `teams_of` reads."""

    def said(quota: Quota) -> dict[str, Any]:
        share = int(quota.share) if quota.share == int(quota.share) else quota.share
        every = {"share": share, "guaranteed": quota.guaranteed, "limit": quota.limit}
        plain = {"share": 1, "guaranteed": 0, "limit": None}
        return {key: value for key, value in every.items() if value != plain[key]}

    whole = {
        name: said(team.quota)
        | ({"users": {user: said(one) for user, one in team.users.items()}} if team.users else {})
        for name, team in teams.items()
    }
    return json.dumps(whole) if whole else ""


# === both ===


def policy_as_texts(policy: Policy) -> dict[str, str]:
    """A policy as plain texts, for a file that a machine writes."""
    return {"teams": teams_as_text(policy.teams)} | {
        name: setting.show(getattr(policy, name)) for name, setting in SETTINGS.items()
    }


def policy_of(texts: Mapping[str, str]) -> Policy:
    """What `policy_as_texts` was given. What is missing has its default. Raises ValueError."""
    values = {name: SETTINGS[name].parse(text) for name, text in texts.items() if name in SETTINGS}
    return Policy(teams=teams_of(texts["teams"]) if texts.get("teams") else {}, **values)
