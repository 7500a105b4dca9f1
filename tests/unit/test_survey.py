"""The agent's memory of interpreters: asked once, one at a time, again when something changed."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Mapping
from pathlib import Path

from orchestrator.control.survey import Survey

FAKE = '#!/bin/sh\necho asked >> {log}\necho \'orch-versions: {{"version": "{version}", "torch": "{torch}"}}\'\n'


def fake_python(path: Path, version: str = "3.12.1", torch: str = "2.11.0") -> str:
    """A program that answers like an interpreter, and leaves a line where it was asked."""
    path.write_text(FAKE.format(log=f"{path}.log", version=version, torch=torch))
    path.chmod(0o755)
    return str(path)


def asked(python: str) -> int:
    log = Path(f"{python}.log")
    return len(log.read_text().splitlines()) if log.exists() else 0


class Scene:
    """A survey, and the moment of its next answer."""

    def __init__(self, env: Mapping[str, str] | None = None) -> None:
        self.changed = asyncio.Event()
        self.survey = Survey(lambda python: (python or sys.executable, env or os.environ), self.changed.set)

    async def knows(self, python: str) -> str | None:
        while python not in self.survey.known:
            await self.changed.wait()
            self.changed.clear()
        return self.survey.known[python].torch


def test_an_interpreter_is_asked_once_however_often_it_is_wanted(tmp_path: Path) -> None:
    async def story() -> None:
        async with asyncio.timeout(30):
            scene, python = Scene(), fake_python(tmp_path / "python")
            for _ in range(3):
                scene.survey.want(python)
            assert await scene.knows(python) == "2.11.0"
            scene.survey.want(python)
            scene.survey.look_again()
            await asyncio.sleep(0)
            assert asked(python) == 1

    asyncio.run(story())


def test_one_that_was_changed_is_asked_again_without_being_wanted(tmp_path: Path) -> None:
    async def story() -> None:
        async with asyncio.timeout(30):
            scene, python = Scene(), fake_python(tmp_path / "python")
            scene.survey.want(python)
            assert await scene.knows(python) == "2.11.0"
            scene.changed.clear()
            fake_python(tmp_path / "python", torch="2.12.0+cu130")
            scene.survey.look_again()
            await scene.changed.wait()
            assert scene.survey.known[python].torch == "2.12.0+cu130"

    asyncio.run(story())


def test_several_are_asked_one_after_the_other(tmp_path: Path) -> None:
    # Each fails where another one is being asked at the same time.
    text = (
        '#!/bin/sh\nmkdir {lock} || exit 1\nsleep 0.05\nrmdir {lock}\necho \'orch-versions: {{"torch": "2.11.0"}}\'\n'
    )

    async def story() -> None:
        async with asyncio.timeout(30):
            scene, pythons = Scene(), [str(tmp_path / f"python{i}") for i in range(4)]
            for python in pythons:
                Path(python).write_text(text.format(lock=tmp_path / "lock"))
                Path(python).chmod(0o755)
                scene.survey.want(python)
            assert [await scene.knows(python) for python in pythons] == ["2.11.0"] * 4

    asyncio.run(story())


def test_a_survey_that_is_closed_leaves_nobody_running(tmp_path: Path) -> None:
    async def story() -> None:
        async with asyncio.timeout(30):
            gate = tmp_path / "started"
            python = tmp_path / "python"
            python.write_text(f"#!/bin/sh\ntouch {gate}\nexec sleep 600\n")
            python.chmod(0o755)
            scene = Scene()
            scene.survey.want(str(python))
            while not gate.exists():
                await asyncio.sleep(0.01)
            scene.survey.close()
            await scene.knows(str(python))
            assert (scene.survey.known[str(python)].problem or "").startswith("was ended by signal 9")

    asyncio.run(story())
