"""Where the configuration is written down, and the text of each key there: flags, variables, and files with their mistakes."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator import document
from orchestrator.config_keys import GROUPS, KEYS, Place, variable
from orchestrator.document import Complaint, Contents, DocumentError, KeyPath, Mark, dotted, nearest, shown
from orchestrator.policy_text import read_teams

MAX_BYTES = 1024 * 1024
"""A cluster.yaml may list many nodes."""


@dataclass(frozen=True)
class Setting:
    """One key's text, in one of the places where it can be set."""

    text: str
    key: str
    """What the key is called there: `metadata.orch.lease`."""
    origin: str
    mark: Mark
    place: Place


def from_flags(flags: Mapping[str, str | None], here: Place) -> dict[str, Setting]:
    given = {name: text for name, text in flags.items() if text is not None}
    option = {name: "--" + name.replace("_", "-").replace(".", "-") for name in given}
    return {name: Setting(text, name, option[name], Mark(option[name]), here) for name, text in given.items()}


def from_variables(environ: Mapping[str, str], here: Place) -> dict[str, Setting]:
    given = {name: variable(name) for name in KEYS if environ.get(variable(name))}
    return {name: Setting(environ[var], name, var, Mark(var), here) for name, var in given.items()}


def find_files(environ: Mapping[str, str], here: Place) -> list[tuple[Path, KeyPath]]:
    """The files that hold, the strongest first, and where orch's part in them is."""
    named = environ.get("ORCH_CONFIG")
    cluster = here.path(named) if named else here.folder / "cluster.yaml"
    user = Path(environ.get("XDG_CONFIG_HOME") or here.user_home / ".config") / "orch" / "config.yaml"
    found: list[tuple[Path, KeyPath]] = [(cluster, ("metadata", "orch"))] if named or _exists(cluster) else []
    return [*found, (user, ())] if _exists(user) else found


def _exists(file: Path) -> bool:
    try:
        return file.exists()
    except OSError:
        return True  # reading it will say what is the matter


def from_file(file: Path, inside: KeyPath, here: Place) -> tuple[dict[str, Setting], list[Complaint]]:
    source = file.name if file.parent == here.folder else str(file)
    try:
        node = document.parse(document.read_text(file, MAX_BYTES), source, MAX_BYTES)
        found = _orch_part(node, inside)
    except DocumentError as error:
        return {}, list(error.complaints)
    place = Place(file.parent, here.user_home)
    settings: dict[str, Setting] = {}
    for path, value in _leaves(found, inside):
        name = dotted(path[len(inside) :])
        if name == "teams" and read_teams(found, path, value) is None:
            continue
        if (text := _text_of(name, value, file)) is not None:
            mark = found.mark(path)
            settings[name] = Setting(text, dotted(path), f"{source}:{mark.line}", mark, place)
        else:
            found.complain(path, *_refusal(name, value), at=found.mark(path, key=name not in KEYS))
    return settings, found.complaints


def _text_of(name: str, value: Any, file: Path) -> str | None:
    """The text of a key's value; None where the key or the kind of its value is not known."""
    if name == "fabric" and isinstance(value, list) and all(isinstance(one, str) for one in value):
        return os.pathsep.join(value)
    if name == "teams":
        return json.dumps(value)
    if name == "hardware" and isinstance(value, dict):
        return str(file)  # what is in it is read by the readers of hardware files
    if name == "prices" and isinstance(value, dict) and all(isinstance(one, str) for one in value.values()):
        return ",".join(f"{model}={price}" for model, price in value.items())
    return value if name in KEYS and name != "hardware" and isinstance(value, str) else None


def _orch_part(node: document.Node | None, inside: KeyPath) -> Contents:
    """What a file says under `inside`; nothing, where it has no such part."""
    for depth, key in enumerate(inside):
        if node is None or _null(node):
            return Contents(data={})
        entries = _mapping(node, inside[:depth]).entries
        # The last of equal keys, as Ray reads it.
        named = [value for name, value in entries if isinstance(name, document.Scalar) and name.text == key]
        node = named[-1] if named else None
    if node is None or _null(node):
        return Contents(data={})
    found = document.contents(_mapping(node, inside), inside)
    return found if isinstance(found.data, dict) else Contents(data={}, complaints=found.complaints)


def _null(node: document.Node) -> bool:
    return isinstance(node, document.Scalar) and node.null


def _mapping(node: document.Node, path: KeyPath) -> document.Mapping:
    if isinstance(node, document.Mapping):
        return node
    raise DocumentError([Complaint(node.mark, dotted(path), node.problem or "must hold keys and values")])


def _leaves(found: Contents, inside: KeyPath) -> list[tuple[KeyPath, Any]]:
    """Every key's path and value; `local: {slots: 4}` is `local.slots`."""
    leaves: list[tuple[KeyPath, Any]] = []
    for key, value in found.data.items():
        if key in GROUPS and isinstance(value, dict):
            leaves += [((*inside, key, inner), below) for inner, below in value.items()]
        else:
            leaves.append(((*inside, key), value))
    return leaves


def _refusal(name: str, value: Any) -> tuple[str, str]:
    if name in KEYS:
        return f"must be one value, not {shown(value)}", ""
    if name in GROUPS:
        return f"must hold keys and values, not {shown(value)}", ""
    return "unknown key", nearest(name, KEYS)
