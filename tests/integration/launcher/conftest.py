"""A launcher of the test's own, and ranks that start cold or from a zygote."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from launched import Node, end


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    one = Node(tmp_path, "--preload", "json", "--idle", "60")
    yield one
    end(one)


@pytest.fixture(params=["cold", "warm"])
def way(request: pytest.FixtureRequest, node: Node) -> bool:
    """Whether ranks are to be cold; where not, the zygote is ready."""
    if request.param == "warm":
        assert node.warm()["ok"]
    return bool(request.param == "cold")
