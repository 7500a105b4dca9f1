"""A small model, saved and read again: what the tests of checkpoints share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from orchestrator import checkpoint

torch = pytest.importorskip("torch")


def a_model(fill: float) -> Any:
    model = torch.nn.Linear(3, 2)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(fill)
    return model


def value_of(model: Any) -> float:
    values = {value for parameter in model.parameters() for value in parameter.flatten().tolist()}
    assert len(values) == 1, f"garbage: {values}"
    return float(values.pop())


def save(folder: Path, step: int, **more: Any) -> checkpoint.Checkpoint:
    saved = checkpoint.save({"model": a_model(step), "step_was": step}, step=step, dir=folder, **more)
    assert saved is not None
    return saved


def read(folder: Path) -> tuple[int, float] | None:
    """The step that is loaded, and what the model then holds."""
    model = a_model(-1)
    loaded = checkpoint.load({"model": model}, dir=folder)
    if loaded is None:
        assert value_of(model) == -1
        return None
    assert loaded.state["step_was"] == loaded.step
    return loaded.step, value_of(model)
