"""What a user asks for: JobSpec, checked when made, and the small values in it."""

from __future__ import annotations

import re
import shlex
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

NAME = re.compile(r"^[a-z0-9][a-z0-9-]{0,62}$")


class Value(BaseModel):
    """A frozen value that refuses keys it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Workers(Value):
    """How many ranks, and in what shape: `2x8` is two nodes of eight, `16` a total whose shape orch picks."""

    total: Annotated[int, Field(ge=1, le=100_000)]
    nodes: int | None = None

    @property
    def per_node(self) -> int | None:
        return None if self.nodes is None else self.total // self.nodes

    @model_validator(mode="after")
    def _whole_nodes(self) -> Self:
        if self.nodes is not None and (self.nodes < 1 or self.total % self.nodes):
            raise ValueError(f"{self.total} workers cannot be spread evenly over {self.nodes} nodes")
        return self

    def __str__(self) -> str:
        return str(self.total) if self.nodes is None else f"{self.nodes}x{self.per_node}"


class JobSpec(Value):
    """One job as its file says it, defaults filled in."""

    name: str
    run: str
    workers: Workers = Workers(total=1)
    device: Literal["auto", "cuda", "cpu"] = "auto"
    backend: Literal["auto", "nccl", "gloo"] = "auto"
    workdir: str = "."
    python: str | None = None
    env: dict[str, str] = {}
    secrets: tuple[str, ...] = ()
    checkpoint: str | None = None
    priority: int = 0
    team: str | None = None
    grace: float = 30.0
    """Seconds between SIGTERM and SIGKILL."""
    tags: dict[str, str] = {}

    @property
    def argv(self) -> list[str]:
        """The script and its arguments, split like a shell would, never given to one."""
        return shlex.split(self.run)
