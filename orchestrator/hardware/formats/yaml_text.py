"""A YAML text as plain values, or a FormatError: bounded in depth and in what aliases may multiply."""

from __future__ import annotations

import re
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from orchestrator.hardware.formats.errors import FormatError

_MOST_DEPTH = 100
# A merge of a list of mappings that merge lists of mappings grows without bound; so does a tag that means the same.
_MERGE = re.compile(r"<<[\"']?\s*:[ ]*(\*)?")
_TAGS = re.compile(r"(?m)^%TAG|!!merge|:merge>")
_INDENT = re.compile(r"[ -]*")


def load(text: str) -> Any:
    """The value of the one document in `text`. Raises FormatError with the line where the YAML is broken."""
    _check_bounds(text)
    try:
        return YAML(typ="safe").load(text)
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise FormatError(
            None if mark is None else mark.line + 1, f"broken YAML: {error.problem or error.context}"
        ) from None
    except (YAMLError, ValueError, TypeError, RecursionError, OverflowError, AttributeError, KeyError) as error:
        # The loader leaves what its constructors raise as it is: dates that do not exist, unhashable keys.
        raise FormatError(
            None, f"broken YAML: {str(error).splitlines()[0][:200] if str(error) else 'unreadable'}"
        ) from None


def strings(value: Any, what: str, text: str) -> list[str]:
    """`value` as a list of strings: a string or number is a list of one, None an empty one. FormatError otherwise."""
    items = value if isinstance(value, list) else [] if value is None else [value]
    for item in items:
        if not isinstance(item, str | int) or isinstance(item, bool):
            raise FormatError(line_of(text, what), f"{what}: names are wanted, not {type(item).__name__}")
    return [str(item) for item in items]


def mapping(value: Any, what: str, text: str) -> dict[str, Any]:
    """`value` as a mapping with string keys; None is an empty one. FormatError otherwise."""
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise FormatError(line_of(text, what), f"{what}: a mapping is wanted, not {type(value).__name__}")
    return {str(key): item for key, item in value.items()}


def line_of(text: str, key: str) -> int | None:
    """The first line that begins with `key`, for a complaint about it."""
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip(" -\"'").startswith(key):
            return number
    return None


def _check_bounds(text: str) -> None:
    """Refuses what would make the loader slow or deep: nesting without end, and merges that multiply."""
    depth = deepest = 0
    for number, line in enumerate(text.split("\n"), start=1):
        indent = _INDENT.match(line)
        dashes = indent[0].count("-") if indent else 0
        depth = max(0, depth + line.count("[") + line.count("{") - line.count("]") - line.count("}"))
        deepest = max(depth + line.count("[") + line.count("{"), dashes)
        if deepest > _MOST_DEPTH * 10 or line.count("? ") > _MOST_DEPTH or depth > _MOST_DEPTH:
            raise FormatError(number, f"it is nested deeper than {_MOST_DEPTH}")
        if len(line) - len(line.lstrip(" ")) > 10 * _MOST_DEPTH and line.strip():
            raise FormatError(number, "it is indented too deeply")
    merges = _MERGE.findall(text)
    if any(not one_alias for one_alias in merges) or len(merges) > 20 or _TAGS.search(text):
        raise FormatError(None, "it merges mappings (<<) other than one at a time, or more than 20 times")
