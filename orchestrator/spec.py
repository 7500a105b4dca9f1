"""What a user asks for: JobSpec, checked when made, and the small values in it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    WithJsonSchema,
    field_validator,
    model_serializer,
    model_validator,
)

from orchestrator import array as arrays
from orchestrator import checks
from orchestrator.checks import LABEL, MAX_WORKERS, NAME, SET_BY_ORCH, VARIABLE
from orchestrator.document import nearest, printable, shown
from orchestrator.health import requires as required
from orchestrator.units import DURATION_PATTERN, format_duration, parse_duration


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


def _one_or_several(value: Any) -> Any:
    return (value,) if isinstance(value, str) else value


Device = Literal["auto", "cuda", "cpu"]
Backend = Literal["auto", "nccl", "gloo"]
SCALAR = {"type": ["string", "number", "boolean"]}
"""In a file, a number or a boolean where text is meant is taken as it is written."""

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
    WithJsonSchema({"type": "string", "pattern": DURATION_PATTERN, "default": "30s"}),
]
_DURATION = {"type": "string", "pattern": DURATION_PATTERN}
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
    WithJsonSchema({"type": "string", "pattern": DURATION_PATTERN}),
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
    tuple[Annotated[str, AfterValidator(checks.label)], ...],
    BeforeValidator(_one_or_several),
    Field(max_length=16),
    WithJsonSchema({"type": ["string", "array"], "items": {"type": "string"}, "maxItems": 16}),
]
Shape = Annotated[
    Workers,
    WithJsonSchema(
        {"type": ["string", "integer"], "pattern": "^[0-9]+(x[0-9]+)?$", "minimum": 1, "maximum": MAX_WORKERS}
    ),
]


NodeNames = Annotated[
    tuple[Annotated[str, AfterValidator(checks.node_name)], ...],
    BeforeValidator(_one_or_several),
    Field(max_length=4096),
    WithJsonSchema({"type": ["string", "array"], "items": {"type": "string"}, "maxItems": 4096}),
]


class JobSpec(Value):
    """One job as its file says it, defaults filled in."""

    run: Annotated[str, AfterValidator(checks.command)] = Field(
        description="The script and its arguments, split like a shell would and never given to one. "
        "The script is a path inside workdir.",
        examples=["train.py --epochs 90"],
    )
    name: Name = Field(
        default_factory=lambda given: checks.default_name(given.get("run", "")),
        description="What the run is called; may be used in commands where its id is. Default: the script's name.",
        examples=["resnet50"],
    )
    workers: Shape = Field(
        default=Workers(total=1),
        description="How many ranks: NODESxPER_NODE, or a total whose shape orch picks. One GPU each.",
        examples=["2x8", 16],
    )
    device: Device = Field(
        default="auto",
        description="What the ranks compute on; auto takes CUDA where the cluster has it, and says which it took.",
        examples=["cuda"],
    )
    backend: Backend = Field(
        default="auto",
        description="What init_process_group should use, given to the script as ORCH_BACKEND. "
        "auto: nccl on CUDA, else gloo.",
        examples=["nccl"],
    )
    near: NearWish = Field(
        default=None,
        description="How close the ranks should be: nvlink, node, leaf, pod, any, or a label of the cluster. "
        "leaf is a wish, leaf! is never looser, leaf~30m waits that long for it, then takes what there is.",
        examples=["leaf", "leaf!", "leaf~30m"],
    )
    gpu: GpuTypes = Field(
        default=(),
        description="Accelerator type, or a list of acceptable ones (which may then be mixed in the gang). "
        "Default: any, but one type to a gang.",
        examples=["H100", ["H100", "H200"]],
    )
    only: NodeNames = Field(
        default=(),
        description="The only nodes that the run may get, by name. Default: any. A name that the cluster does not have is refused.",
        examples=[["gpu-01", "gpu-02"]],
    )
    workdir: Annotated[str, AfterValidator(checks.folder)] = Field(
        default=".",
        description="The folder whose snapshot runs, taken at submission; relative to the job file. "
        "What .gitignore and .orchignore name stays out.",
        examples=["."],
    )
    python: Python = Field(
        default=None,
        description="The ranks' interpreter, an absolute path that is there on every node; it needs torch, "
        "but neither orch nor Ray. Default: orch's own.",
        examples=["/venv/bin/python"],
    )
    env: Env = Field(
        default={},
        description="Environment variables of every rank. Numbers and booleans are taken as they are written. "
        "What orch sets itself (RANK, MASTER_ADDR, CUDA_VISIBLE_DEVICES, ORCH_*, RAY_*, ...) is refused.",
        examples=[{"OMP_NUM_THREADS": "4"}],
    )
    secrets: tuple[Variable, ...] = Field(
        default=(),
        description="Names of variables whose values are taken from the submitter's environment and stored nowhere.",
        examples=[["WANDB_API_KEY"]],
    )
    cudnn: CudnnSwitches = Field(
        default=None,
        description="cuDNN's switches, set in every rank before the script's first line. deterministic also sets "
        "CUBLAS_WORKSPACE_CONFIG.",
        examples=[{"benchmark": True, "deterministic": False}],
    )
    requires: Requires = Field(
        default={},
        description="Versions that a node must have to be given to the run, checked before it is placed: of torch, of "
        "the CUDA, cuDNN and NCCL that it brings, of the driver. 12.8 takes 12.8 and its patches; >=2.8,<3 both bounds.",
        examples=[{"torch": ">=2.8", "cuda": "12.8", "cudnn": ">=9", "nccl": ">=2.27", "driver": ">=570"}],
    )
    checkpoint: Checkpoint = Field(
        default=None,
        description="A folder for checkpoints, given to the script as ORCH_CHECKPOINT_DIR, the same on every attempt: "
        "absolute, or inside the run's own folder of the cluster's storage.",
        examples=["ckpt"],
    )
    time_limit: TimeLimit = Field(
        default=None,
        description="How long an attempt may run, counted from the moment when all its ranks have started; then SIGTERM, "
        "`grace` and SIGKILL, and the run has failed. Default: as long as it takes.",
        examples=["12h"],
    )
    """Seconds."""
    after: After = Field(
        default=(),
        description="Runs, by id or name, that must have succeeded before: a name means the latest run of that name, or its "
        "latest array, as a whole. If one of them fails or is cancelled, this run is cancelled.",
        examples=[[41, "pretrain"]],
    )
    array: ArrayOf = Field(
        default=None,
        description="One run for each combination of values, lists or ranges that include both ends. {lr} and {seed} in "
        "run and env are replaced; {{lr}} is plain text.",
        examples=[{"lr": [0.1, 0.01], "seed": "0..9"}],
    )
    array_limit: ArrayLimit = Field(
        default=None,
        description="How many runs of the array may hold a place at once. Default: as many as fit.",
        examples=[4],
    )
    priority: Priority = Field(
        default=0, description="A run of higher priority is placed first; -1000 to 1000.", examples=[10]
    )
    team: Team = Field(default=None, description="Whom the run is for.", examples=["vision"])
    grace: Grace = Field(
        default=30.0,
        description="How long a rank may take to end between SIGTERM and SIGKILL; at most 1h. Default: 30s.",
        examples=["30s"],
    )
    """Seconds between SIGTERM and SIGKILL."""
    hang: HangLimits = Field(
        default=None,
        description="How long no rank may get on before the attempt is ended as hung, its ranks' stacks kept: between steps at "
        "least so long, and at least 5 times their 99th percentile; first: before the first step, in a save, and while "
        "ranks only print. off: never. Default: the cluster's policy, 60s and 15m.",
        examples=["10m", {"after": "5m", "first": "1h"}, "off"],
    )
    retry: Retries = Field(
        default=Retry(),
        description="How many attempts may follow one that broke, by cause: infra for faults of the cluster within 24 hours, "
        "user for errors of the script. What was preempted or drained never counts. Default: infra 10, user 0.",
        examples=[{"infra": 20, "user": 0}],
    )
    on_degraded: Literal["warn", "fail"] = Field(
        default="warn",
        description="What to do where NCCL takes links that are worse than the placement promised: warn tells of it at "
        "once and goes on, fail ends the attempt.",
        examples=["fail"],
    )
    throughput: Patterns = Field(
        default={},
        description="How to read a script's throughput from rank 0's log, where orch cannot measure it: a regular "
        "expression (of RE2) with one group for each name. samples and tokens are rates per second of the whole job, "
        "samples_total a count so far, step the number of the step, step_time seconds; any other name is kept as it is.",
        examples=[{"samples": "samples/s: ([0-9.]+)", "loss": "loss=([0-9.e-]+)"}],
    )
    tags: Tags = Field(
        default={},
        description="Words of your own to find runs by: `orch runs --tag sweep=a`.",
        examples=[{"sweep": "a"}],
    )

    @property
    def argv(self) -> list[str]:
        """The script and its arguments, split like a shell would, never given to one."""
        return list(checks.split_command(self.run))

    def element(self, index: int) -> JobSpec:
        """The job of one run of the array. ValueError where there is no array, IndexError beyond its end."""
        return next(self.elements(range(index, index + 1)))

    def elements(self, indices: Iterable[int]) -> Iterator[JobSpec]:
        """The jobs of those runs of the array. Raises as `element`."""
        if self.array is None:
            raise ValueError(f"{self.name} is no array")
        size, words = arrays.size(self.array), self.argv
        for index in indices:
            if not 0 <= index < size:
                raise IndexError(index)
            chosen = arrays.at(self.array, index)
            env = {name: arrays.filled(value, chosen) for name, value in self.env.items()}
            run = arrays.filled_command(words, chosen)
            # What the template was checked for holds of its elements: a value is one line, and part of one word.
            yield self.model_copy(update={"run": run, "env": env, "array": None, "array_limit": None})

    # Checks of a key against others look at those before it in the class that are right, so that one mistake hides no other.
    @field_validator("array")
    @classmethod
    def _array_fits(cls, array: arrays.Axes | None, info: ValidationInfo) -> arrays.Axes | None:
        if array is not None and {"run", "env", "checkpoint"} <= info.data.keys():
            arrays.check(array, info.data["run"], info.data["env"], info.data["checkpoint"])
        return array

    @field_validator("array_limit")
    @classmethod
    def _limits_an_array(cls, limit: int | None, info: ValidationInfo) -> int | None:
        if limit is not None and info.data.get("array", ()) is None:
            raise ValueError("limits the runs of an array, and there is no array")
        return limit

    @field_validator("backend")
    @classmethod
    def _backend_fits(cls, backend: Backend, info: ValidationInfo) -> Backend:
        if backend == "nccl" and info.data.get("device") == "cpu":
            raise ValueError("nccl needs GPUs, and device is cpu: choose gloo")
        return backend

    @field_validator("gpu")
    @classmethod
    def _gpu_fits(cls, gpu: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        if gpu and info.data.get("device") == "cpu":
            raise ValueError("names GPUs, and device is cpu: leave one of them out")
        return gpu

    @field_validator("secrets")
    @classmethod
    def _secrets_apart(cls, secrets: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        if both := sorted(set(secrets) & set(info.data.get("env", {}))):
            raise ValueError(f"{', '.join(both)} is in env too: its value would be stored; leave it out of one of them")
        if twice := sorted({name for name in secrets if secrets.count(name) > 1}):
            raise ValueError(f"{', '.join(twice)} is named twice")
        return secrets


SETTABLE = ("priority", "time_limit", "near")
"""Keys that may be changed after the submission: two jobs that differ in nothing else are the same one."""
SETTABLE_OF_ARRAYS = ("array_limit",)

SYNONYMS = {
    **dict.fromkeys(("command", "cmd", "script", "entrypoint", "args"), "run"),
    **dict.fromkeys(("nodes", "gpus", "replicas", "nproc", "nproc_per_node", "world_size", "num_workers"), "workers"),
    **dict.fromkeys(("environment", "envs", "env_vars"), "env"),
    **dict.fromkeys(("depends_on", "dependencies", "needs"), "after"),
    **dict.fromkeys(("sweep", "matrix", "grid"), "array"),
    **dict.fromkeys(("max_parallel", "parallelism", "concurrency"), "array_limit"),
    **dict.fromkeys(("timeout", "walltime", "max_runtime"), "time_limit"),
    **dict.fromkeys(("hang_timeout", "heartbeat", "stall_timeout"), "hang"),
    **dict.fromkeys(("interpreter", "venv"), "python"),
    **dict.fromkeys(("max_restarts", "restarts", "retries", "restart_policy", "backoff_limit"), "retry"),
    **dict.fromkeys(("nodelist", "nodes_only", "hosts"), "only"),
    **dict.fromkeys(("labels", "metadata"), "tags"),
}
"""What other tools call our keys."""


def unknown_key(key: str) -> tuple[str, str]:
    """Why JobSpec does not take this key: a message, and a hint (which may be empty)."""
    meant = SYNONYMS.get(key.lower())
    return "unknown key", f"Did you mean '{meant}'?" if meant else nearest(key, JobSpec.model_fields)


# Refusals -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong with the values a JobSpec was to be made of."""

    path: tuple[str | int, ...]
    message: str
    hint: str = ""
    about_key: bool = False
    """True where the key itself is wrong, not its value."""

    def __str__(self) -> str:
        path = ".".join(map(str, self.path))
        return printable(f"{path}: {self.message}" + (f". {self.hint}" if self.hint else ""))


def problems(error: ValidationError) -> list[Problem]:
    """Everything that pydantic found, in our words."""
    # Without a valid `run` there is no default name; the complaint about `run` says it all.
    details = [detail for detail in error.errors(include_url=False) if detail["type"] != "default_factory_not_called"]
    return [_problem(detail) for detail in details]


def _problem(detail: Any) -> Problem:
    path, given, kind, context = detail["loc"], detail["input"], detail["type"], detail.get("ctx", {})
    about_key = kind == "extra_forbidden" or path[-1:] == ("[key]",)
    if path[-1:] == ("[key]",):
        path = path[:-1]
    match kind:
        case "extra_forbidden":
            message, hint = unknown_key(str(path[-1])) if len(path) == 1 else ("unknown key", "")
            return Problem(path, message, hint, about_key=True)
        case "missing":
            return Problem(path, "is missing: the script and its arguments, such as `run: train.py`")
        case "value_error":
            message = str(context["error"])
        case "literal_error":
            message = f"must be {context['expected']}, not {shown(given)}"
        case "dict_type" | "model_type":
            message = f"must be a mapping, such as {{NAME: value}}, not {shown(given)}"
        case "tuple_type" | "list_type":
            message = f"must be a list, such as [A, B], not {shown(given)}"
        case "string_type":
            message = f"must be text, not {shown(given)}"
        case "too_long":
            message = f"has {context['actual_length']} entries; at most {context['max_length']} are possible"
        case _:
            message = f"{detail['msg'][:1].lower()}{detail['msg'][1:]}, not {shown(given)}"
    return Problem(path, message, about_key=about_key)
