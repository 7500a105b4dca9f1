"""What troubles the controller itself at this moment: said once, shown by `orch status` until it is over."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from datetime import datetime
from typing import Any

log = logging.getLogger("orch.alarms")


@dataclass(frozen=True)
class Alarm:
    kind: str
    since: datetime
    text: str
    """A sentence; as it is now."""


class Alarms:
    """At most one of each kind."""

    def __init__(self) -> None:
        self._now: dict[str, Alarm] = {}

    def __iter__(self) -> Any:
        return iter(sorted(self._now.values(), key=lambda alarm: alarm.since))

    def set(self, kind: str, text: str, now: datetime) -> None:
        """Raises it, or says anew what it is about."""
        known = self._now.get(kind)
        if known is None:
            log.error("%s", text)
        self._now[kind] = Alarm(kind, now if known is None else known.since, text)

    def clear(self, kind: str) -> None:
        if self._now.pop(kind, None) is not None:
            log.warning("%s: over", kind)
