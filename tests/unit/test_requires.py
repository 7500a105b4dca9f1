"""`requires:` of a job: what it accepts, and what it says of a node that falls short."""

from __future__ import annotations

import pytest

from orchestrator.health.facts import Interpreter, NodeFacts
from orchestrator.health.requires import COMPONENTS, RequiresError, parse, shortfall, unmet

NODE = {"torch": "2.11.0+cu130", "cuda": "12.8.90", "cudnn": "91002", "nccl": "2.28.9", "driver": "550.54"}

MET = [("torch", ">=2.8"), ("torch", "2.11"), ("torch", ">=2.8,<3"), ("torch", "==2.11.0"), ("cuda", "12.8"), ("cudnn", ">=9"),
       ("cudnn", "9.10"), ("nccl", ">=2.27"), ("nccl", "~=2.28.3"), ("driver", ">=550"), ("driver", "!=550.40")]  # fmt: skip


@pytest.mark.parametrize(("component", "asked"), MET)
def test_a_version_that_fits_is_met(component: str, asked: str) -> None:
    assert unmet(parse({component: asked}), NODE) == []


UNMET = {
    ("driver", ">=570"): ["driver 550.54 is older than 570"],
    ("driver", ">550.54"): ["driver 550.54 is not newer than 550.54"],
    ("cuda", "13.0"): ["cuda 12.8.90 is not 13.0"],
    ("torch", "<2.11"): ["torch 2.11.0+cu130 is not older than 2.11"],
    ("torch", "<=2.10"): ["torch 2.11.0+cu130 is newer than 2.10"],
    ("nccl", "!=2.28.9"): ["nccl 2.28.9 is the version that is ruled out (!=2.28.9)"],
    ("nccl", "~=2.29.1"): ["nccl 2.28.9 does not go with 2.29.1 (~=2.29.1)"],
    ("nccl", "<2.28,!=2.28.9"): [
        "nccl 2.28.9 is the version that is ruled out (!=2.28.9)",
        "nccl 2.28.9 is not older than 2.28",
    ],
}


@pytest.mark.parametrize("case", UNMET)
def test_a_version_that_does_not_fit_is_told_with_numbers(case: tuple[str, str]) -> None:
    assert unmet(parse(dict([case])), NODE) == UNMET[case]


def test_what_is_not_there_or_cannot_be_compared_is_told() -> None:
    asked = parse({"torch": ">=2.8", "driver": ">=570"})
    assert unmet(asked, {"driver": "unknown"}) == [
        "torch is not there, >=2.8 is asked for",
        "driver 'unknown' is no version that could be compared with >=570",
    ]


@pytest.mark.parametrize("text", ["", ">=", "new", "=> 2.8", ">=2.8 or <1", "2.8.x", ","])
def test_what_is_no_condition_is_refused_in_a_sentence(text: str) -> None:
    with pytest.raises(RequiresError, match=r"^torch: '.*' is no version condition; write 12\.8, >=2\.8"):
        parse({"torch": text})


def test_only_known_components_can_be_required() -> None:
    with pytest.raises(RequiresError, match="python is nothing that can be required; possible are torch, cuda"):
        parse({"python": ">=3.11"})
    assert [one.component for one in parse(dict.fromkeys(COMPONENTS, ">=1"))] == list(COMPONENTS)


HOST = NodeFacts("a", driver="550.54")
BRINGS = Interpreter("/p", torch="2.11.0", cuda="13.0", nccl="2.28.9", nccl_loaded="2.27.5")


def test_a_node_is_known_to_fail_before_all_of_it_is_known() -> None:
    asked = parse({"driver": ">=570", "torch": ">=2"})
    assert shortfall(asked, HOST, None) == (["driver 550.54 is older than 570"], True)
    assert shortfall(asked, None, BRINGS) == ([], True)
    assert shortfall(asked, HOST, BRINGS) == (["driver 550.54 is older than 570"], False)
    assert shortfall(parse({"torch": ">=2"}), None, BRINGS) == ([], False)


def test_an_interpreter_that_is_missing_fails_whatever_is_asked() -> None:
    missing = Interpreter("/venv/bin/python", problem="is not there")
    assert shortfall(parse({"driver": ">=550"}), HOST, missing) == (["/venv/bin/python is not there"], False)


def test_nccl_is_held_against_the_library_that_is_loaded() -> None:
    assert shortfall(parse({"nccl": ">=2.28"}), HOST, BRINGS) == (["nccl 2.27.5 is older than 2.28"], False)
