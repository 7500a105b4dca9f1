"""What orch is built on: no version with a known hole, and an audit that never calls green what it did not see."""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).parents[2]

FLOORS = {
    # Token authentication (CVE-2023-48022) came with 2.52, as did the end of CVE-2025-62593; CVE-2026-27482 was mended in 2.54,
    # CVE-2026-41486 in 2.55, CVE-2026-57516 in 2.56.
    "ray": "2.56",
    "aiohttp": "3.10.11",  # CVE-2024-23334, CVE-2024-30251, CVE-2024-52304 (request smuggling)
    "pyyaml": "5.4",  # CVE-2020-14343
    "torch": "2.6",  # CVE-2025-32434: weights_only=True did not keep code out
}
"""The oldest versions without a known hole that orch would open. pip-audit knows more, where it can ask."""


def locked() -> dict[str, Version]:
    lines = (line.partition("#")[0].strip() for line in (ROOT / "requirements.lock").read_text().splitlines())
    pins = (line.split("==") for line in lines if line)
    return {name: Version(version) for name, version in pins}


@pytest.mark.parametrize("name", FLOORS)
def test_neither_the_lock_nor_pyproject_lets_in_a_version_with_a_known_hole(name: str) -> None:
    assert locked()[name] >= Version(FLOORS[name])
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (required,) = (one for one in map(Requirement, project["dependencies"]) if one.name == name)
    floors = [Version(one.version) for one in required.specifier if one.operator in (">=", "==", "~=")]
    assert max(floors) >= Version(FLOORS[name])


CLEAN = {name: {"name": name, "version": "1", "vulns": []} for name in ("a", "b-c")}
HOLE = {"name": "a", "version": "1", "vulns": [{"id": "CVE-1", "fix_versions": ["2"], "aliases": []}]}
SKIPPED = {"name": "b_c", "skip_reason": "Dependency not found on PyPI and could not be audited: b_c (1)"}


@pytest.mark.parametrize(
    ("dependencies", "rc", "code", "said"),
    [
        ([*CLEAN.values()], 0, 0, "2 packages were looked up"),
        ([HOLE, CLEAN["b-c"]], 1, 1, "a: CVE-1, fixed in 2"),
        ([CLEAN["a"], SKIPPED], 0, 2, "could not audit 1 of 2 packages (b-c): Dependency not found"),
        ([{**SKIPPED, "name": "a"}, SKIPPED], 0, 2, "could not audit 2 of 2"),
        ([HOLE, SKIPPED], 1, 2, "could not audit 1 of 2"),
        ([CLEAN["a"]], 0, 2, "could not audit 1 of 2 packages (b-c): pip-audit left them out"),
        ([], 0, 2, "could not audit 2 of 2"),
        (None, 0, 2, "could not audit requirements.lock: it ended with 0: no network"),
        ("garbage", 1, 2, "could not audit"),
    ],
)
def test_an_audit_that_could_not_look_is_never_green(
    tmp_path: Path, dependencies: Any, rc: int, code: int, said: str
) -> None:
    (tmp_path / "requirements.lock").write_text("# made by hand\na==1\nb-c==1  # a\n")
    tool = tmp_path / "pip-audit"
    told = "" if dependencies is None else json.dumps({"dependencies": dependencies, "fixes": []})
    (tmp_path / "told").write_text(told)
    tool.write_text(f"#!/bin/sh\necho 'no network' >&2\ncat '{tmp_path}/told'\nexit {rc}\n")
    tool.chmod(0o755)
    done = audit(tmp_path / "requirements.lock", tool)
    assert (done.returncode, said in done.stdout + done.stderr) == (code, True), done


def test_an_audit_without_its_tool_is_not_green(tmp_path: Path) -> None:
    (tmp_path / "requirements.lock").write_text("a==1\n")
    done = audit(tmp_path / "requirements.lock", tmp_path / "none")
    assert (done.returncode, "could not audit" in done.stderr) == (2, True)


def audit(lock: Path, tool: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, ROOT / "scripts" / "audit.py", "--lock", lock, "--tool", tool]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_sql_is_never_put_together_from_text_that_somebody_gave() -> None:
    """ruff's S608 looks at every string; this is for the one function that takes SQL."""
    found = [
        f"{path.relative_to(ROOT)}:{number}"
        for folder in ("orchestrator", "cli")
        for path in (ROOT / folder).rglob("*.py")
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if "text(f" in line and "SELECT version_num FROM" not in line
    ]
    assert [place for place in found if "/history/" in place] == []
