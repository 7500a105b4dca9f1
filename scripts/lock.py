"""Which versions `make` installs: resolves pyproject.toml with pip's own resolver and writes requirements.lock.

    python scripts/lock.py

Run it with the oldest Python that the project supports: what runs there has wheels for the newer ones, which the other
way round is not sure. Versions only, no hashes: torch has one build for each platform and CUDA version, under one
version number, and pip's --require-hashes takes all packages or none.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
import tomllib
from collections import defaultdict
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]

TORCH = "torch==2.13.0"
"""The version that the project's measurements were made with; pyproject.toml allows others."""

TORCH_BUILD = re.compile(r"nvidia-(?!ml-py)|cuda-|triton$")
"""What only some builds of torch need; those builds name the exact versions themselves."""


def wanted() -> dict[str, str]:
    """Every requirement that pyproject.toml names, and the table that names it."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    tables = {
        "orch": project["project"]["dependencies"],
        "orch[postgres]": project["project"]["optional-dependencies"]["postgres"],
        "dev": project["dependency-groups"]["dev"],
        # hatchling wants editables for `pip install -e`, and asks for it only where pip builds in isolation.
        "build": [*project["build-system"]["requires"], "editables"],
    }
    return {requirement: table for table, requirements in tables.items() for requirement in requirements}


def resolve(requirements: list[str]) -> list[dict[str, Any]]:
    """The metadata of every package that pip would install into an empty environment."""
    with tempfile.TemporaryDirectory() as folder:
        asked, report = Path(folder, "requirements.txt"), Path(folder, "report.json")
        asked.write_text("\n".join(requirements))
        command = [sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed", "--only-binary=:all:"]
        subprocess.run([*command, "--quiet", "--report", str(report), "-r", str(asked)], check=True)
        return [package["metadata"] for package in json.loads(report.read_text())["install"]]


def main() -> None:
    named = wanted()
    packages = {canonicalize_name(each["name"]): each for each in resolve([*named, TORCH])}
    because: dict[str, set[str]] = defaultdict(set)
    for requirement, table in named.items():
        because[canonicalize_name(Requirement(requirement).name)].add(table)
    for name, metadata in packages.items():
        for requirement in map(Requirement, metadata.get("requires_dist", [])):
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                because[canonicalize_name(requirement.name)].add(name)

    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    lines = [
        f"# Made by `make lock` (scripts/lock.py, Python {version}); change pyproject.toml, then make it anew.",
        "# Versions without hashes: CONTRIBUTING.md says why. What only a CUDA build of torch needs is left to torch.",
    ]
    for name in sorted(packages):
        if not TORCH_BUILD.match(name):
            # A local version such as 2.13.0+cpu names a build; the lock is for all of them.
            release = packages[name]["version"].partition("+")[0]
            # What only an extra asks for, as much of ray[default], has nobody here.
            lines.append(f"{name}=={release}" + (f"  # {', '.join(sorted(because[name]))}" if because[name] else ""))
    (ROOT / "requirements.lock").write_text("\n".join(lines) + "\n")
    print(f"requirements.lock: {len(lines) - 2} packages")


main()
