"""Where NCCL's log is read, by what the job is and sets itself."""

from __future__ import annotations

import pytest

from orchestrator.health.reading import reading


@pytest.mark.parametrize(
    ("device", "backend", "ranks", "env", "source", "verdict"),
    [
        ("cuda", "auto", 2, {}, "file", None),
        ("cuda", "nccl", 16, {"NCCL_DEBUG_SUBSYS": "INIT"}, "file", None),
        ("cuda", "auto", 2, {"NCCL_DEBUG": "info"}, "output", None),
        ("cuda", "auto", 2, {"NCCL_DEBUG": "TRACE", "NCCL_DEBUG_FILE": "/dev/stdout"}, "output", None),
        ("cuda", "auto", 2, {"NCCL_DEBUG": "WARN"}, None, "unknown"),
        ("cuda", "auto", 2, {"NCCL_DEBUG": "INFO", "NCCL_DEBUG_FILE": "/tmp/x.%p"}, None, "unknown"),
        ("cuda", "auto", 2, {"NCCL_DEBUG_FILE": "/tmp/x.%p"}, None, "unknown"),
        ("cuda", "auto", 1, {}, None, "not measured"),
        ("cuda", "gloo", 8, {}, None, "not measured"),
        ("cpu", "auto", 8, {}, None, "not measured"),
    ],
)
def test_the_jobs_wish_wins_and_what_cannot_be_read_is_said(
    device: str, backend: str, ranks: int, env: dict[str, str], source: str | None, verdict: str | None
) -> None:
    found = reading(device, backend, ranks, env)
    assert (found.source, found.verdict) == (source, verdict)
    assert (found.to_json() is None) == (source is not None)
    assert bool(found.reason) == (verdict is not None)
    for name in ("NCCL_DEBUG", "NCCL_DEBUG_FILE"):
        if verdict == "unknown" and name in env and found.reason.startswith(f"the job sets {name}="):
            assert env[name] in found.reason
