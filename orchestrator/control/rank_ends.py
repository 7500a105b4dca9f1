"""How ranks ended, as their node's agent sees it: code and time, last words, kills for want of memory, errors of GPUs."""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from orchestrator.control.kernel_log import KernelLog
from orchestrator.control.masking import masked_json
from orchestrator.control.memory_watch import RankMemory
from orchestrator.health.evidence import OutOfMemory, RankEnd, Word, Xid
from orchestrator.health.kernel_lines import Killed

XIDS_TOLD = 16
"""Of a part: the first, which the later ones follow from."""
FIRST_PID_NAMESPACE = "pid:[4026531836]"
"""PROC_PID_INIT_INO of include/linux/proc_ns.h."""
WORD_BYTES = 64 << 10
NEAR_S = 60.0
"""A worker may be killed this long before its rank has noticed, and has ended."""
_WORKER_KILLED = re.compile(r"killed by signal: Killed|terminated abruptly")


@dataclass
class PartEnds:
    """Of one part: its ranks' memory while they live, and their ends."""

    memory: dict[int, RankMemory] = field(default_factory=dict)
    ends: dict[int, RankEnd] = field(default_factory=dict)


class EndWatch:
    """One for a node. `proc`, `cgroups`: where the kernel shows processes and cgroups."""

    def __init__(self, log: Path, proc: Path = Path("/proc"), cgroups: Path = Path("/sys/fs/cgroup")) -> None:
        self._log = KernelLog(log)
        self._proc, self._cgroups = proc, cgroups
        self._gpus: dict[str, int] = {}
        self._host_pids = _has_host_pids(proc)
        self._parts: dict[str, PartEnds] = {}

    def know_gpus(self, addresses: Iterable[tuple[int, str | None]]) -> None:
        """Index and bus address (`0000:3b:00.0`, as the driver has it) of each GPU of the node."""
        self._gpus = {_address(bus): index for index, bus in addresses if bus is not None}

    def read_log(self) -> None:
        """What the kernel's log holds by now."""
        self._log.read(self._gpus)

    def watch(self, key: str, pids: Mapping[int, int]) -> None:
        """The part's ranks live under these pids."""
        part = self._parts.setdefault(key, PartEnds())
        for rank, pid in pids.items():
            part.memory.setdefault(rank, RankMemory(pid))
        self.look(key)

    def look(self, key: str) -> None:
        """Looks at the memory of the ranks that live; to be called every second or so."""
        if (part := self._parts.get(key)) is None:
            return
        for rank, memory in part.memory.items():
            if rank not in part.ends:
                memory.look(self._proc, self._cgroups)

    def ended(self, key: str, rank: int, state: Mapping[str, Any], word: Path, secrets: tuple[bytes, ...] = ()) -> None:
        """The rank has ended, as the launcher tells it: `code`, and by `boot_time` `at` and `told_at`.

        `word` is where its interpreter has left its last word, in which `secrets` are masked.
        """
        part = self._parts.setdefault(key, PartEnds())
        if rank in part.ends:
            return
        said = _word_at(word, secrets)
        end = RankEnd(state["code"], state["at"], state.get("told_at"), said)
        oom = None
        if end.code != 0 and end.told_at is None:
            self.read_log()
            oom = self._oom(part, rank, end)
        part.ends[rank] = RankEnd(end.code, end.at, end.told_at, said, oom)

    def ends(self, key: str) -> dict[int, RankEnd]:
        part = self._parts.get(key)
        return {} if part is None else dict(part.ends)

    def xids(self, gpus: Iterable[int], since: float) -> tuple[Xid, ...]:
        """What these GPUs, and those that could not be told apart, have told since then."""
        mine = set(gpus)
        found = (one for one in self._log.xids if one.at >= since and (one.gpu is None or one.gpu in mine))
        return tuple(found)[:XIDS_TOLD] if mine else ()

    def xid_lines(self) -> tuple[str, ...]:
        """What the driver told of any GPU, or of a switch between them, oldest first."""
        return tuple(one.line for one in self._log.xids)

    def forget(self, key: str) -> None:
        self._parts.pop(key, None)

    # -- memory --------------------------------------------------------------------------------------------------

    def _oom(self, part: PartEnds, rank: int, end: RankEnd) -> OutOfMemory | None:
        memory = part.memory.get(rank)
        if memory is None:
            return None
        near = [kill for at, kill in self._log.kills if at >= end.at - NEAR_S and self._host_pids]
        text = "" if end.word is None else "\n".join(said for _, said in end.word.errors)
        named = {int(number) for number in re.findall(r"\b\d+\b", text)}
        for kill in near:
            if kill.pid == memory.pid:
                return self._of_kill(kill, memory)
        for kill in near:
            if kill.pid in memory.children or kill.pid in named:
                return self._of_kill(kill, memory)
        if end.code != -signal.SIGKILL and not _WORKER_KILLED.search(text):
            return None
        return self._counted(part, memory, near)

    def _counted(self, part: PartEnds, memory: RankMemory, near: Iterable[Killed]) -> OutOfMemory | None:
        """By its cgroup's counter alone: in a container the kernel's log has other pids, or cannot be read."""
        mine = [one for one in part.memory.values() if one.cgroup == memory.cgroup]
        known = {pid for one in mine for pid in (one.pid, *one.children)}
        told = sum(1 for kill in near if kill.pid in known)
        counted = sum(1 for rank, one in part.memory.items() if one in mine and (e := part.ends.get(rank)) and e.oom)
        if memory.killed_since() <= max(told, counted) or memory.cgroup is None:
            return None
        return self._figures(None, memory, None)

    def _of_kill(self, kill: Killed, memory: RankMemory) -> OutOfMemory:
        if kill.usage is not None:
            return OutOfMemory(kill.pid, kill.usage, kill.limit, line=kill.line)
        return self._figures(kill.pid, memory, kill)

    def _figures(self, pid: int | None, memory: RankMemory, kill: Killed | None) -> OutOfMemory:
        limit = None if memory.cgroup is None or kill is not None else memory.cgroup.limit()
        if limit is not None and memory.cgroup is not None:
            size, folder = limit
            return OutOfMemory(pid, memory.cgroup.peak(folder) or memory.peak or None, size)
        peak = kill.held if kill is not None else memory.peak
        line = None if kill is None else kill.line
        return OutOfMemory(pid, peak or None, self._whole_memory(), whole_node=True, line=line)

    def _whole_memory(self) -> int | None:
        try:
            for line in (self._proc / "meminfo").read_text().splitlines():
                if line.startswith("MemTotal:"):
                    return int(line.split()[1]) << 10
        except (OSError, ValueError, IndexError):
            pass
        return None


def _has_host_pids(proc: Path) -> bool:
    """Whether the kernel's log calls processes by the numbers that are seen here: not in a PID namespace of one's own."""
    try:
        return (proc / "self" / "ns" / "pid").readlink().name == FIRST_PID_NAMESPACE
    except OSError:
        return True


def _word_at(path: Path, secrets: tuple[bytes, ...]) -> Word | None:
    """What the rank's interpreter left (launcher/last_word.py); None where it left nothing."""
    try:
        with path.open("rb") as file:
            left = json.loads(file.read(WORD_BYTES))
        if secrets and (hidden := masked_json(left, secrets)) != left:
            left = hidden
            with suppress(OSError):  # a full disk: it is still told
                path.write_text(json.dumps(hidden))
        return Word.from_json(left)
    except (OSError, ValueError):
        return None


def _address(bus: str) -> str:
    """As the driver's lines have it: lower case, four digits of domain, without the function."""
    domain, _, rest = bus.lower().partition(":")
    return f"{domain[-4:]}:{rest.partition('.')[0]}"
