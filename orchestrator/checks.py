"""What the fields of a job may hold: each check takes a value and gives it back, or raises ValueError.

The error's text follows the name of the field (`workers: must be ...`).
"""

from __future__ import annotations

import re
import shlex
from functools import lru_cache
from pathlib import PurePosixPath
from typing import Any

from orchestrator.document import CONTROL, CONTROL_IN_LINE, shown
from orchestrator.units import parse_duration

NAME = re.compile(r"^[a-z0-9][a-z0-9-]{0,62}$")
NAME_RULE = "must be 1 to 63 of a-z, 0-9 and '-', and begin with a letter or digit"
LABEL = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._/-]{0,62}$")
LABEL_RULE = "must be 1 to 63 of letters, digits and . _ / -, and begin with a letter or digit"
VARIABLE = re.compile(r"^[A-Za-z_][A-Za-z0-9_]*$")

METRIC = re.compile(r"^[A-Za-z_][A-Za-z0-9_]{0,23}$")
MAX_METRICS = 16
MAX_PATTERN = 512

MAX_WORKERS = 100_000
MAX_GRACE = 3600.0
MAX_TIME_LIMIT = 366 * 86400.0
MAX_STANDSTILL = 7 * 86400.0
MAX_TAGS = 64
MAX_RETRIES = 10_000

SET_BY_ORCH = frozenset(
    {"RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "NODE_RANK", "GROUP_RANK"}
    | {"MASTER_ADDR", "MASTER_PORT", "CUDA_VISIBLE_DEVICES"}
)
"""With ORCH_* and RAY_*: the variables of a rank that a job cannot choose, as a gang with wrong ones never meets."""


def one_line(text: str) -> str:
    return _without(CONTROL_IN_LINE, text)


def _without(unfit: re.Pattern[str], text: str) -> str:
    if found := unfit.search(text):
        raise ValueError(f"has the control character U+{ord(found[0]):04X} in it")
    return text


def check_name(name: str) -> str:
    if not NAME.fullmatch(name):
        raise ValueError(f"{shown(name)} {NAME_RULE}")
    return name


def label(text: str) -> str:
    if not LABEL.fullmatch(text):
        raise ValueError(f"{shown(text)} {LABEL_RULE}")
    return text


def node_name(text: str) -> str:
    if not text or len(text) > 253:
        raise ValueError(f"{shown(text)} is no name of a node: 1 to 253 characters")
    return one_line(text)


@lru_cache(maxsize=1024)
def split_command(run: str) -> tuple[str, ...]:
    """The words of `run`, split like a shell would. Raises ValueError where a quote is left open."""
    try:
        return tuple(shlex.split(run))
    except ValueError as error:
        raise ValueError(f"cannot be split into words: {str(error).lower()}") from None


_INTERPRETERS = re.compile(r"(python[0-9.]*|torchrun|accelerate|deepspeed|mpirun|srun|bash|sh)")


@lru_cache(maxsize=1024)
def command(run: str) -> str:
    """A job's `run` as it is kept. Raises ValueError."""
    words = split_command(run)
    if not words:
        raise ValueError("is empty: give a script and its arguments, such as train.py --epochs 90")
    for word in words:
        one_line(word)
    script = words[0]
    if _INTERPRETERS.fullmatch(script.rpartition("/")[2]):
        raise ValueError(
            f"begins with {shown(script)}: name the script itself, such as `run: train.py`. "
            "orch starts every rank; the interpreter is chosen with `python:`"
        )
    if script.startswith("-"):
        raise ValueError(f"begins with {shown(script)}: its first word must be the script's file")
    path = PurePosixPath(script)
    if path.is_absolute():
        raise ValueError(f"{shown(script)} is an absolute path: name the script by its path inside workdir")
    if ".." in path.parts or not path.parts:
        raise ValueError(f"{shown(script)} leads out of workdir: name a script inside it, or choose another workdir")
    # Over several lines in the file; one line wherever it is shown.
    return shlex.join(words) if CONTROL_IN_LINE.search(run) else run


def default_name(run: str) -> str:
    """A run's name when it has none of its own: the script's, made to fit. `src/train_gpt.py` gives `train-gpt`."""
    try:
        script = PurePosixPath((split_command(run) or ("",))[0])
    except ValueError:
        return "job"
    return re.sub(r"[^a-z0-9]+", "-", script.stem.lower()).strip("-")[:63].rstrip("-") or "job"


def folder(path: str) -> str:
    if not path:
        raise ValueError("is empty: give a folder, such as '.'")
    return one_line(path)


def interpreter(path: str) -> str:
    if not PurePosixPath(one_line(path)).is_absolute():
        raise ValueError(
            f"{shown(path)} must be an absolute path, such as /venv/bin/python: it must name one file on every node"
        )
    return path


def checkpoint(path: str) -> str:
    parts = PurePosixPath(one_line(path)).parts
    if ".." in parts:
        raise ValueError(f"{shown(path)} must not have '..' in it")
    if not parts or parts == ("/",):
        raise ValueError(f"{shown(path)} must name a folder, such as ckpt")
    return path


def variable(name: str) -> str:
    if not VARIABLE.fullmatch(name):
        raise ValueError(f"{shown(name)} is no name of a variable: letters, digits and '_', not beginning with a digit")
    if name in SET_BY_ORCH or name.startswith(("ORCH_", "RAY_")):
        raise ValueError(f"{shown(name)} is set by orch for every rank and cannot be chosen")
    return name


def env_text(value: Any) -> Any:
    """Numbers and booleans from JSON as YAML would write them; a file's values are text already."""
    if isinstance(value, bool):
        return str(value).lower()
    return str(value) if isinstance(value, int | float) else value


def env_value(value: str) -> str:
    return _without(CONTROL, value)


def tag_value(value: str) -> str:
    if len(value) > 256:
        raise ValueError(f"has {len(value)} characters; a tag's value may have 256")
    return one_line(value)


def metric(name: str) -> str:
    if not METRIC.fullmatch(name):
        raise ValueError(f"{shown(name)} must be 1 to 24 of letters, digits and '_', not beginning with a digit")
    return name


def pattern(text: str) -> str:
    """A regular expression that is searched for in a line, in time that only its length bounds (RE2)."""
    # Loaded where a job has patterns: few have.
    import re2

    if len(text) > MAX_PATTERN:
        raise ValueError(f"has {len(text)} characters; a pattern may have {MAX_PATTERN}")
    options = re2.Options()
    options.log_errors = False
    try:
        compiled = re2.compile(one_line(text), options)
    except re2.error as error:
        said = error.args[0].decode(errors="replace") if isinstance(error.args[0], bytes) else str(error)
        raise ValueError(f"{shown(text)} is no regular expression of RE2: {said}") from None
    if compiled.groups != 1:
        raise ValueError(
            f"{shown(text)} must have one group around the number, such as ([0-9.]+), not {compiled.groups}"
        )
    return text


def seconds(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("must be a duration, such as 30s")
    return parse_duration(value) if isinstance(value, str) else value


def grace(seconds: float) -> float:
    if not 0 <= seconds <= MAX_GRACE:
        raise ValueError(f"must be between 0s and {MAX_GRACE / 3600:g}h: so long would a cancelled run keep its GPUs")
    return seconds


def time_limit(seconds: float | None) -> float | None:
    if seconds is not None and not 0 < seconds <= MAX_TIME_LIMIT:
        raise ValueError(f"must be more than 0s and at most {MAX_TIME_LIMIT / 86400:g}d")
    return seconds


def standstill(value: Any) -> Any:
    length = seconds(value)
    if isinstance(length, int | float) and not 1 <= length <= MAX_STANDSTILL:
        raise ValueError(f"must be at least 1s and at most {MAX_STANDSTILL / 86400:g}d, or off")
    return length


def whole(value: Any) -> int:
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if isinstance(value, str) and re.fullmatch(r"[+-]?[0-9]{1,9}", value):
        return int(value)
    raise ValueError(f"must be a whole number, not {shown(value)}")


def count(value: int) -> int:
    if not 0 <= value <= MAX_RETRIES:
        raise ValueError(f"must be 0 to {MAX_RETRIES:,}, not {value:,}")
    return value


def at_least_one(value: int | None) -> int | None:
    if value is not None and value < 1:
        raise ValueError(f"must be 1 or more, not {value}")
    if value is not None and value >= 10**9:
        raise ValueError("must be less than a billion")
    return value


def priority(value: int) -> int:
    if not -1000 <= value <= 1000:
        raise ValueError(f"must be between -1000 and 1000, not {value}")
    return value
