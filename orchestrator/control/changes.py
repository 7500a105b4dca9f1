"""What `orch set` may change, from `KEY=VALUE` as text, and until when."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from pydantic import ValidationError

from orchestrator.checks import at_least_one, whole
from orchestrator.control.refused import Refused
from orchestrator.document import nearest, shown
from orchestrator.scheduling.decision import Reservation, Sure
from orchestrator.scheduling.lifecycle import State
from orchestrator.scheduling.run import Run
from orchestrator.spec import SETTABLE, SETTABLE_OF_ARRAYS, JobSpec
from orchestrator.spec_problems import problems
from orchestrator.units import format_duration

NONE = "none"
"""The value that takes a wish or a limit away."""


@dataclass(frozen=True)
class Change:
    """A change that was asked for; its values are checked as a job file's are, by JobSpec."""

    keys: Mapping[str, Any]
    """Keys of the job file."""
    array_limit: int | Literal[False] | None = False
    """Of the array itself; False: as it was."""

    @property
    def live(self) -> bool:
        """Whether it can be made while the run runs."""
        return self.keys.keys() <= {"time_limit"}

    def applied(self, before: JobSpec) -> JobSpec:
        """The job with it. Raises Refused(2) where there can be no such job."""
        try:
            return JobSpec.model_validate(before.model_dump(mode="json") | dict(self.keys))
        except ValidationError as error:
            raise Refused(2, "; ".join(map(str, problems(error)))) from None

    def words(self, before: JobSpec, after: JobSpec) -> str:
        """`priority 0 → 5, near none → leaf`."""
        return ", ".join(f"{key} {_word(before, key)} → {_word(after, key)}" for key in self.keys)


def _word(spec: JobSpec, key: str) -> str:
    value = getattr(spec, key)
    if value is None:
        return NONE
    return format_duration(value) if key == "time_limit" else str(value)


def parse_changes(texts: Mapping[str, str], *, array: bool) -> Change:
    """Raises Refused(2) for a key that cannot be changed."""
    if not texts:
        raise Refused(2, "nothing to set: give KEY=VALUE, such as priority=5")
    allowed = SETTABLE + (SETTABLE_OF_ARRAYS if array else ())
    for key in texts:
        if key in allowed:
            continue
        if key in SETTABLE_OF_ARRAYS:
            raise Refused(2, f"{key} is an array's: name the array, as in `orch set sweep[] {key}=4`")
        if key in JobSpec.model_fields:
            raise Refused(2, f"{key} is fixed once a run is submitted; {', '.join(allowed)} can be set")
        raise Refused(2, f"{shown(key)} cannot be set. {nearest(key, allowed)}")
    keys = {key: None if text == NONE and key != "priority" else text for key, text in texts.items()}
    limit = keys.pop("array_limit", False)
    if isinstance(limit, str):
        try:
            return Change(keys, at_least_one(whole(limit)))
        except ValueError:
            raise Refused(
                2, f"array_limit: must be a whole number of 1 or more, or {NONE}, not {shown(limit)}"
            ) from None
    return Change(keys, limit)


def check_state(run: Run, change: Change) -> None:
    """Raises Refused(7) where it is too late for a change."""
    if run.ended or run.state is State.STOPPING:
        raise Refused(7, f"run {run.id} is {run.state}: nothing of it can be changed any more")
    if run.live and not change.live:
        late = sorted(change.keys.keys() - {"time_limit"})
        raise Refused(7, f"run {run.id} is {run.state}: {' and '.join(late)} can be changed only while a run waits")


def check_limit(run: Run, spec: JobSpec, now: datetime, reservations: Sequence[Reservation]) -> None:
    """Raises Refused(7) where a live run has run longer already than it then may, or another was promised its place by then."""
    if not run.live or run.attempt is None or spec.time_limit == run.spec.time_limit:
        return
    began = run.attempt.ranks_started_at
    ran = 0.0 if began is None else (now - began).total_seconds()
    if spec.time_limit is not None and ran >= spec.time_limit:
        raise Refused(7, f"run {run.id} has run for {ran:.0f} s already: `orch cancel {run.id}` ends it")
    if run.spec.time_limit is None or (spec.time_limit is not None and spec.time_limit < run.spec.time_limit):
        return
    for one in reservations:
        if one.sure is Sure.PROMISED and run.id in one.waits_for:
            raise Refused(
                7,
                f"run {one.run.id} ({one.run.label}) is promised a place by the time limit of run {run.id}, which can be made "
                "shorter but not longer",
            )
