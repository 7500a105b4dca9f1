"""How one rank's end is read: the table of rules, in order, of which the first that fits says what the end was of.

The texts are torch's (2.6 to 2.13), Gloo's, NCCL's (2.18 to 2.28), CUDA's and glibc's own.
"""

from __future__ import annotations

import re
import signal
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from functools import cached_property

from orchestrator.health.death import Death
from orchestrator.health.failure import Blame
from orchestrator.health.kernel_lines import APPLICATION_XIDS, HARDWARE_XIDS

REQUEUE_ME = 75
"""EX_TEMPFAIL of sysexits.h: a script that ends so wants to be started again."""
XID_FAR_S, XID_NEAR_S = 900.0, 30.0
"""An Xid this long before a rank's end (by the time that NCCL's watchdog takes, of 10 minutes by default), or so shortly before
that it counts whatever the rank said."""


class Weight(IntEnum):
    """How much an end says of itself."""

    SYMPTOM = 0  # of another rank's end, or it was told to end
    WEAK = 1  # it ended by itself, and does not say why: what another's end may have led to as well
    OWN = 2


@dataclass(frozen=True)
class Match:
    """What a rule made of an end."""

    phrase: str
    """What goes on after `rank 3 on gpu-02`."""
    detail: str | None = None
    """The kernel's line; None: an excerpt of the log."""


@dataclass(frozen=True)
class Rule:
    """One row of the table."""

    name: str
    kind: str
    fits: Callable[[Death], Match | None]
    weight: Weight = Weight.OWN
    cause: Blame | None = None
    """None: that of the kind."""
    suspect: bool = False
    """Whether the node is one to avoid."""


def _line(text: str) -> str:
    first = next((line.strip() for line in text.splitlines() if line.strip()), "")
    return first[:300]


def _shown(death: Death, found: re.Match[str] | None = None) -> str:
    """The exception in one line, or the line that was found."""
    if death.errors:
        kind, text = death.errors[0]
        name = kind.rpartition(".")[2]
        return f"{name}: {_line(text)}" if text else name
    if found is not None:
        start = found.string.rfind("\n", 0, found.start()) + 1
        return _line(found.string[start:])
    return ""


def _saying(verb: str, *patterns: str) -> Callable[[Death], Match | None]:
    """A rank that says one of these."""
    pattern = re.compile("|".join(patterns))

    def fits(death: Death) -> Match | None:
        found = pattern.search(death.said)
        return Match(f"{verb}: {_shown(death, found)}") if found else None

    return fits


def _told(death: Death) -> Match | None:
    told_at = death.end.told_at
    return Match("was told to end") if told_at is not None and told_at <= death.at else None


def _gib(size: int) -> str:
    return f"{size / 2**30:.1f}"


def _oom(death: Death) -> Match | None:
    oom = death.end.oom
    if oom is None or (death.end.code == 0):
        return None
    if oom.peak is not None and oom.limit is not None:
        figures = f", {_gib(oom.peak)} of {_gib(oom.limit)} GiB"
    elif oom.peak is not None:
        figures = f" at {_gib(oom.peak)} GiB"
    else:
        figures = ""
    where = "the node ran out of memory" if oom.whole_node else "out of memory"
    if death.end.code == -signal.SIGKILL:
        return Match(f"was killed: {where}{figures}", oom.line)
    return Match(f"lost a process to the kernel: {where}{figures}; {_shown(death)}".rstrip("; "), oom.line)


def _requeue(death: Death) -> Match | None:
    return Match("asked to be started again (exit code 75)") if death.code == REQUEUE_ME else None


_GPU_WORDS = re.compile(r"CUDA|NCCL|nccl|cuda|cuBLAS|CUBLAS|cuDNN|CUDNN")


def _gpu(death: Death) -> Match | None:
    if found := death.xids(HARDWARE_XIDS, XID_NEAR_S):
        return Match(f"broke with its GPU: Xid {found[0].number}", found[0].line)
    if (_GPU_WORDS.search(death.said) or death.end.code < 0) and (found := death.xids(HARDWARE_XIDS, XID_FAR_S)):
        return Match(f"broke with its GPU: Xid {found[0].number}", found[0].line)
    return None


def _cuda(death: Death) -> Match | None:
    said = _CUDA(death)
    xids = death.xids(APPLICATION_XIDS - {45}, XID_NEAR_S)
    if said is None and (not xids or death.end.code == 0 or (death.errors and not _GPU_WORDS.search(death.said))):
        return None
    phrase = said.phrase if said else f"broke on its GPU: Xid {xids[0].number}"
    return Match(phrase, None if said or not xids else xids[0].line)


_CUDA = _saying(
    "broke on its GPU",
    r"CUDA error: (an illegal memory access|device-side assert|misaligned address|an illegal instruction)",
    r"CUDA error: (unspecified launch failure|invalid device ordinal|no kernel image|invalid configuration)",
    r"CUDA error: (the launch timed out|invalid argument|invalid device function)",
    r"Cuda failure( \d+)? '?(an illegal memory access|device-side assert|unspecified launch)",
    r"CUBLAS_STATUS_(EXECUTION_FAILED|INVALID_VALUE)",
)


def _python(death: Death) -> Match | None:
    if not death.errors or (death.end.word is not None and death.end.word.exit is not None):
        return None
    return Match(f"ended by {_shown(death)}")


def name_of_signal(number: int) -> str:
    """`SIGKILL`, or `signal 42` for one that has no name here."""
    return signal.Signals(number).name if number in signal.Signals._value2member_map_ else f"signal {number}"


_FROM_OUTSIDE = {-signal.SIGKILL, -signal.SIGTERM, -signal.SIGINT, -signal.SIGHUP, -signal.SIGQUIT, -signal.SIGUSR1}


def _by_signal(death: Death) -> Match | None:
    return Match(f"was ended by {name_of_signal(-death.end.code)}")


def _sent(death: Death) -> Match | None:
    return _by_signal(death) if death.end.code in _FROM_OUTSIDE else None


def _crashed(death: Death) -> Match | None:
    code = death.end.code
    return _by_signal(death) if code < 0 and code != -signal.SIGABRT else None


def _aborted(death: Death) -> Match | None:
    if death.end.code != -signal.SIGABRT or death.code > 0:
        return None  # it aborted after the script had asked for an exit code of its own
    if death.end.word is not None and death.end.word.exit == 0:
        return Match("had come to its end, and was ended by SIGABRT while its interpreter closed")
    return _by_signal(death)


def _exit(death: Death) -> Match | None:
    if death.code == 0:
        return None
    return Match(f"ended with exit code {death.code}")


def _bus(death: Death) -> Match | None:
    if death.end.code == -signal.SIGBUS and re.search(r"shared memory|\bshm\b", death.native):
        return Match("was ended by SIGBUS: shared memory (/dev/shm) was not enough")
    return _SHM(death)


_SHM = _saying(
    "ran out of shared memory",
    r"insufficient shared memory",
    r"out of shared memory",
    r"unable to (write to|resize|open|allocate) (file|shared memory)[^\n]*No space left on device",
    r"No space left on device[^\n]*/dev/shm",
    r"shared memory segment[^\n]*No space left",
    r"(?:/dev/shm)[^\n]*No space left on device",
)

TIMED_OUT = re.compile(
    r"Timed out waiting \d+ms for (send|recv)|Watchdog caught collective operation timeout|ran into timeout|"
    r"Timeout at NCCL work|[Oo]peration timed out!|client socket has timed out|Timed out after \d+ ?(ms|seconds|s)? waiting|"
    r"wait timeout after|Socket Timeout|WorkNCCL\([^)]*Timeout|monitoredBarrier|HeartbeatMonitor|"
    r"heartbeat monitor timed out"
)
"""Of a symptom: it waited for another, rather than having seen that it was gone."""

RULES: tuple[Rule, ...] = (
    Rule("it had been told to end", "stopped", _told, Weight.SYMPTOM, "teardown"),
    Rule("the kernel killed it, or a process of it, for want of memory", "oom", _oom),
    Rule("exit code 75: requeue me", "requeue_asked", _requeue),
    Rule(
        "the GPU's memory was not enough",
        "cuda_oom",
        _saying(
            "ran out of GPU memory",
            r"(?:^|\n)(torch\.)?(cuda\.)?OutOfMemoryError",
            r"CUDA out of memory",
            r"CUDA error: out of memory",
            r"[Cc]uda failure( \d+)? '?out of memory",
            r"CUBLAS_STATUS_ALLOC_FAILED",
            r"HIP out of memory",
        ),
    ),
    Rule("an Xid of the hardware at its end", "gpu", _gpu, suspect=True),
    Rule(
        "a GPU that is gone, or has uncorrectable errors",
        "gpu",
        _saying(
            "broke with its GPU",
            r"uncorrectable (ECC|NVLink) error",
            r"Uncorrectable NVLink",
            r"(GPU|device) (is lost|has fallen off the bus)",
            r"CUDA error: (unknown error|device\(s\) is/are busy|initialization error)",
            r"CUDA-capable device\(s\) is/are busy",
            r"no CUDA-capable device is detected",
            r"No CUDA GPUs are available",
            r"system not yet initialized",
            r"hardware stack error",
            r"NVML.*GPU is lost",
        ),
        suspect=True,
    ),
    Rule("shared memory was not enough", "shm", _bus),
    Rule("a kernel of its own broke on the GPU", "cuda", _cuda),
    Rule(
        "the port to meet at was taken",
        "port_taken",
        _saying(
            "could not listen at the port to meet at",
            r"server socket has failed to (listen|bind)",
            r"EADDRINUSE",
            r"TCPStore[^\n]*[Aa]ddress already in use",
        ),
    ),
    Rule(
        "a file system was full, read-only, stale, or broke",
        "storage",
        _saying(
            "could not use its storage",
            r"No space left on device",
            r"Disk quota exceeded",
            r"Read-only file system",
            r"Stale (NFS )?file handle",
            r"\[Errno 5\] Input/output error",
            r"Remote I/O error",
            r"Transport endpoint is not connected",
            r"PytorchStreamWriter failed writing file",
        ),
        suspect=True,
    ),
    Rule(
        "NCCL was used wrongly",
        "python",
        _saying("ended by", r"ncclInvalidUsage", r"ncclInvalidArgument", r"Duplicate GPU detected"),
    ),
    Rule(
        "it lost, or waited in vain for, another rank",
        "peer",
        _saying(
            "lost its peers",
            r"Connection (closed|reset) by (remote )?peer",
            r"Connection was likely closed",
            r"Broken pipe[^\n]*(remote|peer|rank|store|sendBytes)",
            r"(sendBytes|recvBytes|recvValue|recvVector|waitForInput)[^\n]*(failed|Connection|Broken pipe)",
            r"[Gg]loo[^\n]*(connectFullMesh failed|[Cc]onnect(ion)? (failed|timeout|refused))",
            r"gloo/transport/tcp[^\n]*(Connection|[Cc]onnect|Socket|timed out|Timed out|error|closed)",
            r"client socket has (timed out|failed to connect)",
            r"Timed out after \d+ ?(ms|seconds|s)? waiting for clients",
            r"(DistStoreError|DistNetworkError)",
            r"wait timeout after \d+ms",
            r"ncclRemoteError",
            r"remote process exited or there was a network error",
            r"NCCL communicator (was|has been) aborted",
            r"(NCCL|Gloo|collective)[^\n]*[Tt]imed? ?out",
            r"Watchdog caught collective operation timeout",
            r"ProcessGroupNCCL[^\n]*([Ww]atchdog|timed out|[Hh]eartbeat monitor)",
            r"taking the entire process down",
            r"Some NCCL operations have failed or timed out",
            r"[Hh]eartbeat monitor timed out",
            r"NET/IB ?: Got completion (from peer )?[^\n]*with (error|status)",
            r"NET/Socket ?: [^\n]*(closed|reset|refused|timed out)",
            r"Net ?: [Cc]all to (recv|send|connect)[^\n]*failed",
            r"monitoredBarrier",
            TIMED_OUT.pattern,
        ),
        Weight.SYMPTOM,
        "teardown",
    ),
    Rule(
        "NCCL or a CUDA call of it failed",
        "nccl",
        _saying(
            "broke in NCCL",
            r"unhandled (cuda|system) error",
            r"nccl(UnhandledCuda|System|Internal)Error",
            r"DistBackendError",
            r"NCCL error",
        ),
        suspect=True,
    ),
    Rule(
        "a worker of a DataLoader ended",
        "dataloader",
        _saying(
            "lost a worker of its DataLoader",
            r"DataLoader worker \(pid(\(s\))? [\d, ]+\) (is killed by signal|exited unexpectedly)",
            r"Pin memory thread exited unexpectedly",
        ),
    ),
    Rule(
        "its own connection to elsewhere broke",
        "network",
        _saying(
            "lost a connection",
            r"(?:^|\n)(ConnectionResetError|ConnectionAbortedError|BrokenPipeError)",
            r"No route to host",
            r"Network is unreachable",
        ),
        Weight.WEAK,
    ),
    Rule("an uncaught exception", "python", _python),
    Rule("a signal from outside: SIGKILL, SIGTERM, SIGINT, ...", "signal", _sent, cause="infra", suspect=True),
    Rule("a crash: SIGSEGV, SIGBUS, SIGILL, SIGFPE, ...", "signal", _crashed),
    Rule("SIGABRT, without a word", "signal", _aborted, Weight.WEAK),
    Rule("an exit code, without a word", "exit", _exit, Weight.WEAK),
)
"""In order; the first that fits is what the end was of. An end with 0 fits none."""


@dataclass(frozen=True)
class Finding:
    """A rank's end and the rule that it fits."""

    death: Death
    rule: Rule
    place: int
    """Of the rule in the table."""
    match: Match

    @property
    def at(self) -> float:
        return self.death.at

    @cached_property
    def key(self) -> str:
        """Equal for equal errors: numbers, which differ from rank to rank, are no part of it."""
        return self.rule.kind + re.sub(r"0x[0-9a-fA-F]+|\d+", "#", self.match.phrase)


def read(death: Death) -> Finding | None:
    """The rule that a rank's end fits; None for one that ended well."""
    if death.end.code == 0:
        return None
    for place, rule in enumerate(RULES):
        if (match := rule.fits(death)) is not None:
            return Finding(death, rule, place, match)
    raise AssertionError("an end with another code than 0 fits the last rule")
