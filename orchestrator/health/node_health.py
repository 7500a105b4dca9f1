"""How well a node is: from its vitals and its past to findings, of which the worst decides what it may be used for.

Fatal: nothing new is placed there. Degraded: among equal places others are taken first. Warning: told, no more. What runs there
goes on in any case. Thresholds are orch's own where no source is named.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from enum import IntEnum
from typing import Any

from orchestrator.health import cluster_rules, finding, node_rules
from orchestrator.health.facts import NodeFacts, size
from orchestrator.health.kernel_lines import xid_of
from orchestrator.health.node_past import Past
from orchestrator.health.vitals import Disk, Vitals
from orchestrator.health.xid_meanings import BROKEN, WORN

FLAPS_S = 3600.0
FLAPS_TO_DRAIN = 3
"""So many losses of a link within FLAPS_S, and draining the node is proposed."""
ECC_S = 86400.0
NVLINK_S = 3600.0
NVLINK_ERRORS = 100
"""Within NVLINK_S: below, a link that recovers by itself; at or above, one that costs time."""
HELD_MIB = 1024
"""As the look before a start has it (control/gpus.py): more than a monitor or a bare context takes."""
SHM_LEAST = 32 << 20
"""As that look has it."""
DISK_FULL, DISK_LOW = 64 << 20, 1 << 30
"""Bytes: below the first nothing can be started, below the second it will be soon."""
DISK_LOW_PART = 0.02
DISK_SILENT_S = 20.0
LINE_SHOWN = 120
WORN_S = 86400.0


class Severity(IntEnum):
    """How bad, in order."""

    OK = 0
    WARNING = 1
    DEGRADED = 2
    FATAL = 3

    @property
    def word(self) -> str:
        return self.name.lower()


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong with a node."""

    node: str
    what: str
    """A word for programs: gpus, remap, ecc, recovery, xid, nvlink, port, flaps, rate, disk, shm, memory, clock, doctor, lemon."""
    severity: Severity
    text: str
    """What is, in a clause without a full stop."""
    fix: str
    numbers: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Known:
    """What is known of a node at one moment."""

    node: str
    vitals: Vitals
    past: Past
    """With this look in it."""
    at: float
    """Unix time of the look, by the head's clock."""
    total: int | None = None
    """How many GPUs the cluster gives to work there; None where it has none to give."""
    host: NodeFacts | None = None
    clock_ahead: float | None = None
    """Seconds by which its clock is certainly ahead of the head's; negative where it is behind."""
    forgiven_at: float = 0.0
    """Messages of the kernel that were seen before count no more: somebody has said since that the node is well."""


def examine(known: Known) -> tuple[Finding, ...]:
    """What is wrong, the worst first."""
    found = [replace(one, node=known.node) for rule in RULES for one in rule(known)]
    return tuple(sorted(found, key=lambda one: -one.severity))


def worst(findings: Iterable[Finding]) -> Severity:
    return max((one.severity for one in findings), default=Severity.OK)


def unfit(findings: Iterable[Finding]) -> str | None:
    """Why nothing new may be placed on the node; None where it may."""
    fatal = [one.text for one in findings if one.severity is Severity.FATAL]
    return f"not fit: {'; '.join(fatal)}" if fatal else None


def to_json(one: Finding) -> dict[str, Any]:
    return {
        "what": one.what,
        "severity": one.severity.word,
        "text": one.text,
        "fix": one.fix,
        "numbers": dict(one.numbers),
    }


def for_doctor(findings: Iterable[Finding]) -> tuple[finding.Finding, ...]:
    """The findings as `orch doctor` prints them, without those that are its own."""
    return tuple(
        finding.Finding("error" if one.severity is Severity.FATAL else "warning", one.node, one.text, one.fix)
        for one in findings
        if one.what not in ("doctor", "clock")
    )


# -- GPUs --------------------------------------------------------------------------------------------------------------


def gpus_are_all_there(known: Known) -> Iterator[Finding]:
    """A GPU that no longer answers shifts the numbers of the others, and CUDA may hang on it."""
    has, had = len(known.vitals.gpus), known.past.gpus
    if known.total is not None and known.total <= has < had:
        text = f"it was given {has} GPUs where it had {had}"
        yield _degraded("gpus", text, "look at `nvidia-smi -L`; `orch undrain` where it is meant", gpus=has, before=had)
    elif has < had:
        fix = "look at `dmesg` for Xid 79, take the node's power; `orch undrain` where it is meant to have fewer"
        yield _fatal("gpus", f"{has} of {had} GPUs answer", fix, gpus=has, before=had)


def memory_is_sound(known: Known) -> Iterator[Finding]:
    """Row remapping and errors that ECC could not correct (NVIDIA, GPU Memory Error Management)."""
    for gpu in known.vitals.gpus:
        if gpu.remap_failed:
            text = f"GPU {gpu.index} has a bad row of memory and no spare one left"
            yield _fatal("remap", text, "have the GPU replaced", gpu=gpu.index)
        elif gpu.remap_pending:
            text = f"GPU {gpu.index} remaps a bad row of memory with its next reset"
            yield _degraded("remap", text, "drain the node and reset the GPU: `nvidia-smi --gpu-reset`", gpu=gpu.index)
        if errors := known.past.grown(f"ecc {gpu.index}", known.at - ECC_S):
            text = f"GPU {gpu.index} met {_many(errors, 'memory error')} within a day that ECC could not correct"
            yield _degraded(
                "ecc", text, "look at `nvidia-smi -q -d ECC,ROW_REMAPPER`; reset the GPU", gpu=gpu.index, errors=errors
            )


def the_driver_is_content(known: Known) -> Iterator[Finding]:
    """What the driver wants done to one GPU leaves that GPU out; a node that it wants booted takes nothing new."""
    for gpu in known.vitals.gpus:
        if gpu.action in ("NODE_REBOOT", "SYSTEM_REBOOT"):
            yield _fatal(
                "recovery",
                f"the driver asks for {gpu.action} because of GPU {gpu.index}",
                "drain the node, boot it",
                gpu=gpu.index,
            )


def the_kernel_saw_no_fault(known: Known) -> Iterator[Finding]:
    """Xids of broken hardware hold until the node boots, or somebody says that it is well; those of programs say nothing of it."""
    told: dict[tuple[int, bool], list[str]] = {}
    for line, seen in known.past.xids.items():
        message = xid_of(line, 0.0, {})
        if message is None or seen.at <= known.forgiven_at:
            continue
        worn = message.switch or message.number in WORN
        if (message.number in BROKEN and not message.switch) or (worn and seen.at >= known.at - WORN_S):
            told.setdefault((message.number, message.switch), []).extend([line] * seen.times)
    for (code, switch), lines in sorted(told.items()):
        times = len(lines)
        make = _fatal if code in BROKEN and not switch else _degraded
        means = "an NVSwitch met a fault" if switch else BROKEN.get(code) or WORN[code]
        many = f", {times} times" if times > 1 else ""
        text = f"{'SXid' if switch else 'Xid'} {code}{many}: {means} ({lines[-1][:LINE_SHOWN]})"
        yield make(
            "xid",
            text,
            "drain the node and boot it (Xid 79: take its power); then `orch undrain`",
            code=code,
            times=times,
        )


def nvlinks_are_up(known: Known) -> Iterator[Finding]:
    """One link that is down slows every collective over its GPU, and nothing fails."""
    usual = max((gpu.nvlinks or 0 for gpu in known.vitals.gpus), default=0)
    for gpu in known.vitals.gpus:
        had = known.past.nvlinks.get(gpu.index, 0)
        if gpu.nvlinks is not None and gpu.nvlinks < max(had, usual):
            beside = "it had" if had >= usual else "its like have"
            text = f"GPU {gpu.index} has {gpu.nvlinks} NVLinks up where {beside} {max(had, usual)}"
            yield _degraded(
                "nvlink",
                text,
                "look at `nvidia-smi nvlink -s` and at the fabric manager; reset the GPU",
                gpu=gpu.index,
                links=gpu.nvlinks,
                before=max(had, usual),
            )
        if errors := known.past.grown(f"nvlink {gpu.index}", known.at - NVLINK_S):
            make = _degraded if errors >= NVLINK_ERRORS else _warning
            text = f"NVLinks of GPU {gpu.index} had {_many(errors, 'error')} within an hour"
            yield make(
                "nvlink", text, "look at `nvidia-smi nvlink -e`; reseat or replace", gpu=gpu.index, errors=errors
            )


def gpus_are_given_back(known: Known) -> Iterator[Finding]:
    """Memory that nobody answers for fails the next run on the GPU."""
    for gpu in known.vitals.gpus:
        if gpu.held_mib is not None and gpu.held_mib > HELD_MIB:
            who = f" by process {', '.join(map(str, gpu.holders[:4]))}" if gpu.holders else ""
            text = f"{gpu.held_mib} MiB of GPU {gpu.index} are held{who}, which is of no run"
            yield _warning("memory", text, "end what holds it, or reset the GPU", gpu=gpu.index, mib=gpu.held_mib)


# -- links to other nodes ----------------------------------------------------------------------------------------------


def ports_are_up(known: Known) -> Iterator[Finding]:
    """A port that was up once and is not, or is slower than it was."""
    rdma = [port for port in known.vitals.ports if port.rdma and port.name in known.past.rates]
    lost = [port.name for port in rdma if not port.active]
    if lost:
        make = _fatal if len(lost) == len(rdma) else _degraded
        text = f"{', '.join(lost[:4])} {'is' if len(lost) == 1 else 'are'} down, of {_many(len(rdma), 'adapter')} that worked"
        yield make("port", text, "look at the cable and at the switch's port", down=len(lost), of=len(rdma))
    for port in known.vitals.ports:
        best = known.past.rates.get(port.name, 0.0)
        if port.active and port.rate and port.rate < best:
            text = f"{port.name} runs at {port.rate:g} Gb/s where it had {best:g}"
            yield _degraded("rate", text, "look at the cable and at the switch's port", rate=port.rate, before=best)


def ports_stay_up(known: Known) -> Iterator[Finding]:
    """A link that comes and goes breaks runs that a link which is down would never have got."""
    for port in known.vitals.ports:
        if flaps := known.past.grown(f"downs {port.name}", known.at - FLAPS_S):
            text = f"the link of {port.name} went down {_many(flaps, 'time')} within an hour"
            if flaps >= FLAPS_TO_DRAIN:
                yield _degraded("flaps", text, f"orch drain {known.node} --reason 'its link flaps'", flaps=flaps)
            else:
                yield _warning("flaps", text, "look at the cable and at the switch's port", flaps=flaps)


# -- the machine -------------------------------------------------------------------------------------------------------


def disks_have_room(known: Known) -> Iterator[Finding]:
    """Without room for attempts none can be laid out, without room in the storage none can save."""
    for disk in known.vitals.disks:
        if disk.silent_s >= DISK_SILENT_S:
            text = f"{disk.what} ({disk.path}) has not answered for {disk.silent_s:.0f} s"
            yield _degraded("disk", text, "look at the server that it is mounted from", silent=disk.silent_s)
        if disk.silent_s:
            continue
        fix = f"make room in {disk.path}"
        numbers = {"free": disk.free, "total": disk.total}
        if disk.free < DISK_FULL:
            make = _fatal if disk.what in ("ORCH_HOME", "attempts") else _degraded
            yield make("disk", f"{_room(disk)}: full", fix, **numbers)
        elif disk.free < min(DISK_LOW, disk.total // 10):
            yield _degraded("disk", _room(disk), fix, **numbers)
        elif disk.free < DISK_LOW_PART * disk.total:
            yield _warning("disk", _room(disk), fix, **numbers)


def shared_memory_has_room(known: Known) -> Iterator[Finding]:
    """Files that dead ranks left there are nobody's, and NCCL fails where none is left."""
    free = known.vitals.shm_free
    if free is not None and free < SHM_LEAST:
        text = f"shared memory (/dev/shm) has {size(free)} left: NCCL and data loaders will fail with a bus error"
        yield _degraded("shm", text, "remove what dead processes left there: `ls -l /dev/shm`", free=free)


def the_clock_is_right(known: Known) -> Iterator[Finding]:
    """Logs of ranks are put in order by their nodes' clocks; leases hold whatever those say."""
    ahead = known.clock_ahead
    if ahead is not None and abs(ahead) > cluster_rules.CLOCKS_APART_S:
        text = f"its clock is {abs(ahead):.1f} s {'ahead of' if ahead > 0 else 'behind'} the head's"
        yield _warning("clock", text, "run chrony or another NTP client on every node", seconds=ahead)


def doctor_is_content(known: Known) -> Iterator[Finding]:
    """What `orch doctor` says of the machine's state, as a warning."""
    if known.host is not None:
        for rule in _OF_THE_DOCTOR:
            for one in rule(known.host):
                if one.severity != "note":
                    yield _warning("doctor", one.problem, one.mend)


_OF_THE_DOCTOR = (
    node_rules.gpus_are_fit,
    node_rules.shared_memory_suffices,
    node_rules.memory_can_be_locked,
    node_rules.adapters_work,
)


RULES: tuple[Callable[[Known], Iterable[Finding]], ...] = (
    gpus_are_all_there,
    memory_is_sound,
    the_driver_is_content,
    the_kernel_saw_no_fault,
    nvlinks_are_up,
    gpus_are_given_back,
    ports_are_up,
    ports_stay_up,
    disks_have_room,
    shared_memory_has_room,
    the_clock_is_right,
    doctor_is_content,
)


def _fatal(what: str, text: str, fix: str, **numbers: float) -> Finding:
    return Finding("", what, Severity.FATAL, text, fix, numbers)


def _degraded(what: str, text: str, fix: str, **numbers: float) -> Finding:
    return Finding("", what, Severity.DEGRADED, text, fix, numbers)


def _warning(what: str, text: str, fix: str, **numbers: float) -> Finding:
    return Finding("", what, Severity.WARNING, text, fix, numbers)


def _room(disk: Disk) -> str:
    return f"{disk.what} ({disk.path}) has {size(disk.free)} of {size(disk.total)} left"


def _many(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"
