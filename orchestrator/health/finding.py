"""What a look at nodes finds that will go wrong, or nearly: one sentence of it, how bad it is, and how to mend it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

Severity: TypeAlias = Literal["error", "warning", "note"]
SEVERITIES: tuple[Severity, ...] = get_args(Severity)
"""The worst first."""


@dataclass(frozen=True)
class Finding:
    """Something that will go wrong, or nearly."""

    severity: Severity
    node: str | None
    """None where it is about the cluster as a whole."""
    problem: str
    """What is, and what breaks because of it."""
    mend: str
