"""`orch up` before it touches Ray: whether a head is dead, and what is said of one that orch cannot start."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestrator.config import load_config
from orchestrator.control.cluster import HUNG_S, _is_lost, up
from orchestrator.control.cluster_error import ClusterError
from orchestrator.control.home import ClusterNote, Home
from orchestrator.control.private_head import ray_env


@pytest.fixture
def listening() -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"127.0.0.1:{server.getsockname()[1]}"


@pytest.fixture
def silent() -> str:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return f"127.0.0.1:{server.getsockname()[1]}"


def note(address: str) -> ClusterNote:
    return ClusterNote("orch-1", address, "sqlite:////orch.db", "/s", 30.0, 1, 1)


def health(**cluster: Any) -> dict[str, Any]:
    return {"ok": True, "url": "u", "cluster": {"state": "lost", **cluster} if cluster else {"state": "up"}}


def test_a_head_is_dead_where_nothing_listens_whatever_the_controller_says(silent: str) -> None:
    assert _is_lost(note(silent), health())
    assert _is_lost(note(silent), None)


def test_a_head_that_is_silent_is_ended_only_after_a_while(listening: str) -> None:
    assert not _is_lost(note(listening), health(for_s=HUNG_S - 1))
    assert _is_lost(note(listening), health(for_s=HUNG_S))
    assert not _is_lost(note(listening), health())
    assert not _is_lost(note(listening), None)
    assert not _is_lost(None, None)


def refusal(tmp_path: Path, **variables: str) -> ClusterError:
    config = load_config({"HOME": str(tmp_path), "ORCH_HOME": str(tmp_path / "o"), **variables}, tmp_path, {})
    with pytest.raises(ClusterError) as raised:
        up(Home(config.home), config, {}, lambda step: pytest.fail(f"it went on to {step}"))
    return raised.value


def test_a_head_of_others_that_does_not_answer_is_said_at_once_with_what_to_do(silent: str, tmp_path: Path) -> None:
    error = refusal(tmp_path, ORCH_ADDRESS=silent)
    assert error.code == 6
    assert str(error).startswith(f"no Ray head answers at {silent}: start it there (`ray start --head --port=")


def test_the_storage_of_a_head_of_others_is_not_for_orch_to_choose(listening: str, tmp_path: Path) -> None:
    error = refusal(tmp_path, ORCH_ADDRESS=listening, ORCH_HEAD_STORAGE="rocksdb")
    assert error.code == 2
    assert "RAY_gcs_storage_path" in str(error)


def test_a_private_head_keeps_its_state_in_the_home_where_that_is_configured(tmp_path: Path) -> None:
    home = Home(tmp_path)
    home.make()
    kept = ray_env(home, {}, local=True, head_storage="rocksdb")
    assert (kept["RAY_gcs_storage"], kept["RAY_gcs_storage_path"]) == ("rocksdb", str(tmp_path / "head"))
    assert not any("gcs_storage" in name for name in ray_env(home, {}, local=True))
