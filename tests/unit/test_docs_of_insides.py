"""The pages on the database and the protocols name every table, column and call that there is."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from orchestrator.control.api import Api
from orchestrator.control.backend import Agent
from orchestrator.history.schema import METADATA

DOCS = Path(__file__).resolve().parents[2] / "docs"
PROTOCOLS = (DOCS / "protocols.md").read_text()
ROWS = {
    row[1]: row[0]
    for row in re.findall(r"(?m)^(\| `(\w+)` \|.*)$", (DOCS / "history.md").read_text().partition("## What")[0])
}
SUMS = "the sums of `run_sums`"


@pytest.mark.parametrize("table", METADATA.sorted_tables, ids=lambda table: table.name)
def test_every_column_is_in_the_row_of_its_table(table: Any) -> None:
    told = ROWS[table.name] + (ROWS["run_sums"] if SUMS in ROWS[table.name] else "")
    assert not [column.name for column in table.columns if f"`{column.name}`" not in told]


def test_every_route_of_the_api_has_its_row() -> None:
    nothing: Any = None
    router = Api(nothing, nothing, str, dict, nothing).app().router
    routes = {(route.method, str(route.resource and route.resource.canonical)) for route in router.routes()}
    # A GET brings a HEAD with it, which needs no row of its own.
    asked = {(way, path) for way, path in routes if way != "HEAD" or ("GET", path) not in routes}
    written = {f"{way} {path.replace('{ref}', 'REF').replace('{sha}', 'SHA256')}" for way, path in asked}
    told = set(re.findall(r"`((?:GET|HEAD|PUT|POST) /[\w/]+)", PROTOCOLS.partition("## Agent and launcher")[0]))
    assert told == written


def test_every_call_to_an_agent_is_told() -> None:
    calls = [name for name in vars(Agent) if not name.startswith("_")]
    told = PROTOCOLS.partition("## Controller and agent")[2]
    assert not [name for name in calls if f"`{name}(" not in told]
