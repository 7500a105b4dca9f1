"""Where NCCL's log of an attempt is to be read, or why there is nothing to read: by what the job is and sets itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

SUBSYSTEMS = "INIT,ENV,NET,GRAPH"
"""What tells of links (INIT), variables (ENV), adapters (NET), and NVLink or PCIe (GRAPH), and of no single collective.
COLL and TUNING print a line for each: they would cost something at every step."""

_TELL = ("INFO", "TRACE")
_STANDARD = ("/dev/stdout", "/dev/stderr", "stdout", "stderr")


@dataclass(frozen=True)
class Reading:
    """How an attempt's log is read."""

    source: Literal["file", "output"] | None
    """`file`: one for each process, that orch asks NCCL for. `output`: what the rank prints, since the job asked NCCL itself."""
    verdict: Literal["not measured", "unknown"] | None = None
    """The verdict, where nothing is read."""
    reason: str = ""

    def to_json(self) -> dict[str, object] | None:
        """An attempt's transport where it is known without a log; None where a log will tell."""
        return None if self.verdict is None else {"verdict": self.verdict, "links": {}, "reason": self.reason}


def reading(device: str, backend: str, ranks: int, env: Mapping[str, str]) -> Reading:
    """How the log of an attempt on `device` is read; `backend` and `env` are the job's own."""
    if device != "cuda" or backend == "gloo":
        return Reading(None, "not measured", "Gloo goes over TCP: there is nothing to compare")
    if ranks == 1:
        return Reading(None, "not measured", "one rank has no links")
    level, file = env.get("NCCL_DEBUG"), env.get("NCCL_DEBUG_FILE")
    if level is not None and level.upper() not in _TELL:
        return Reading(None, "unknown", f"the job sets NCCL_DEBUG={level}, with which NCCL tells of no link")
    if file is not None and file not in _STANDARD:
        how = "`orch doctor --nccl-log` reads it" if level else "without NCCL_DEBUG=INFO it tells of no link"
        return Reading(None, "unknown", f"the job sends NCCL's log to {file}: {how}")
    if level is None and file is not None:
        return Reading(None, "unknown", f"the job sets NCCL_DEBUG_FILE={file} without NCCL_DEBUG=INFO")
    return Reading("file" if level is None else "output")
