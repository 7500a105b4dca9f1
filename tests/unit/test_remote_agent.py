"""The controller's side of an agent: what it hears when a call fails."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import RayTaskError

from orchestrator.control.backend import StartFailed
from orchestrator.control.ray_agent import RemoteAgent


def test_an_agents_refusal_comes_as_its_sentence_and_not_as_its_traceback() -> None:
    refusal = StartFailed("rank 0: python: /nope is not the absolute path of a program that may be run")
    told = RayTaskError("start", "Traceback (most recent call last): ...", refusal).as_instanceof_cause()

    async def start(*_: Any) -> None:
        raise told

    agent = RemoteAgent(SimpleNamespace(start=SimpleNamespace(remote=start)))
    with pytest.raises(StartFailed) as heard:
        asyncio.run(agent.start(1, None))  # type: ignore[arg-type]
    assert str(heard.value) == str(refusal)
