"""What to make of a gang that stands still, once its stacks are known: it hangs, it is busy, or nobody can tell. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum

from orchestrator.health.stacks import Evidence, Missing, RankStack, busy, missing, others
from orchestrator.health.standstill import Limits, Standstill


class Verdict(StrEnum):
    HUNG = "hung"
    BUSY = "busy"  # a rank does something that cannot be counted
    UNSEEN = "unseen"  # it has never shown progress, and may be what never does


def verdict(
    found: Standstill, limits: Limits, before: Mapping[int, RankStack], after: Mapping[int, RankStack]
) -> Verdict:
    """`before` and `after`: where the ranks stood, twice, some seconds apart, with no progress in between."""
    working = bool(busy(before, after))
    if working and found.seconds < max(limits.first, found.limit, limits.after):
        return Verdict.BUSY
    if found.seen or limits.asked:
        return Verdict.HUNG
    # A server, or a script that waits for processes of its own, never shows progress: only who waits in a collective hangs.
    waits = any(stack.waits or stack.stopped for stack in after.values())
    return Verdict.HUNG if waits and not working else Verdict.UNSEEN


def explained(found: Standstill, evidence: Evidence) -> tuple[str, Missing | None]:
    """Why the attempt is ended, in the user's terms, and the ranks that keep the others waiting."""
    culprit = missing(evidence)
    parts = [f"hung: {found.text}", "no rank stands out" if culprit is None else culprit.text]
    if rest := others(evidence, () if culprit is None else culprit.ranks):
        parts.append(rest)
    return "; ".join(parts), culprit
