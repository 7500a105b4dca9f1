"""The versions that history keeps: in a line, and as a block that the job file's own parser takes."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from orchestrator.health.facts import Interpreter, NodeFacts
from orchestrator.health.recorded import in_words, lock, pinned, record
from orchestrator.health.requires import parse, shortfall
from orchestrator.jobfile import parse_job

OWN = Interpreter("/venv/bin/python", "3.12.3", "2.11.0+cu130", "13.0", "9.19.0", "2.28.9", "2.28.9")


def host(node: str, driver: str | None = "580.159.04") -> NodeFacts:
    return NodeFacts(node, driver=driver, gpus=("NVIDIA H100",) * 8, container="none")


def kept(*nodes: tuple[NodeFacts, Interpreter]):
    return record(facts.with_interpreter(brings) for facts, brings in nodes)


def test_nodes_that_agree_are_one_line() -> None:
    line = "torch 2.11.0+cu130, CUDA 13.0, cuDNN 9.19.0, NCCL 2.28.9, driver 580.159.04, python 3.12.3, 8 NVIDIA H100"
    assert in_words(kept((host("a"), OWN), (host("b"), OWN))) == [(line, ["a", "b"])]


def test_the_nccl_that_is_kept_is_the_one_that_was_loaded() -> None:
    other = Interpreter("/p", nccl="2.28.9", nccl_loaded="2.27.5")
    assert kept((host("a"), other))["a"]["nccl"] == "2.27.5"


def test_what_differs_is_not_pinned_and_said() -> None:
    environment = kept((host("a"), OWN), (host("b", "570.1"), OWN))
    assert sorted(nodes for _, nodes in in_words(environment)) == [["a"], ["b"]]
    assert "driver" not in pinned(environment)
    assert "  # driver differed: ==570.1 on b; ==580.159.04 on a\n" in lock(environment)
    assert parse_job("run: t.py\n" + lock(environment), "job.yaml").requires == pinned(environment)


def test_what_is_not_there_is_not_pinned() -> None:
    assert pinned(kept((NodeFacts("cpu"), Interpreter("/p", "3.12.3", "2.13.0+cpu")))) == {"torch": "==2.13.0"}
    assert pinned(kept((NodeFacts("cpu"), Interpreter("/p", problem="is not there")))) == {}


NUMBERS = st.lists(st.integers(0, 999), min_size=2, max_size=4).map(lambda parts: ".".join(map(str, parts)))
BUILDS = st.sampled_from(["", "+cu130", "+cpu", "a0+34c6371d24.nv25.8", ".dev20260101+cu130", "rc1"])


@given(NUMBERS, BUILDS, NUMBERS, NUMBERS, NUMBERS, NUMBERS)
def test_a_block_that_was_pinned_is_read_back_and_met_by_its_own_nodes(
    torch: str, build: str, cuda: str, cudnn: str, nccl: str, driver: str
) -> None:
    brings = Interpreter("/p", "3.12.3", torch + build, cuda, cudnn, nccl, nccl)
    facts = host("a", driver)
    environment = kept((facts, brings))
    read = parse_job("run: t.py\n" + lock(environment), "job.yaml").requires
    assert read == pinned(environment)
    assert len(read) == 5
    assert shortfall(parse(read), facts, brings) == ([], False)
