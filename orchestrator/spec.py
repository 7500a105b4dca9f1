"""What a user asks for: JobSpec, one job with every key that a job file may have, checked when made."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, ValidationInfo, field_validator

from orchestrator import array as arrays
from orchestrator import checks
from orchestrator.spec_fields import (
    After,
    ArrayLimit,
    ArrayOf,
    Backend,
    Checkpoint,
    CudnnSwitches,
    Device,
    Env,
    GpuTypes,
    Grace,
    HangLimits,
    Name,
    NearWish,
    NodeNames,
    Patterns,
    Priority,
    Python,
    Requires,
    Retries,
    Shape,
    Tags,
    Team,
    TimeLimit,
    Variable,
)
from orchestrator.spec_values import Retry, Value, Workers


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
        return shlex.split(self.run)

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
