"""What is wrong with the values that a JobSpec was to be made of, in our words instead of pydantic's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from orchestrator.document import nearest, printable, shown
from orchestrator.spec import JobSpec

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
