"""What a job's `requires:` asks of every node, and what a node lacks of it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from packaging.specifiers import InvalidSpecifier, Specifier, SpecifierSet
from packaging.version import Version

from orchestrator.health.compatibility import version

COMPONENTS = ("torch", "cuda", "cudnn", "nccl", "driver")
_BARE = re.compile(r"\d+(\.\d+)*")


class RequiresError(ValueError):
    """A requirement that cannot be understood, in one sentence."""


@dataclass(frozen=True)
class Requirement:
    """One component's condition."""

    component: str
    asked: str
    """As the user wrote it."""
    condition: SpecifierSet


def parse(requires: Mapping[str, str]) -> tuple[Requirement, ...]:
    """The conditions of `{torch: ">=2.8", cuda: "12.8"}`: a bare version means that one and its patches (12.8 takes 12.8.90).

    Raises RequiresError.
    """
    return tuple(_requirement(component, asked) for component, asked in requires.items())


def _requirement(component: str, asked: str) -> Requirement:
    if component not in COMPONENTS:
        raise RequiresError(f"{component} is nothing that can be required; possible are {', '.join(COMPONENTS)}")
    text = asked.strip()
    condition = f"=={text}.*" if _BARE.fullmatch(text) else text
    try:
        found = SpecifierSet(condition, prereleases=True)
    except InvalidSpecifier:
        found = SpecifierSet()
    if not len(found):
        raise RequiresError(f"{component}: '{asked}' is no version condition; write 12.8, >=2.8 or >=2.8,<3")
    return Requirement(component, asked, found)


def unmet(requires: tuple[Requirement, ...], versions: Mapping[str, str | None]) -> list[str]:
    """What a node lacks, a sentence each; none where it meets everything.

    `versions` has the node's own by component, None or absent where the component is not there.
    """
    return [
        sentence for requirement in requires for sentence in _unmet(requirement, versions.get(requirement.component))
    ]


def _unmet(requirement: Requirement, has: str | None) -> list[str]:
    component = requirement.component
    if has is None:
        return [f"{component} is not there, {requirement.asked} is asked for"]
    if (found := version(has)) is None:
        return [f"{component} '{has}' is no version that could be compared with {requirement.asked}"]
    conditions = sorted(requirement.condition, key=str)
    return [_sentence(component, has, asked) for asked in conditions if not _holds(asked, found)]


def _holds(condition: Specifier, found: Version) -> bool:
    # A build's own mark (2.8.0+cu128) says nothing about its age.
    return condition.contains(found.public, prereleases=True)


def _sentence(component: str, has: str, asked: Specifier) -> str:
    bound = asked.version
    match asked.operator:
        case ">=":
            return f"{component} {has} is older than {bound}"
        case ">":
            return f"{component} {has} is not newer than {bound}"
        case "<=":
            return f"{component} {has} is newer than {bound}"
        case "<":
            return f"{component} {has} is not older than {bound}"
        case "!=":
            return f"{component} {has} is the version that is ruled out ({asked})"
        case "~=":
            return f"{component} {has} does not go with {bound} ({asked})"
        case _:
            return f"{component} {has} is not {bound.removesuffix('.*')}"
