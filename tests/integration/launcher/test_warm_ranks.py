"""A warm rank is what a cold one is, observed or not, but for what it cannot hide."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Set
from typing import Any

import pytest
from launched import CPUS, FINGERPRINT, MARK, Node, end

from orchestrator.control.rank_progress import look

TORCH = "torch,torch.distributed,torch._dynamo"


@pytest.fixture(scope="module")
def torch_node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    one = Node(tmp_path_factory.mktemp("torch"))
    assert one.warm()["ok"]
    yield one
    end(one)


@pytest.mark.parametrize(
    "text",
    [
        "def f():\n    return 1 / 0\n\nf()",
        "if True:\n  x = (1,\n",
        "try:\n    {}['a']\nexcept KeyError as e:\n    raise ValueError('b') from e",
        "import sys\nsys.excepthook = lambda *a: print('mine', a[0], a[2].tb_lineno, a[2].tb_next)\n1 / 0",
        "raise KeyboardInterrupt",
        "import sys\nsys.exit('last words')",
        "import atexit\natexit.register(print, 'at exit')\nprint(__file__, __name__)\n",
        "import threading\nthreading.Thread(target=lambda: 1 / 0, name='t').start()",
        "import subprocess, sys\nprint(subprocess.run([sys.executable, '-c', 'print(1)']).returncode)",
    ],
)
def test_a_warm_rank_writes_what_a_cold_one_writes(node: Node, text: str) -> None:
    assert node.warm()["ok"]
    written = []
    for attempt, cold in (("1.1", True), ("1.2", False)):
        rank = node.rank(attempt, text, cold=cold)
        rank["argv"] = [node.script(text)]
        node.call("start", attempt=attempt, lease_s=60, ranks=[rank])
        code = node.event("exit", attempt=attempt)["code"]
        written.append((node.log(attempt), code))
    assert written[0] == written[1]
    assert written[0][0]


COLD, WARM = {"cold": True}, {"cold": False}


def compare(
    node: Node, imports: str, env: dict[str, str], ways: tuple[dict[str, Any], dict[str, Any]] = (COLD, WARM)
) -> dict[str, tuple[Any, Any]]:
    """What differs between the fingerprints of two ways to start a process: a cold and a warm one."""
    folder = node.folder / f"job{len(list(node.folder.iterdir()))}"
    folder.mkdir()
    (folder / "linked.py").symlink_to(FINGERPRINT)
    prints = []
    for number, way in enumerate(ways):
        attempt = f"{folder.name}.{number}"
        out = folder / "out"
        env = {**env, "FINGERPRINT_TO": str(out), "FINGERPRINT_IMPORT": imports, **way.get("env", {})}
        change = {name: value for name, value in way.items() if name != "env"}
        rank = node.rank(
            attempt, "", argv=["./linked.py", "two words", "", "--x=ü"], cwd=str(folder), env=env, **change
        )
        rank["env"]["ORCH_MARK"] = f"{MARK}.fingerprint"
        rank["log"] = str(folder / "log")
        started = node.call("start", attempt=attempt, lease_s=60, ranks=[rank])["ranks"]["0"]
        assert started["warm"] is not way["cold"]
        assert node.event("exit", attempt=attempt)["code"] == 0, (folder / "log").read_text()
        node.event("ended", attempt=attempt)
        prints.append(json.loads(out.read_text()))
    cold_one, warm_one = prints
    assert all(a != b for a, b in zip(cold_one.pop("draws"), warm_one.pop("draws"), strict=False))
    return {name: (cold_one[name], warm_one[name]) for name in cold_one if cold_one[name] != warm_one[name]}


# What a warm rank cannot hide: its modules are there before its script asks for them, and the interpreter's first
# script was another.
EXPECTED = {"modules_at_start", "gc_frozen", "stack"}


def but_for_threads(found: dict[str, tuple[Any, Any]]) -> Set[str]:
    """What differs besides the number of threads: OpenBLAS, which numpy brings, starts its own again when used after a fork."""
    cold, warm = found.pop("kernel", ({}, {}))
    assert {name for name in cold if cold[name] != warm[name]} <= {"Threads"}
    return found.keys()


@pytest.mark.parametrize("env", [{}, {"TZ": "Asia/Tokyo", "OMP_NUM_THREADS": "1", "PWD": "/x"}], ids=["plain", "env"])
def test_a_warm_rank_is_what_a_cold_one_is(node: Node, env: dict[str, str]) -> None:
    assert node.warm()["ok"]
    assert compare(node, "json", env).keys() <= EXPECTED | {"loaded"}


@pytest.mark.torch
@pytest.mark.parametrize("threads", [None, "1", str(len(os.sched_getaffinity(0)))])
def test_a_warm_rank_with_torch_is_what_a_cold_one_is(torch_node: Node, threads: str | None) -> None:
    found = compare(torch_node, TORCH, {"OMP_NUM_THREADS": threads} if threads else {})
    assert but_for_threads(found) <= EXPECTED


@pytest.mark.torch
def test_a_warm_rank_with_torch_on_some_cpus_is_what_a_cold_one_is(torch_node: Node) -> None:
    on = {"cpus": [max(CPUS)]}
    found = compare(torch_node, TORCH, {"OMP_NUM_THREADS": "1"}, ({**COLD, **on}, {**WARM, **on}))
    assert but_for_threads(found) <= EXPECTED


@pytest.mark.torch
def test_torch_counts_the_cpus_of_a_rank_that_sets_no_number_of_threads(torch_node: Node) -> None:
    rank = torch_node.rank("c.1", "import torch; print(torch.get_num_threads())", cpus=[max(CPUS)])
    started = torch_node.call("start", attempt="c.1", lease_s=60, ranks=[rank])["ranks"]["0"]
    assert "no OMP_NUM_THREADS" in started["why_cold"]
    torch_node.event("ended", attempt="c.1")
    assert torch_node.log("c.1") == "1\n"


@pytest.mark.torch
def test_a_cold_rank_whose_cudnn_flags_are_set_is_else_what_a_plain_one_is(torch_node: Node) -> None:
    found = compare(torch_node, TORCH, {}, (COLD, {**COLD, "cudnn": {"benchmark": True, "deterministic": None}}))
    plain, flagged = found.pop("torch")
    assert {name for name in plain if plain[name] != flagged[name]} == {"cudnn"}
    assert (plain["cudnn"], flagged["cudnn"]) == ([False, False], [True, False])
    assert found.keys() <= EXPECTED


@pytest.mark.torch
def test_an_observed_warm_rank_is_what_an_observed_cold_one_is(torch_node: Node) -> None:
    found = compare(torch_node, TORCH, {"ORCH_PROGRESS": str(torch_node.folder / "progress")})
    assert but_for_threads(found) <= EXPECTED


@pytest.mark.torch
def test_being_observed_adds_a_finder_that_finds_nothing_and_changes_nothing_else(torch_node: Node) -> None:
    # The file's name is in the environment of both; what is no absolute path of a folder cannot be written.
    seen, unseen = str(torch_node.folder / "seen"), str(torch_node.folder / "no")
    (torch_node.folder / "no").mkdir()
    for way in (COLD, WARM):
        ways = {**way, "env": {"ORCH_PROGRESS": unseen}}, {**way, "env": {"ORCH_PROGRESS": seen}}
        found = compare(torch_node, TORCH, {}, ways)
        plain, observed = found.pop("meta_path")
        assert observed == ["Finder", *plain]
        for name in ("environ", "environ_of_children", "proc_environ"):
            found.pop(name)
        assert found.keys() <= EXPECTED | {"kernel"}
    # A cold rank that is not to be observed is `python -u script` itself.
    found = compare(torch_node, TORCH, {}, (COLD, {**COLD, "env": {"ORCH_PROGRESS": seen}}))
    assert found.keys() <= EXPECTED | {"meta_path", "environ", "environ_order", "environ_of_children", "proc_environ"}


@pytest.mark.torch
@pytest.mark.parametrize("cold", [True, False])
def test_an_error_in_a_dataset_or_a_save_is_shown_as_without_being_observed(torch_node: Node, cold: bool) -> None:
    text = """
import sys, torch
class Broken(torch.utils.data.Dataset):
    def __len__(self): return 4
    def __getitem__(self, index): return 1 / 0
try:
    torch.save({}, "/no/such/folder/x.pt")
except RuntimeError:
    try:
        next(iter(torch.utils.data.DataLoader(Broken())))
    except ZeroDivisionError as error:
        raise ValueError("the data is broken") from error
"""
    written = []
    for number, env in enumerate([{}, {"ORCH_PROGRESS": str(torch_node.folder / f"errors{int(cold)}")}]):
        attempt = f"e{int(cold)}.{number}"
        rank = torch_node.rank(attempt, text, cold=cold, env=env)
        rank["argv"] = [torch_node.script(text)]
        torch_node.call("start", attempt=attempt, lease_s=60, ranks=[rank])
        assert torch_node.event("exit", attempt=attempt)["code"] == 1
        torch_node.event("ended", attempt=attempt)
        written.append(torch_node.log(attempt))
    assert "ValueError: the data is broken" in written[0]
    assert written[0] == written[1]


def test_an_observed_script_without_torch_has_none_and_one_whose_file_cannot_be_made_runs(
    node: Node, way: bool
) -> None:
    text = "import sys; print('torch' in sys.modules, sys.argv[0], __name__)"
    for number, path in enumerate([str(node.folder / "progress"), "/no/such/folder/progress"]):
        started = node.start(f"1.{number}", text, cold=way, env={"ORCH_PROGRESS": path})["0"]
        assert started["warm"] is not way
        assert node.event("exit", attempt=f"1.{number}")["code"] == 0
        node.event("ended", attempt=f"1.{number}")
        assert node.log(f"1.{number}").split() == ["False", f"train_1_{number}_0.py", "__main__"]


def test_an_interpreter_without_orch_has_its_report_all_the_same_and_no_other_package_is_hidden(node: Node) -> None:
    bare = node.folder / "bare"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", bare], check=True)
    text = "import orchestrator; print(getattr(orchestrator, 'MINE', 'not mine')); orchestrator.report(loss=0.5)"
    progress = node.folder / "progress"
    node.start("1.1", text, python=str(bare / "bin" / "python"), env={"ORCH_PROGRESS": str(progress)})
    assert node.event("exit", attempt="1.1")["code"] == 0, node.log("1.1")
    seen = look(progress, 1, 1, 0)
    assert seen is not None
    assert seen.metrics == {"loss": 0.5}
    (node.folder / "orchestrator.py").write_text("MINE = 'mine'\ndef report(**values): pass")
    node.start("1.2", text, python=str(bare / "bin" / "python"), env={"ORCH_PROGRESS": str(progress)})
    assert node.event("exit", attempt="1.2")["code"] == 0, node.log("1.2")
    assert [node.log(attempt) for attempt in ("1.1", "1.2")] == ["not mine\n", "mine\n"]


@pytest.mark.torch
@pytest.mark.parametrize("cold", [True, False])
def test_cudnn_flags_are_set_before_the_script_and_its_own_workspace_stays(torch_node: Node, cold: bool) -> None:
    text = """
import os, resource, sys
flags = sys.modules["torch"].backends.cudnn
print(flags.benchmark, flags.deterministic, os.environ["CUBLAS_WORKSPACE_CONFIG"], getattr(resource, "MINE", False))
1 / 0
"""
    folder = torch_node.folder / f"cudnn{int(cold)}"
    folder.mkdir()
    script = folder / "train.py"
    script.write_text(text)
    if cold:
        (folder / "resource.py").write_text("MINE = True")
    plain = {
        "cudnn": {"benchmark": False, "deterministic": True},
        "cold": cold,
        "argv": ["train.py"],
        "cwd": str(folder),
    }
    for index, (env, workspace) in enumerate([({}, ":4096:8"), ({"CUBLAS_WORKSPACE_CONFIG": ":16:8"}, ":16:8")]):
        attempt = f"d{int(cold)}.{index}"
        rank = torch_node.rank(attempt, "", env=env, **plain)
        started = torch_node.call("start", attempt=attempt, lease_s=60, ranks=[rank])["ranks"]["0"]
        assert started["warm"] is not cold
        assert torch_node.event("exit", attempt=attempt)["code"] == 1
        torch_node.event("ended", attempt=attempt)
        assert torch_node.log(attempt).splitlines()[:3] == [
            f"False True {workspace} {cold}",
            "Traceback (most recent call last):",
            f'  File "{script}", line 5, in <module>',
        ]


def test_cudnn_flags_without_torch_end_the_rank_with_a_sentence(node: Node) -> None:
    bare = node.folder / "bare"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", bare], check=True)
    node.start("1.1", "print('ran')", python=str(bare / "bin" / "python"), cudnn={"benchmark": True})
    assert node.event("exit", attempt="1.1")["code"] == 1
    assert node.log("1.1") == f"cudnn is to be set, and there is no torch in {bare}/bin/python\n"


@pytest.mark.torch
def test_before_its_first_import_a_warm_rank_with_torch_shows_only_what_the_imports_have_done(torch_node: Node) -> None:
    found = compare(torch_node, "", {})
    of_imports = {"loaded", "torch", "warnings", "multiprocessing", "environ", "environ_order", "environ_of_children"}
    assert found.keys() <= EXPECTED | of_imports
    cold, warm = found["environ"]
    assert set(warm) - set(cold) == {"TORCHINDUCTOR_CACHE_DIR"}


DDP = """
import os, torch, torch.distributed as dist
dist.init_process_group("gloo")
model = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(4, 4))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
model(torch.ones(2, 4)).sum().backward()
optimizer.step()
print("stepped", torch.initial_seed())
"""


@pytest.mark.torch
def test_warm_ddp_ranks_end_cleanly_again_and_again(torch_node: Node) -> None:
    seeds = []
    for round_ in range(10):
        attempt = f"7.{round_}"
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = str(free.getsockname()[1])
        env = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2", "GLOO_SOCKET_IFNAME": "lo"}
        assert all(rank["warm"] for rank in torch_node.start(attempt, DDP, DDP, env=env).values())
        assert [torch_node.event("exit", attempt=attempt, rank=rank)["code"] for rank in (0, 1)] == [0, 0]
        assert torch_node.event("ended", attempt=attempt)["swept"] == 0
        seeds += [torch_node.log(attempt, rank).split()[-1] for rank in (0, 1)]
    assert len(set(seeds)) == 20
