"""What type each key of a job has: how its value is checked (checks.py), and what the JSON schema says of it."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, WithJsonSchema

from orchestrator import array as arrays
from orchestrator import checks
from orchestrator.checks import LABEL, MAX_WORKERS, NAME, SET_BY_ORCH, VARIABLE
from orchestrator.health import requires as required
from orchestrator.spec_values import Cudnn, Hang, Near, Retry, Workers
from orchestrator.units import DURATION_PATTERN


def _one_or_several(value: Any) -> Any:
    return (value,) if isinstance(value, str) else value


def _one_or_up_to(most: int) -> dict[str, Any]:
    return {"type": ["string", "array"], "items": {"type": "string"}, "maxItems": most}


Device = Literal["auto", "cuda", "cpu"]
Backend = Literal["auto", "nccl", "gloo"]
SCALAR = {"type": ["string", "number", "boolean"]}
"""In a file, a number or a boolean where text is meant is taken as it is written."""

_DURATION = {"type": "string", "pattern": DURATION_PATTERN}
_VARIABLE = {"type": "string", "pattern": f"^(?!ORCH_|RAY_|({'|'.join(sorted(SET_BY_ORCH))})$){VARIABLE.pattern[1:]}"}

Label = Annotated[str, AfterValidator(checks.label)]
Variable = Annotated[str, AfterValidator(checks.variable), WithJsonSchema(_VARIABLE)]
EnvValue = Annotated[str, BeforeValidator(checks.env_text), AfterValidator(checks.env_value)]
TagValue = Annotated[str, BeforeValidator(checks.env_text), AfterValidator(checks.tag_value)]
Env = Annotated[
    dict[Variable, EnvValue],
    WithJsonSchema({"type": "object", "propertyNames": _VARIABLE, "additionalProperties": SCALAR}),
]
Tags = Annotated[
    dict[Label, TagValue],
    Field(max_length=checks.MAX_TAGS),
    WithJsonSchema(
        {
            "type": "object",
            "propertyNames": {"pattern": LABEL.pattern},
            "additionalProperties": SCALAR,
            "maxProperties": checks.MAX_TAGS,
        }
    ),
]
Pattern = Annotated[str, AfterValidator(checks.pattern)]
Patterns = Annotated[
    dict[Annotated[str, AfterValidator(checks.metric)], Pattern],
    Field(max_length=checks.MAX_METRICS),
    WithJsonSchema(
        {
            "type": "object",
            "propertyNames": {"pattern": checks.METRIC.pattern},
            "additionalProperties": {"type": "string", "minLength": 1},
            "maxProperties": checks.MAX_METRICS,
        }
    ),
]
Name = Annotated[
    str, AfterValidator(checks.check_name), WithJsonSchema({"type": ["string", "integer"], "pattern": NAME.pattern})
]
Team = Annotated[Label | None, WithJsonSchema({"type": ["string", "integer"], "pattern": LABEL.pattern})]
Interpreter = Annotated[str, AfterValidator(checks.interpreter)]
Python = Annotated[Interpreter | None, WithJsonSchema({"type": "string", "pattern": "^/"})]
CheckpointFolder = Annotated[str, AfterValidator(checks.checkpoint)]
Checkpoint = Annotated[CheckpointFolder | None, WithJsonSchema({"type": "string", "minLength": 1})]
Grace = Annotated[
    float,
    BeforeValidator(checks.seconds),
    AfterValidator(checks.grace),
    WithJsonSchema(_DURATION | {"default": "30s"}),
]
HangLimits = Annotated[
    Hang | None,
    WithJsonSchema(
        {
            "anyOf": [
                {"enum": ["off", False]},
                _DURATION,
                {
                    "type": "object",
                    "properties": {"after": _DURATION, "first": _DURATION},
                    "additionalProperties": False,
                    "minProperties": 1,
                },
            ]
        }
    ),
]
Priority = Annotated[
    int,
    BeforeValidator(checks.whole),
    AfterValidator(checks.priority),
    WithJsonSchema({"type": "integer", "minimum": -1000, "maximum": 1000}),
]
TimeLimit = Annotated[
    Annotated[float, BeforeValidator(checks.seconds)] | None,
    AfterValidator(checks.time_limit),
    WithJsonSchema(_DURATION),
]
After = Annotated[
    tuple[Annotated[int | str, BeforeValidator(arrays.dependency)], ...],
    BeforeValidator(lambda value: (value,) if isinstance(value, str | int) else value),
    Field(max_length=checks.MAX_TAGS),
    WithJsonSchema({"type": ["array", "integer", "string"], "items": {"type": ["integer", "string"]}}),
]
ArrayOf = Annotated[
    dict[Annotated[str, AfterValidator(arrays.key)], Annotated[tuple[str, ...], BeforeValidator(arrays.values)]] | None,
    WithJsonSchema(
        {
            "type": "object",
            "propertyNames": {"pattern": "^[A-Za-z_][A-Za-z0-9_]*$"},
            "additionalProperties": {
                "anyOf": [
                    {"type": "array", "items": SCALAR, "minItems": 1},
                    {"type": "string", "pattern": r"^-?[0-9]+\.\.-?[0-9]+$"},
                ]
            },
            "minProperties": 1,
            "maxProperties": arrays.MAX_KEYS,
        }
    ),
]
ArrayLimit = Annotated[
    Annotated[int, BeforeValidator(checks.whole)] | None,
    AfterValidator(checks.at_least_one),
    WithJsonSchema({"type": "integer", "minimum": 1}),
]
_COUNT = {"type": "integer", "minimum": 0, "maximum": checks.MAX_RETRIES}
Retries = Annotated[
    Retry,
    WithJsonSchema({"type": "object", "properties": {"infra": _COUNT, "user": _COUNT}, "additionalProperties": False}),
]
CudnnSwitches = Annotated[
    Cudnn | None,
    WithJsonSchema(
        {
            "type": "object",
            "properties": {"benchmark": {"type": "boolean"}, "deterministic": {"type": "boolean"}},
            "additionalProperties": False,
        }
    ),
]
Requires = Annotated[
    dict[
        Annotated[str, AfterValidator(required.component)],
        Annotated[str, BeforeValidator(checks.env_text), AfterValidator(required.text)],
    ],
    WithJsonSchema(
        {
            "type": "object",
            "properties": dict.fromkeys(required.COMPONENTS, SCALAR),
            "additionalProperties": False,
        }
    ),
]
NearWish = Annotated[
    Near | None,
    WithJsonSchema({"type": "string", "pattern": "^[A-Za-z0-9][A-Za-z0-9._/-]{0,62}(!|~[0-9]+(s|m|h|d))?$"}),
]
GpuTypes = Annotated[
    tuple[Label, ...], BeforeValidator(_one_or_several), Field(max_length=16), WithJsonSchema(_one_or_up_to(16))
]
NodeNames = Annotated[
    tuple[Annotated[str, AfterValidator(checks.node_name)], ...],
    BeforeValidator(_one_or_several),
    Field(max_length=4096),
    WithJsonSchema(_one_or_up_to(4096)),
]
Shape = Annotated[
    Workers,
    WithJsonSchema(
        {"type": ["string", "integer"], "pattern": "^[0-9]+(x[0-9]+)?$", "minimum": 1, "maximum": MAX_WORKERS}
    ),
]
