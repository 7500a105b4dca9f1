"""audit: who asked for what, from the file that the controller keeps."""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime

from orchestrator.control.audit import AuditLog


def test_the_audit_log_is_read_without_the_controller_by_time_and_run(orch) -> None:
    orch.home.mkdir(mode=0o700)
    log = AuditLog(orch.home / "audit.log")
    log.write({"user": "ana", "uid": 1000, "call": "POST /api/v1/runs", "run": 41, "said": "train", "status": 201})
    log.write(
        {
            "user": "bob\x1b[2J",
            "uid": 1001,
            "call": "POST /api/v1/runs/42/cancel",
            "run": 42,
            "status": 409,
            "error": "too late",
        }
    )
    old = {"at": datetime.fromtimestamp(time.time() - 10 * 86400, UTC).isoformat(), "call": "long ago"}
    with (orch.home / "audit.log").open("a") as file:
        file.write(json.dumps(old) + "\n")
    rows = [line.split("\t")[1:] for line in orch("audit").stdout.splitlines()]
    assert rows == [
        ["ana", "1000", "POST /api/v1/runs", "41", "201", "train"],
        ["bob", "1001", "POST /api/v1/runs/42/cancel", "42", "409", "too late"],
    ]
    (one,) = json.loads(orch("audit", "--run", "42", "--json").stdout)
    assert one["uid"] == 1001
    assert orch("audit", "--since", "30d", "-o", "name").stdout.splitlines()[-1] == "long ago"


def test_where_nothing_was_asked_yet_the_list_is_empty(orch) -> None:
    assert (orch("audit").stdout, orch("audit", "--json").stdout) == ("", "[]\n")
