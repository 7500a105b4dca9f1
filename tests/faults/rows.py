"""Which faults orch is tried against: one row each, with how it is brought about and what may become of the runs.

A test belongs to a row by `@fault(7)`; several may share one, and they may lie in any folder under tests/. `make faults` runs them
all, `make test` those that are `representative` too: quick, and few.
"""

from __future__ import annotations

from dataclasses import dataclass

import pytest


@dataclass(frozen=True)
class Row:
    number: int
    fault: str
    injection: str
    outcome: str
    """What is acceptable. "Retried" is another attempt, from the newest checkpoint, paid by the budget for the cluster's faults."""
    not_here: str | None = None
    """What of it no test machine without special hardware can bring about, and what is tried instead, if anything."""


_ALL = (
    Row(1, "a rank is killed", "SIGKILL to one rank", "its peers end within 5 s; that rank is named; retried"),
    Row(
        2,
        "a rank raises an exception",
        "rank 1 of the script raises",
        "failed, not retried; the text is rank 1's own traceback",
    ),
    Row(
        3,
        "a rank hangs",
        "SIGSTOP to one rank, SIGCONT after the next attempt has started",
        "found by its limit; stacks of all ranks kept; that rank is named; retried; the stopped one writes nothing more",
    ),
    Row(
        4, "a rank is slow", "a CPU quota of 10 % for one rank", "named with its node and by how much; nothing is ended"
    ),
    Row(
        5,
        "a child outlives its rank",
        "the script starts a child in a session of its own",
        "the child is gone within 15 s",
    ),
    Row(
        6,
        "a node's raylet is killed",
        "SIGKILL to the raylet",
        "the gang is ended on all nodes; retried, or waits saying what is short",
    ),
    Row(
        7,
        "a node loses power",
        "every process of the host ends at once and its cable is out",
        "noticed within 12 s; retried elsewhere",
    ),
    Row(
        8,
        "a node's raylet freezes",
        "SIGSTOP to the raylet, SIGCONT later",
        "as if killed; what wakes up ends within 15 s; no double writer",
    ),
    Row(
        9,
        "a link is down",
        "the cable out, both ways, until the next attempt trains",
        "ranks that are cut off end by their lease while still cut off; no double writer when the cable is back",
    ),
    Row(
        10,
        "packets are lost one way, or of one port",
        "packet filter: from one host to another, Ray's port, the ranks' own port",
        "goes on, or ends and is retried; never both",
    ),
    Row(11, "5 % of packets are lost", "packet filter, at random", "succeeds in one attempt, only slower"),
    Row(
        12,
        "a link flaps",
        "down 2 s, up 8 s, five times",
        "succeeds in one attempt, or with one retry; the flaps are counted",
    ),
    Row(13, "a network is slow", "8 Mbit/s for one host", "succeeds in one attempt; its throughput shows it"),
    Row(
        14,
        "Ray's head service is killed",
        "SIGKILL to the GCS, its state in memory",
        "commands answer within 10 s; runs go back to the queue",
    ),
    Row(
        15, "the head is killed and comes back", "its state on disk, back within 60 s", "runs go on in the same attempt"
    ),
    Row(16, "the head comes back late", "its state on disk, back after 90 s", "one retry of each run; none is lost"),
    Row(
        17,
        "the controller is killed",
        "at each point between a record and its effect, 100 seeds each; SIGKILL to its process on real Ray",
        "no run lost, none doubled, no process left; what was asked for is carried on",
    ),
    Row(18, "the command is killed", "SIGKILL and Ctrl-C to `orch submit --wait`", "the run goes on"),
    Row(
        19,
        "a gang starts only in part",
        "a node dies, an agent refuses or a port is taken while others have started",
        "no rank trains; those that started are gone within 15 s; retried",
    ),
    Row(
        20,
        "there is not enough",
        "a job larger than what is there or free",
        "exit code 5 if it never fits; else it waits and says what is short",
    ),
    Row(
        21,
        "a rank runs out of memory",
        "a cgroup's memory limit",
        "said to be out of memory, with limit and peak; not retried blindly",
    ),
    Row(
        22,
        "a run gives way",
        "a run of higher priority; a node that is drained",
        "grace, then SIGKILL; goes on later; no budget pays for it",
    ),
    Row(23, "a job is submitted twice", "the same file again, 20 at once with one key", "one key is one run"),
    Row(24, "a run is cancelled twice", "in each state, 20 at once", "one end, and each command says so"),
    Row(
        25,
        "the database is locked",
        "another process holds a write lock",
        "writers wait, then exit code 6; nothing acknowledged is lost",
    ),
    Row(
        26,
        "the database's disk is full",
        "a file system of 1 MiB",
        "ranks go on, reading works; it catches up when there is room",
    ),
    Row(
        27,
        "the disk of logs or checkpoints is full",
        "a small file system",
        "the run goes on without its log; the checkpoint before is whole",
    ),
    Row(
        28, "PostgreSQL restarts", "pg_ctl restart -m fast amid traffic", "no command fails; nothing is lost or doubled"
    ),
    Row(
        29,
        "PostgreSQL is killed, stopped or blocked",
        "SIGKILL, SIGSTOP, LOCK TABLE",
        "bounded waits, exit code 6, no lost event",
    ),
    Row(30, "two controllers", "a second one on the same database", "one writes; what the other sends is refused"),
    Row(
        31,
        "the database is damaged",
        "SIGKILL amid writes, flipped bytes, cut short",
        "opens whole, or exit code 8 with what to do; never a new one in its place",
    ),
    Row(
        32,
        "the database has another revision",
        "older, newer, killed while it is raised",
        "raised with a copy kept, or exit code 8; never half",
    ),
    Row(
        33,
        "a clock is wrong",
        "2 h back, a day ahead, a step during a run",
        "no wrong end of a lease, no negative duration",
    ),
    Row(34, "a job file is broken", "cases by hand, random text, bombs", "exit code 2 with the place; no traceback"),
    Row(
        35,
        "a job file is hostile",
        "paths, shell text, control characters, variables that load code",
        "refused, or taken literally",
    ),
    Row(
        36,
        "a checkpoint is damaged",
        "the newest cut short or a byte flipped",
        "skipped with a warning; the one before is used",
    ),
    Row(
        37,
        "storage stalls",
        "the process behind a mounted folder is stopped",
        "commands answer; goes on when storage does",
    ),
    Row(
        38,
        "Ray's calls get lost",
        "Ray fails 5 % of the requests and 5 % of the replies of each of its calls but one; agents' answers come late",
        "20 runs succeed",
        not_here="PrepareBundleResources is left out: where one is lost, Ray 2.60 takes the node for full for good",
    ),
    Row(
        39,
        "many faults, for long",
        "200 runs, a random fault every 10 to 30 s",
        "every rule holds; the controller does not grow",
    ),
    Row(
        40,
        "a GPU or a link reports an error",
        "recorded kernel lines and counters",
        "the right kind of failure; the node is left out where that helps",
        not_here="real errors of GPUs need GPUs that break: recorded lines are fed instead",
    ),
    Row(
        41,
        "a node fails runs again and again",
        "one host fails every second attempt",
        "left out after at most 5 attempts, and said so",
    ),
    Row(42, "a token is wrong, missing or readable by others", "the file is changed", "exit code 4 with what to do"),
    Row(
        43,
        "orch is upgraded during a run",
        "a controller of another version",
        "takes the run up, or refuses before it touches it",
    ),
)

ROWS = {row.number: row for row in _ALL}


def fault(number: int) -> pytest.MarkDecorator:
    """The test shows what becomes of the fault of that row; KeyError if there is no such row."""
    return pytest.mark.fault(ROWS[number].number)


representative = pytest.mark.representative
"""One of the few fault tests that `make test` runs as well."""
