"""What a job's `requires:` asks of every node, and what a node lacks of it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

from packaging.specifiers import InvalidSpecifier, Specifier, SpecifierSet
from packaging.version import Version

from orchestrator.health.compatibility import version
from orchestrator.health.facts import Interpreter, NodeFacts

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


def component(name: str) -> str:
    """The name, where it is one that can be required. Raises RequiresError."""
    if name not in COMPONENTS:
        raise RequiresError(f"{name} is nothing that can be required; possible are {', '.join(COMPONENTS)}")
    return name


def condition(asked: str) -> SpecifierSet:
    """What is asked of a version. Raises RequiresError."""
    asked_of = asked.strip()
    try:
        found = SpecifierSet(f"=={asked_of}.*" if _BARE.fullmatch(asked_of) else asked_of, prereleases=True)
    except InvalidSpecifier:
        found = SpecifierSet()
    if not len(found):
        raise RequiresError(f"'{asked}' is no version condition; write 12.8, >=2.8 or >=2.8,<3")
    return found


def text(asked: str) -> str:
    """The condition as it was written, where it is one. Raises RequiresError."""
    condition(asked)
    return asked


def _requirement(name: str, asked: str) -> Requirement:
    component(name)
    try:
        return Requirement(name, asked, condition(asked))
    except RequiresError as error:
        raise RequiresError(f"{name}: {error}") from None


def shortfall(
    asked: tuple[Requirement, ...], host: NodeFacts | None, brings: Interpreter | None
) -> tuple[list[str], bool]:
    """What a node is known to lack, a sentence each, and whether more may come: None is what is not known yet."""
    of_host = tuple(one for one in asked if one.component == "driver")
    of_torch = tuple(one for one in asked if one.component != "driver")
    lacks = [] if host is None else unmet(of_host, {"driver": host.driver})
    if brings is not None:
        if brings.problem is not None:
            lacks.append(f"{brings.python} {brings.problem}")
        else:
            lacks += unmet(of_torch, versions_of(brings))
    return lacks, (host is None and bool(of_host)) or brings is None


def versions_of(brings: Interpreter) -> dict[str, str | None]:
    """The versions that requirements are held against; the NCCL that is loaded is what ranks get."""
    nccl = brings.nccl_loaded or brings.nccl
    return {"torch": brings.torch, "cuda": brings.cuda, "cudnn": brings.cudnn, "nccl": nccl}


def unmet(requires: tuple[Requirement, ...], versions: Mapping[str, str | None]) -> list[str]:
    """What a node lacks, a sentence each; none where it meets everything.

    `versions` has the node's own by component, None or absent where the component is not there.
    """
    return [
        sentence for requirement in requires for sentence in _unmet(requirement, versions.get(requirement.component))
    ]


@lru_cache(maxsize=4096)
def _unmet(requirement: Requirement, has: str | None) -> list[str]:
    """Remembered, as a cluster asks the same of each of its nodes each time that it decides."""
    name = requirement.component
    if has is None:
        return [f"{name} is not there, {requirement.asked} is asked for"]
    if (found := version(has)) is None:
        return [f"{name} '{has}' is no version that could be compared with {requirement.asked}"]
    conditions = sorted(requirement.condition, key=str)
    return [_sentence(name, has, asked) for asked in conditions if not _holds(asked, found)]


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
