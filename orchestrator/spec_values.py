"""The values in a job that have a form of their own, such as `2x8`, `leaf~30m` or `off`: how they are written, what they mean."""

from __future__ import annotations

import re
from typing import Annotated, Any, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, model_serializer, model_validator

from orchestrator import checks
from orchestrator.checks import MAX_WORKERS
from orchestrator.document import shown
from orchestrator.units import format_duration, parse_duration


class Value(BaseModel):
    """A frozen value that refuses keys it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


_SHAPE = re.compile(r"([0-9]{1,7})x([0-9]{1,7})")


class Workers(Value):
    """How many ranks, and in what shape: `2x8` is two nodes of eight, `16` a total whose shape orch picks."""

    total: int
    nodes: int | None = None

    @property
    def per_node(self) -> int | None:
        return None if self.nodes is None else self.total // self.nodes

    @model_validator(mode="before")
    @classmethod
    def _from_text(cls, value: Any) -> Any:
        if isinstance(value, str) and (shape := _SHAPE.fullmatch(value)):
            return {"total": int(shape[1]) * int(shape[2]), "nodes": int(shape[1])}
        if isinstance(value, str) and re.fullmatch("[0-9]{1,9}", value):
            return {"total": int(value)}
        if isinstance(value, int) and not isinstance(value, bool):
            return {"total": value}
        if isinstance(value, dict) and isinstance(value.get("total"), int):
            return value
        raise ValueError(f"must be NODESxPER_NODE, such as 2x8, or a total, such as 16, not {shown(value)}")

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if not 1 <= self.total <= MAX_WORKERS:
            raise ValueError(f"must be 1 to {MAX_WORKERS:,} in all, not {self.total:,}")
        if self.nodes is not None and (self.nodes < 1 or self.total % self.nodes):
            raise ValueError(f"{self.total} workers cannot be spread evenly over {self.nodes} nodes")
        return self

    @model_serializer
    def _as_written(self) -> int | str:
        return self.total if self.nodes is None else str(self)

    def __str__(self) -> str:
        return str(self.total) if self.nodes is None else f"{self.nodes}x{self.per_node}"


_NEAR = re.compile(r"(?P<level>[A-Za-z0-9][A-Za-z0-9._/-]{0,62})(?P<required>!)?(~(?P<patience>[0-9a-z.]{2,12}))?")


class Near(Value):
    """How close a gang should be: `leaf` is a wish, `leaf!` a must, `leaf~30m` a must for 30 minutes and a wish then."""

    level: str
    required: bool = False
    patience: float | None = None
    """Seconds that a run waits for the level before it takes what there is."""

    @model_validator(mode="before")
    @classmethod
    def _from_text(cls, value: Any) -> Any:
        if isinstance(value, dict):
            return value
        found = _NEAR.fullmatch(value) if isinstance(value, str) else None
        if found is None:
            raise ValueError(f"must be a level such as leaf, leaf! or leaf~30m, not {shown(value)}")
        if found["required"] and found["patience"]:
            raise ValueError("is either a must (!) or waited for (~), not both")
        patience = parse_duration(found["patience"]) if found["patience"] else None
        return {"level": found["level"], "required": bool(found["required"]), "patience": patience}

    @model_serializer
    def _as_written(self) -> str:
        return str(self)

    def __str__(self) -> str:
        waits = "" if self.patience is None else f"~{format_duration(self.patience)}"
        return self.level + ("!" if self.required else waits)


class Hang(Value):
    """How long a gang may stand still: `10m` between steps, `{after: 10m, first: 1h}` before the first one too, or `off`."""

    off: bool = False
    after: float | None = None
    """Seconds; None: the cluster's default. `first` too."""
    first: float | None = None

    @model_validator(mode="before")
    @classmethod
    def _from_text(cls, value: Any) -> Any:
        if value is False or value == "off":
            return {"off": True}
        if isinstance(value, str):
            return {"after": checks.standstill(value)}
        if isinstance(value, dict) and value and value.keys() <= {"after", "first", "off"}:
            return {key: given if key == "off" else checks.standstill(given) for key, given in value.items()}
        raise ValueError(f"must be a duration such as 10m, {{after: 10m, first: 1h}}, or off, not {shown(value)}")

    @model_serializer
    def _as_written(self) -> str | dict[str, str]:
        if self.off:
            return "off"
        given = {
            name: format_duration(value) for name in ("after", "first") if (value := getattr(self, name)) is not None
        }
        return given["after"] if given.keys() == {"after"} else given


class Cudnn(Value):
    """Switches of torch.backends.cudnn; one that is not given stays as torch has it."""

    benchmark: bool | None = None
    deterministic: bool | None = None


Count = Annotated[int, BeforeValidator(checks.whole), AfterValidator(checks.count)]


class Retry(Value):
    """How many attempts may follow one that broke, by cause (scheduling/retry.py)."""

    infra: Count = 10
    """For faults of the cluster, within 24 hours."""
    user: Count = 0
    """For errors of the script, since somebody last asked for an attempt."""

    @model_validator(mode="before")
    @classmethod
    def _by_cause(cls, value: Any) -> Any:
        if isinstance(value, dict | cls):
            return value
        raise ValueError(f"must say for which cause, such as {{infra: 10, user: 0}}, not {shown(value)}")
