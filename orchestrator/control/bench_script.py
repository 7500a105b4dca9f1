"""The measuring script as the code of a run: its snapshot."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import AsyncIterator
from functools import cache
from pathlib import Path

import orchestrator.bench
from orchestrator.control.snapshot import Snapshot, take

SCRIPT = Path(orchestrator.bench.__file__).parent / "script" / "collectives.py"


@cache
def snapshot() -> Snapshot:
    """The script alone, taken outside of whatever folder orch is installed in, whose ignore files might leave it out."""
    with tempfile.TemporaryDirectory(prefix="orch-bench-") as folder:
        shutil.copyfile(SCRIPT, Path(folder) / SCRIPT.name)
        return take(Path(folder))


def to_store() -> tuple[str, AsyncIterator[bytes]]:
    """The snapshot as the code store takes it: its hash and its bytes."""
    found = snapshot()

    async def chunks() -> AsyncIterator[bytes]:
        yield found.archive

    return found.sha256, chunks()
