"""The versions that attempts ran with, for `orch show`: in a line, and as the block that pins them."""

from __future__ import annotations

from typing import Any

import click

from cli import output as out
from cli.errors import CONFLICT, Fail


def version_lines(attempt: dict[str, Any]) -> list[str]:
    """One line where all nodes agree, else one for each set of versions, with its nodes."""
    environment = attempt.get("environment")
    if not environment:
        return []
    from orchestrator.hardware.formats.hostlist import compress
    from orchestrator.health.recorded import in_words

    groups = in_words(environment)
    placed = {part["node"] for part in (attempt.get("placement") or {}).get("nodes", ())}
    if len(groups) == 1 and placed <= environment.keys():
        return [groups[0][0]]
    return [f"{text} on {compress(nodes)}" for text, nodes in groups]


def print_lock(run: dict[str, Any], output: str) -> None:
    """The `requires:` block of the latest successful attempt. Raises Fail(7) where none recorded its versions."""
    from orchestrator.health.recorded import lock, pinned

    if output == "name":
        raise click.UsageError("versions are no list of names: -o name has no form for them")
    good = [one for one in run.get("attempts") or () if one.get("outcome") == "succeeded"]
    environment = next((one["environment"] for one in reversed(good) if one.get("environment")), None)
    if environment is None:
        why = "no attempt of it succeeded" if not good else "no attempt that succeeded recorded its versions"
        raise Fail(f"run {run['id']} ({run['name']}) has nothing to pin: {why}", CONFLICT)
    if not pinned(environment):
        raise Fail(f"run {run['id']} ({run['name']}) has nothing to pin: its nodes had no version in common", CONFLICT)
    if output in ("json", "jsonl"):
        out.print_json({"requires": pinned(environment)})
    else:
        click.echo("\n".join(map(out.clean, lock(environment).split("\n"))), nl=False)
