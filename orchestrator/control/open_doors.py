"""Through what doors others can get at this cluster, for `orch doctor`: those that its operator has left open."""

from __future__ import annotations

from typing import Any
from urllib.parse import parse_qs, urlsplit

from orchestrator.control.home import ClusterNote
from orchestrator.control.ray_auth import MEND, warning

_ENCRYPTED = ("require", "verify-ca", "verify-full")


def open_doors(note: ClusterNote) -> list[dict[str, Any]]:
    """Findings as the doctor tells them."""
    found = []
    if note.ray_auth == "none":
        found.append(_finding(warning(note.address), MEND))
    if (host := _in_clear_text(note.database)) is not None:
        found.append(
            _finding(
                f"the connection to the database on {host} may be in clear text, its password among it",
                "add ?sslmode=verify-full to the database's URL",
            )
        )
    return found


def _in_clear_text(url: str) -> str | None:
    """The host of a database that is reached over a network without a promise of encryption."""
    parts = urlsplit(url)
    host = parts.hostname
    if not parts.scheme.startswith("postgresql") or host is None or host in ("localhost", "127.0.0.1", "::1"):
        return None
    return None if parse_qs(parts.query).get("sslmode", [""])[-1] in _ENCRYPTED else host


def _finding(problem: str, mend: str) -> dict[str, Any]:
    return {"severity": "warning", "nodes": [], "problem": problem, "mend": mend}
