"""Which orch speaks with which: by the shape of what they say to each other."""

from __future__ import annotations

import asyncio
import logging
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import orchestrator
from orchestrator.control.backend import AgentGone
from orchestrator.control.code_version import speaks_with, this_code
from orchestrator.control.home import node_folder

CHANGED = """
from orchestrator.health import evidence
{change}
from orchestrator.control.code_version import this_code
print(this_code())
"""
FIELD = "evidence.RankEnd.__dataclass_fields__['code'].type = 'str'"


def said(change: str) -> str:
    """What a process says of itself in which the code was changed so."""
    done = subprocess.run(
        [sys.executable, "-c", CHANGED.format(change=change)], capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def test_the_same_code_speaks_with_itself_in_another_process() -> None:
    assert said("") == this_code()
    assert this_code().startswith(f"{orchestrator.__version__}-")


def test_a_field_more_deep_in_a_report_is_another_protocol_and_another_version_number_alone_is_not() -> None:
    assert not speaks_with(said(FIELD))
    assert speaks_with(said("import orchestrator; orchestrator.__version__ = '9.9'"))


def test_an_agent_that_does_not_understand_its_controller_touches_nothing_and_says_what_to_do(tmp_path: Path) -> None:
    from orchestrator.control.ray_agent import AgentActor

    folders, root = (str(tmp_path / "home"), str(tmp_path / "storage")), logging.getLogger()
    handlers, level = root.handlers[:], root.level
    try:
        agent = AgentActor("orch-version-test", "a", "127.0.0.1", *folders, "9.9-ffffffff")
    finally:
        root.handlers[:], root.level = handlers, level
        shutil.rmtree(node_folder("orch-version-test"))
    with pytest.raises(AgentGone, match=r"is installed there, and the controller is of 9\.9-ffffffff: .*`orch up`"):
        asyncio.run(agent.sync(1, 0, 30, 0))
