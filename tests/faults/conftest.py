"""What the tests of faults share."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from orchestrator.history.store import Store


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path], str]:
    """A function that lays a new database into a folder and gives its URL: to copy one is quicker than to make one."""
    made = tmp_path_factory.mktemp("template") / "orch.db"
    Store.open(f"sqlite:///{made}").close()

    def lay(folder: Path) -> str:
        shutil.copy(made, folder / "orch.db")
        return f"sqlite:///{folder}/orch.db"

    return lay
