"""What a node's agent makes of the kernel's log, of memory cgroups, and of what ranks left: over files as the kernel shows them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from orchestrator.control.kernel_log import KernelLog
from orchestrator.control.memory_watch import RankMemory, cgroup_of
from orchestrator.control.rank_ends import EndWatch
from orchestrator.health.evidence import Word

KERNEL = Path(__file__).resolve().parents[1] / "fixtures" / "kernel"
OOM_LINES = (KERNEL / "memcg_oom.kmsg").read_text()
GIB = 1 << 30
V1 = "9:name=systemd:/\n4:memory:/job\n0::/\n"
V2 = "0::/job\n"


class Node:
    """/proc, /sys/fs/cgroup and a kernel log, made of files."""

    def __init__(self, root: Path, v2: bool) -> None:
        self.proc, self.sys, self.log = root / "proc", root / "cgroup", root / "kmsg"
        self.v2 = v2
        self.job = self.sys / ("job" if v2 else "memory/job")
        self.job.mkdir(parents=True)
        self.log.write_text("")
        (self.proc).mkdir()
        (self.proc / "meminfo").write_text(f"MemTotal: {64 << 20} kB\n")
        self.memory(limit=2 * GIB, peak=2 * GIB - 4096, kills=0)
        self.ends = EndWatch(self.log, self.proc, self.sys)

    def memory(self, limit: int | None, peak: int, kills: int) -> None:
        names = {
            "memory.max": limit or "max",
            "memory.peak": peak,
            "memory.events": f"low 0\noom 1\noom_kill {kills}\n",
        }
        if not self.v2:
            names = {
                "memory.limit_in_bytes": limit or (1 << 63) - 4096,
                "memory.max_usage_in_bytes": peak,
                "memory.oom_control": f"oom_kill_disable 0\nunder_oom 0\noom_kill {kills}\n",
            }
        for name, value in names.items():
            (self.job / name).write_text(f"{value}\n")

    def lives(self, pid: int, held: int = GIB, children: str = "") -> None:
        folder = self.proc / str(pid)
        (folder / "task" / str(pid)).mkdir(parents=True, exist_ok=True)
        (folder / "status").write_text(f"Name:\tpython\nVmHWM:\t{held >> 10} kB\n")
        (folder / "cgroup").write_text(V2 if self.v2 else V1)
        (folder / "task" / str(pid) / "children").write_text(children)

    def dies(self, pid: int) -> None:
        """A zombie: no memory, and a cgroup v1 shows it at the top."""
        (self.proc / str(pid) / "status").write_text("Name:\tpython\nState:\tZ (zombie)\n")
        (self.proc / str(pid) / "cgroup").write_text("4:memory:/\n0::/\n")

    def end(self, rank: int, code: int, word: Path, told_at: float | None = None):
        self.ends.ended("1.1", rank, {"code": code, "at": 100.0, "told_at": told_at}, word)
        return self.ends.ends("1.1")[rank].oom


@pytest.fixture(params=[True, False], ids=["cgroup v2", "cgroup v1"])
def node(request: pytest.FixtureRequest, tmp_path: Path) -> Node:
    return Node(tmp_path, request.param)


def test_a_rank_that_the_kernel_names_has_the_figures_of_the_group_whose_limit_it_reached(node, tmp_path) -> None:
    node.lives(523)
    node.ends.watch("1.1", {0: 523})
    node.dies(523)
    node.log.write_text(OOM_LINES)
    oom = node.end(0, -9, tmp_path / "none")
    assert (oom.pid, oom.peak, oom.limit, oom.whole_node) == (523, 300 << 20, 300 << 20, False)
    assert oom.line.startswith("Memory cgroup out of memory: Killed process 523 (python)")


def test_where_the_kernel_s_log_says_nothing_the_counter_of_the_rank_s_cgroup_does(node, tmp_path) -> None:
    node.lives(9)
    node.ends.watch("1.1", {0: 9})
    node.dies(9)
    node.memory(limit=2 * GIB, peak=2 * GIB - 4096, kills=1)
    oom = node.end(0, -9, tmp_path / "none")
    assert (oom.pid, oom.peak, oom.limit, oom.line) == (None, 2 * GIB - 4096, 2 * GIB, None)


def test_one_kill_is_not_told_of_two_ranks_that_were_killed(node, tmp_path) -> None:
    node.lives(9)
    node.lives(10)
    node.ends.watch("1.1", {0: 9, 1: 10})
    node.memory(limit=2 * GIB, peak=2 * GIB, kills=1)
    assert node.end(0, -9, tmp_path / "none") is not None
    assert node.end(1, -9, tmp_path / "none") is None


def test_a_kill_by_hand_is_none_for_want_of_memory_and_one_after_a_stop_is_not_asked(node, tmp_path) -> None:
    node.lives(9)
    node.lives(10)
    node.ends.watch("1.1", {0: 9, 1: 10})
    assert node.end(0, -9, tmp_path / "none") is None
    node.memory(limit=2 * GIB, peak=2 * GIB, kills=1)
    assert node.end(1, -9, tmp_path / "none", told_at=99.0) is None


def test_in_a_pid_namespace_the_kernel_s_numbers_are_others_and_the_counter_decides(node, tmp_path) -> None:
    (node.proc / "self" / "ns").mkdir(parents=True)
    (node.proc / "self" / "ns" / "pid").symlink_to("pid:[4026532999]")
    node.ends = EndWatch(node.log, node.proc, node.sys)
    node.lives(523)
    node.ends.watch("1.1", {0: 523})
    node.log.write_text(OOM_LINES)
    assert node.end(0, -9, tmp_path / "none") is None


def test_a_worker_that_was_killed_is_its_rank_s_matter(node, tmp_path) -> None:
    node.lives(9, children="523 524")
    node.ends.watch("1.1", {0: 9})
    node.log.write_text(OOM_LINES)
    oom = node.end(0, 1, tmp_path / "none")
    assert oom.pid == 523


def test_a_node_without_a_limit_is_told_with_its_whole_memory(node, tmp_path) -> None:
    node.memory(limit=None, peak=GIB, kills=0)
    node.lives(523, held=40 * GIB)
    node.ends.watch("1.1", {0: 523})
    node.log.write_text(
        "3,1,200000000,-;Out of memory: Killed process 523 (python) "
        "total-vm:1kB, anon-rss:41943040kB, file-rss:0kB, shmem-rss:0kB, UID:0\n"
    )
    oom = node.end(0, -9, tmp_path / "none")
    assert (oom.peak, oom.limit, oom.whole_node) == (40 * GIB, 64 * GIB, True)


def test_the_tightest_limit_on_the_way_up_is_the_one_that_counts(tmp_path) -> None:
    inner = tmp_path / "cgroup" / "slice" / "job"
    inner.mkdir(parents=True)
    (inner / "memory.max").write_text("max\n")
    (inner.parent / "memory.max").write_text(f"{GIB}\n")
    (inner.parent / "memory.current").write_text("17\n")
    (tmp_path / "proc" / "5").mkdir(parents=True)
    (tmp_path / "proc" / "5" / "cgroup").write_text("0::/slice/job\n")
    found = cgroup_of(5, tmp_path / "proc", tmp_path / "cgroup")
    assert found is not None
    assert found.limit() == (GIB, inner.parent)
    assert found.peak(inner.parent) == 17


def test_a_rank_that_moves_to_another_cgroup_is_counted_from_there(node) -> None:
    node.memory(limit=GIB, peak=GIB, kills=5)
    node.lives(9)
    memory = RankMemory(9)
    memory.look(node.proc, node.sys)
    assert memory.killed_since() == 0
    node.memory(limit=GIB, peak=GIB, kills=6)
    assert memory.killed_since() == 1


# GPUs


def test_errors_of_gpus_are_read_with_their_index_and_what_is_none_is_left(tmp_path) -> None:
    log = KernelLog(KERNEL / "gpus.log")
    log.read({"0000:3b:00": 2, "0000:af:00": 5})
    assert [(xid.number, xid.gpu, xid.switch) for xid in log.xids] == [
        (12028, None, True),
        (79, 2, False),
        (31, None, False),
        (94, 5, False),
    ]


def test_a_part_is_told_of_its_own_gpus_errors_since_it_began(tmp_path) -> None:
    path = tmp_path / "log"
    path.write_text((KERNEL / "gpus.log").read_text())
    ends = EndWatch(path)
    ends.know_gpus([(2, "00000000:3B:00.0"), (5, "0000:af:00.0")])
    ends.read_log()
    assert [xid.number for xid in ends.xids((2,), 0.0)] == [12028, 79, 31]
    assert ends.xids((), 0.0) == ()
    assert ends.xids((2,), float("inf")) == ()


def test_a_log_is_followed_line_by_line_and_half_a_line_waits_for_its_end(tmp_path) -> None:
    path = tmp_path / "log"
    path.write_text("NVRM: Xid (PCI:0000:3b:00): 7")
    log = KernelLog(path)
    log.read({})
    assert not log.xids
    with path.open("a") as file:
        file.write("9, GPU has fallen off the bus.\n")
    log.read({})
    log.read({})
    assert [xid.number for xid in log.xids] == [79]


def test_a_log_that_may_not_be_read_says_nothing(tmp_path) -> None:
    log = KernelLog(tmp_path / "none")
    log.read({})
    assert not log.kills


# Last words


def test_a_last_word_passes_no_secret_on(tmp_path) -> None:
    ends, path = EndWatch(tmp_path / "log"), tmp_path / "progress-0.end"
    path.write_text(
        json.dumps({"at": 9.5, "exit": None, "errors": [["HTTPError", "token s3cret-värde refused: s3cret-v"]]})
    )
    ends.ended("1.1", 0, {"code": 1, "at": 10.0, "told_at": None}, path, ("s3cret-värde".encode(),))
    word = ends.ends("1.1")[0].word
    assert word is not None
    assert word.errors == (("HTTPError", "token ************* refused: ********"),)
    assert "s3cret" not in path.read_text()


def test_a_last_word_is_taken_with_the_end_and_nonsense_in_its_place_is_not(tmp_path) -> None:
    ends, path = EndWatch(tmp_path / "log"), tmp_path / "progress-0.end"
    path.write_text(json.dumps({"at": 9.5, "exit": None, "errors": [["ValueError", "x"]]}))
    ends.ended("1.1", 0, {"code": -6, "at": 10.0, "told_at": None}, path)
    assert ends.ends("1.1")[0].word == Word(9.5, None, (("ValueError", "x"),))
    for number, text in enumerate(
        ["", "{", "[]", '{"at": "x", "exit": 1, "errors": []}', '{"at": 1, "exit": 0, "errors": [3]}'], 1
    ):
        path.write_text(text)
        ends.ended("1.1", number, {"code": 1, "at": 10.0, "told_at": None}, path)
        assert ends.ends("1.1")[number].word is None
