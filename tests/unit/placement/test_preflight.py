"""What is wrong with nodes of a gang beside their like."""

from __future__ import annotations

from dataclasses import replace

from orchestrator.hardware.model import Node
from orchestrator.placement.preflight import compare
from orchestrator.placement.values import Placement
from orchestrator.testing import a_placement
from orchestrator.testing.hardware import node

GANG = a_placement("leaf", a=(0, 1), b=(0, 1), c=(0, 1))


def nodes(**changed: Node) -> dict[str, Node]:
    """Three nodes of two GPUs and two adapters, some of them as given."""
    return {name: changed.get(name) or node(name, gpus=2, nics=2) for name in "abc"}


def problems(found: dict[str, Node], gang: Placement = GANG) -> list[str]:
    return [str(problem) for problem in compare(gang, found)]


def with_state(name: str, state: str) -> Node:
    whole = node(name, gpus=2, nics=2)
    first, second = whole.nics
    return replace(whole, shape=replace(whole.shape, nics=(first, replace(second, state=state))))


def test_nodes_that_are_alike_are_fit() -> None:
    assert problems(nodes()) == []


def test_an_adapter_that_is_down_or_missing_is_named() -> None:
    assert problems(nodes(b=with_state("b", "DOWN"))) == ["b: mlx5_1:1 is DOWN, where all 2 are up on its like"]
    assert problems(nodes(c=node("c", gpus=2, nics=1)))[0].startswith("c: mlx5_1:1 is missing")


def test_of_two_that_differ_the_one_that_lacks_something_is_at_fault() -> None:
    pair = a_placement("leaf", a=(0, 1), b=(0, 1))
    assert problems(nodes(a=with_state("a", "INIT")), pair) == ["a: mlx5_1:1 is INIT, where all 2 are up on its like"]


def test_a_port_that_is_down_everywhere_is_nobodys_fault() -> None:
    assert problems({name: with_state(name, "DOWN") for name in "abc"}) == []


def test_an_adapter_that_only_one_has_is_named() -> None:
    assert problems(nodes(a=node("a", gpus=2, nics=4)))[0].startswith("a: it has mlx5_2:1, mlx5_3:1")


def test_nvlinks_that_are_down_are_told_with_numbers() -> None:
    assert problems(nodes(b=node("b", gpus=2, nics=2, nvlink="NV16"))) == [
        "b: only 16 of the 18 NVLinks that its like have join two of the chosen GPUs"
    ]


def test_other_gpus_may_have_other_adapters() -> None:
    assert problems(nodes(b=node("b", gpus=2, nics=1, model="A100"))) == []


def test_one_node_has_nobody_to_be_compared_with() -> None:
    assert problems(nodes(), a_placement(a=(0, 1))) == []
