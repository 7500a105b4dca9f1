"""A file system that does not answer: noticed, said, and nobody is held up by it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.control import storage
from orchestrator.control.storage import Stalled, StorageWatch, in_time


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    """Set at the end at the latest: what waits for it is a thread."""
    event = threading.Event()
    yield event
    event.set()


def test_what_answers_in_time_is_done_and_what_it_raises_is_raised(tmp_path: Path) -> None:
    asyncio.run(in_time((tmp_path / "made").mkdir, "it"))
    assert (tmp_path / "made").is_dir()
    with pytest.raises(FileExistsError):
        asyncio.run(in_time((tmp_path / "made").mkdir, "it"))


def test_what_does_not_answer_in_time_is_said_to_be_stalled(gate: threading.Event) -> None:
    with pytest.raises(Stalled, match=r"the folder has not answered within 0.01 s: its file system is stalled"):
        asyncio.run(in_time(gate.wait, "the folder", timeout_s=0.01))


def test_a_storage_that_stalls_is_asked_once_and_well_again_when_it_answers(
    gate: threading.Event, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked: list[Path] = []
    answered = threading.Event()

    def statvfs(folder: Path) -> None:
        asked.append(folder)
        gate.wait()
        answered.set()

    monkeypatch.setattr(storage.os, "statvfs", statvfs)
    now = [100.0]
    watch = StorageWatch(tmp_path, lambda: now[0])
    asyncio.run(watch.look())
    assert watch.stalled_s is None
    now[0] += 40
    asyncio.run(watch.look())
    assert (watch.stalled_s, asked) == (40.0, [tmp_path])
    gate.set()
    answered.wait(5)
    for thread in threading.enumerate():
        if thread.name == "storage":
            thread.join(5)
    assert watch.stalled_s is None


def test_a_storage_that_is_not_there_is_not_stalled(tmp_path: Path) -> None:
    watch = StorageWatch(tmp_path / "absent", lambda: 0.0)
    asyncio.run(watch.look())
    for thread in threading.enumerate():
        if thread.name == "storage":
            thread.join(5)
    assert watch.stalled_s is None
