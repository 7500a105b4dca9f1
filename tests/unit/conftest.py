"""This process as one of a run that orch has started, or of none: what scripts find around them."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from orchestrator.checkpoint import folder as folders


@pytest.fixture
def outside_orch(monkeypatch: pytest.MonkeyPatch) -> None:
    """This process is none of a run."""
    for name in ("ORCH_RUN", "ORCH_ATTEMPT", "ORCH_CHECKPOINT_DIR"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def as_attempt(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """From now on this process is that attempt of that run."""

    def become(attempt: int, run: int = 42) -> None:
        monkeypatch.setenv("ORCH_RUN", str(run))
        monkeypatch.setenv("ORCH_ATTEMPT", str(attempt))
        monkeypatch.setattr(folders, "_claimed", {})

    return become
