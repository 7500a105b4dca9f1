"""What a rank must be asked with: the request of one rank, checked and completed, or a refusal that says what is wrong."""

from __future__ import annotations

import os
from typing import Any

from spawning import open_log
from wire import Message, RefusedError


def check_rank(rank: Any) -> Message:
    """The rank as it is started. Refuses one that could not be; makes its log file."""
    types = {"rank": int, "python": str, "argv": list, "cwd": str, "env": dict, "log": str}
    if not isinstance(rank, dict) or any(not isinstance(rank.get(name), kind) for name, kind in types.items()):
        raise RefusedError(f"a rank needs {', '.join(f'{name} ({kind.__name__})' for name, kind in types.items())}")
    who = f"rank {rank['rank']}"
    words = [*rank["argv"], *rank["env"].keys(), *rank["env"].values()]
    if not rank["argv"] or any(not isinstance(word, str) or "\0" in word for word in words):
        raise RefusedError(f"{who}: argv and env must be strings without NUL, and argv not empty")
    if any("=" in name or not name for name in rank["env"]):
        raise RefusedError(f"{who}: an environment variable without a name, or with = in it")
    if not os.path.isabs(rank["python"]) or not os.access(rank["python"], os.X_OK) or os.path.isdir(rank["python"]):
        raise RefusedError(f"{who}: python: {rank['python']} is not the absolute path of a program that may be run")
    if not os.path.isabs(rank["cwd"]) or not os.path.isdir(rank["cwd"]) or not os.access(rank["cwd"], os.X_OK):
        raise RefusedError(f"{who}: cwd: {rank['cwd']} is not a folder that may be entered")
    if rank.get("cpus") is not None:
        check_cpus(who, rank["cpus"])
    cudnn = asked_of_cudnn(who, rank)
    try:
        os.close(open_log(rank["log"]))
    except OSError as error:
        raise RefusedError(f"{who}: log: {error.strerror}: {rank['log']}") from None
    # cuBLAS is repeatable only with a workspace of fixed size.
    fixed = {"CUBLAS_WORKSPACE_CONFIG": ":4096:8"} if cudnn.get("deterministic") else {}
    return {**rank, "cudnn": cudnn, "env": {**fixed, **rank["env"]}}


def check_cpus(who: str, cpus: Any) -> None:
    if not isinstance(cpus, list) or not cpus or any(type(cpu) is not int for cpu in cpus):
        raise RefusedError(f"{who}: cpus must be one or more numbers of CPUs")
    allowed = os.sched_getaffinity(0)
    missing = sorted(set(cpus) - allowed)
    if missing:
        raise RefusedError(
            f"{who}: cpus: {', '.join(map(str, missing))} not among the {len(allowed)} CPUs that may be used here: "
            f"{', '.join(map(str, sorted(allowed)))}"
        )


def asked_of_cudnn(who: str, rank: Message) -> dict[str, bool]:
    """The flags of cuDNN to be set before the script begins; {} where all stay as torch has them."""
    asked = rank.get("cudnn") or {}
    if (
        not isinstance(asked, dict)
        or asked.keys() - {"benchmark", "deterministic"}
        or any(value is not None and type(value) is not bool for value in asked.values())
    ):
        raise RefusedError(f"{who}: cudnn takes benchmark and deterministic, each true, false or null")
    flags = {name: value for name, value in asked.items() if value is not None}
    if flags and not is_script(rank):
        raise RefusedError(f"{who}: cudnn is set before a script, and {rank['argv'][0]} is not the file of one")
    return flags


def is_script(rank: Message) -> bool:
    """Whether argv begins with the file of a script."""
    name: str = rank["argv"][0]
    return not name.startswith("-") and name.endswith(".py") and os.path.isfile(os.path.join(rank["cwd"], name))
