"""Which host is meant where several processes wrote into one log of NCCL at once, and one's output cut the other's name."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

Process = tuple[str | None, int, int]
"""Host, process id and device."""
Alias = Mapping[str | None, str | None]
"""A name that was garbled, and the one that is meant."""


def aliases(processes: Counter[Process]) -> dict[str | None, str | None]:
    """Names of hosts that another process's output was written into, and the name that is meant: one process id, seldom
    seen, and one name the end of the other (`0.43gpu-01` for `gpu-01`)."""
    lines: Counter[str] = Counter()
    by_pid: dict[int, set[str]] = {}
    for (host, pid, _), count in processes.items():
        if host is not None:
            lines[host] += count
            by_pid.setdefault(pid, set()).add(host)
    alias: dict[str | None, str | None] = {}
    for names in by_pid.values():
        best = min(names, key=lambda name: (-lines[name], name))
        for name in names - {best}:
            if lines[name] * 10 <= lines[best] and (name.endswith(best) or best.endswith(name)):
                alias[name] = best
    return alias


def most_named(counts: Counter[str], alias: Alias) -> str | None:
    """The host named most often, garbled names counted for the host that is meant."""
    meant: Counter[str] = Counter()
    for host, count in counts.items():
        meant[alias.get(host) or host] += count
    return min(meant, key=lambda host: (-meant[host], host), default=None)


def by_host(table: dict[str | None, set[str]], alias: Alias) -> dict[str, set[str]]:
    merged: dict[str, set[str]] = {}
    for host, names in table.items():
        merged.setdefault(alias.get(host, host) or "", set()).update(names)
    return merged
