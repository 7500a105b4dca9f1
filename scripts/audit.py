"""Whether a package of requirements.lock is known to be vulnerable; fails where that could not be found out.

    python scripts/audit.py [--lock FILE] [--tool PROGRAM]

pip-audit ends with 0, "no known vulnerabilities", where the package index has no vulnerability API and so not one package was
looked up. Here a package that was not looked up counts as what it is: not known. Exit codes: 0 every package was looked up and
none is vulnerable, 1 some are, 2 not every package could be looked up.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]


def locked(lock: Path) -> set[str]:
    """The names of what is in the lock."""
    lines = (line.partition("#")[0].strip() for line in lock.read_text().splitlines())
    return {canonicalize_name(Requirement(line).name) for line in lines if line}


def look_up(tool: str, lock: Path) -> list[dict[str, Any]]:
    """What pip-audit says of each package. Raises ValueError where it says nothing that can be read."""
    command = [
        tool,
        "--requirement",
        str(lock),
        "--no-deps",
        "--disable-pip",
        "--format",
        "json",
        "--progress-spinner",
        "off",
    ]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ValueError(str(error)) from None
    try:
        found = json.loads(done.stdout)["dependencies"]
        assert all(isinstance(one["name"], str) for one in found)
    except (ValueError, KeyError, TypeError, AssertionError):
        last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise ValueError(f"it ended with {done.returncode}: {last}") from None
    return list(found)


def audit(tool: str, lock: Path) -> tuple[int, list[str]]:
    """The exit code, and what is to be said."""
    try:
        found = look_up(tool, lock)
    except ValueError as error:
        return 2, [f"could not audit {lock.name}: {error}"]
    # Without "vulns" it was skipped, whatever the exit code was.
    known = {canonicalize_name(one["name"]): one["vulns"] for one in found if isinstance(one.get("vulns"), list)}
    said = [
        f"{name}: {vulnerability.get('id', '?')}, fixed in {', '.join(vulnerability.get('fix_versions') or []) or 'no version yet'}"
        for name, vulnerabilities in sorted(known.items())
        for vulnerability in vulnerabilities
    ]
    wanted = locked(lock)
    missing = sorted(wanted - known.keys())
    if missing:
        reason = next((one["skip_reason"] for one in found if one.get("skip_reason")), "pip-audit left them out")
        few = ", ".join(missing[:5]) + (", ..." if len(missing) > 5 else "")
        return 2, [*said, f"could not audit {len(missing)} of {len(wanted)} packages ({few}): {reason}"]
    return (1, said) if said else (0, [f"{len(wanted)} packages were looked up; none is known to be vulnerable"])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--lock", type=Path, default=ROOT / "requirements.lock")
    parser.add_argument(
        "--tool", default=shutil.which("pip-audit", path=str(Path(sys.executable).parent)) or "pip-audit"
    )
    options = parser.parse_args()
    code, said = audit(options.tool, options.lock)
    for line in said:
        print(line, file=sys.stderr if code else sys.stdout)
    sys.exit(code)


if __name__ == "__main__":
    main()
