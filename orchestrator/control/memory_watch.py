"""What a rank's memory cgroup tells: how often the kernel killed in it, the limit, and the peak. cgroup v2 and v1."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

_UNLIMITED = 1 << 60
MOST_CHILDREN = 1000
"""That are remembered of a rank."""


@dataclass(frozen=True)
class Cgroup:
    """One memory cgroup: its folder, and where the hierarchy begins."""

    folder: Path
    top: Path
    v2: bool

    def kills(self) -> int | None:
        """How many processes of it the kernel has killed for want of memory; None where it does not tell."""
        text = _text(self.folder / ("memory.events" if self.v2 else "memory.oom_control"))
        return _field(text, "oom_kill")

    def limit(self) -> tuple[int, Path] | None:
        """The tightest limit on the way up, in bytes, and whose it is; None where there is none."""
        name = "memory.max" if self.v2 else "memory.limit_in_bytes"
        found = [(size, folder) for folder in self._up() if (size := _size(folder / name)) is not None]
        return min(found, key=lambda one: one[0], default=None)

    def peak(self, folder: Path) -> int | None:
        """The most that was in use there, in bytes."""
        # memory.peak came with Linux 5.19.
        for name in ("memory.peak", "memory.current") if self.v2 else ("memory.max_usage_in_bytes",):
            if (size := _size(folder / name)) is not None:
                return size
        return None

    def _up(self) -> Iterator[Path]:
        folder = self.folder
        while True:
            yield folder
            if folder in (self.top, self.top.parent) or folder == folder.parent:
                return
            folder = folder.parent


def cgroup_of(pid: int | str, proc: Path = Path("/proc"), sys: Path = Path("/sys/fs/cgroup")) -> Cgroup | None:
    """The memory cgroup of a process; None where there is none, or it cannot be seen from here."""
    unified = None
    for line in (_text(proc / str(pid) / "cgroup") or "").splitlines():
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if "memory" in controllers.split(","):
            return _there(sys / "memory", path, v2=False)
        if number == "0":
            unified = path
    return None if unified is None else _there(sys, unified, v2=True)


def _there(top: Path, path: str, *, v2: bool) -> Cgroup | None:
    folder = top / path.lstrip("/")
    if not folder.is_dir():
        # A container that sees its own cgroup as the top, and its path as the host has it.
        folder = top
    return Cgroup(folder, top, v2) if folder.is_dir() else None


@dataclass
class RankMemory:
    """One rank's memory as its node's agent looks at it while it lives."""

    pid: int
    cgroup: Cgroup | None = None
    kills: int | None = None
    """Of its cgroup when it was first seen there."""
    peak: int = 0
    """Of its own resident memory, in bytes."""
    children: set[int] = field(default_factory=set)
    """Processes that it was seen to have started: a DataLoader's workers."""
    _where: str | None = None

    def look(self, proc: Path = Path("/proc"), sys: Path = Path("/sys/fs/cgroup")) -> None:
        """Takes in where it is and what it holds; a process that has ended is left as it was."""
        folder = f"{proc}/{self.pid}"
        held = _field(_text(f"{folder}/status"), "VmHWM:")
        if held is None:
            return  # ended: its memory is gone, and it is shown in the cgroup at the top
        self.peak = max(self.peak, held << 10)
        where = _text(f"{folder}/cgroup")
        if where != self._where:
            self._where, self.cgroup = where, cgroup_of(self.pid, proc, sys)
            self.kills = None if self.cgroup is None else self.cgroup.kills()
        started = _text(f"{folder}/task/{self.pid}/children")
        if started and len(self.children) < MOST_CHILDREN:
            self.children.update(map(int, started.split()))

    def killed_since(self) -> int:
        """How many kills its cgroup has told of since it was first seen there."""
        if self.cgroup is None or self.kills is None:
            return 0
        return max(0, (self.cgroup.kills() or 0) - self.kills)


def _text(path: Path | str) -> str | None:
    try:
        with open(path) as file:
            return file.read()
    except (OSError, ValueError):
        return None


def _field(text: str | None, name: str) -> int | None:
    for line in (text or "").splitlines():
        words = line.split()
        if len(words) > 1 and words[0] == name and words[1].isdigit():
            return int(words[1])
    return None


def _size(path: Path) -> int | None:
    text = (_text(path) or "").strip()
    return int(text) if text.isdigit() and int(text) < _UNLIMITED else None
