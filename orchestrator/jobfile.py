"""A job file's text to the JobSpec that it means, or to everything that is wrong with it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from orchestrator import document
from orchestrator.checks import split_command
from orchestrator.document import Complaint, Contents, DocumentError, KeyPath, Mark, Scalar, shown
from orchestrator.spec import JobSpec
from orchestrator.spec_problems import Problem, problems, unknown_key

MAPPINGS = frozenset({"env", "tags", "requires", "throughput"})
"""The keys in which `--set` can set one entry: `--set env.LR=0.1`."""


class JobFileError(DocumentError):
    """A job file, or a `--set`, that cannot be used; `complaints` says why, str() prints them a line each."""


def load_job(path: str | Path, overrides: Sequence[str] = ()) -> JobSpec:
    """The job in a file (`-`: standard input), with `K=V` overrides; its workdir and script must be there.

    At most 64 KiB of the file are read. Raises JobFileError with all mistakes at once.
    """
    try:
        text = document.read_text(path)
    except DocumentError as error:
        raise JobFileError(error.complaints) from None
    name = "<stdin>" if str(path) == "-" else str(path)
    return parse_job(text, name, overrides, folder=job_folder(path))


def job_folder(path: str | Path) -> Path:
    """The folder that a job file's `workdir` is relative to: the file's own, or the current one for `-`."""
    return Path.cwd() if str(path) == "-" else Path(path).resolve().parent


def parse_job(text: str, filename: str, overrides: Sequence[str] = (), *, folder: Path | None = None) -> JobSpec:
    """The job in `text`. With `folder`, which workdir is relative to, the workdir and the script must exist.

    Raises JobFileError with all mistakes at once; `filename` stands in front of each.
    """
    try:
        found = _read(text, filename)
        for override in overrides:
            _set(found, override)
    except DocumentError as error:
        raise JobFileError(error.complaints) from None
    spec, wrong = _validate(found.data)
    for problem in wrong:
        # One complaint for one value: what was left out of the data has had its own.
        if problem.path not in found.refused:
            found.complain(
                problem.path, problem.message, problem.hint, at=found.mark(problem.path, key=problem.about_key)
            )
    if folder is not None:
        blamed = {problem.path for problem in wrong} | found.refused
        for path, message in missing_files(found.data, folder):
            if path not in blamed:
                found.complain(path, message)
    if spec is None or found.complaints:
        raise JobFileError(found.complaints)
    return spec


def missing_files(job: dict[str, Any], folder: Path) -> list[tuple[KeyPath, str]]:
    """What a job names that does not exist, and the keys that name it; `folder` is what workdir is relative to."""
    try:
        workdir = folder / str(job.get("workdir", "."))
        if not workdir.is_dir():
            return [(("workdir",), f"there is no folder {shown(workdir, 300)}")]
        script = split_command(str(job.get("run", "")))[0]
        if not (workdir / script).is_file():
            return [(("run",), f"there is no file {shown(script)} in {shown(workdir.resolve(), 300)}")]
    except (ValueError, IndexError, OSError):
        return []  # no usable path at all, about which there is a complaint already
    return []


def _read(text: str, filename: str) -> Contents:
    node = document.parse(text, filename)
    if node is None or (isinstance(node, Scalar) and node.null):
        raise DocumentError([Complaint(Mark(filename), "", "is empty", "The smallest job is `run: train.py`")])
    if not isinstance(node, document.Mapping):
        message = "must be keys and values, such as `run: train.py`"
        raise DocumentError([Complaint(node.mark, "", f"{message}, not {_kind(node)}")])
    found = document.contents(node)
    if not isinstance(found.data, dict):
        raise DocumentError(found.complaints)
    return found


def _kind(node: document.Node) -> str:
    return shown(node.text) if isinstance(node, Scalar) else "a list"


def _validate(data: dict[str, Any]) -> tuple[JobSpec | None, list[Problem]]:
    try:
        return JobSpec.model_validate(data), []
    except ValidationError as error:
        return None, problems(error)


def _set(found: Contents, override: str) -> None:
    """Puts one `K=V` over what the file says. V is text as it stands, or YAML where it begins with one of [ { ' "."""
    name, equals, value = override.partition("=")
    mark = Mark(f"--set {override if len(override) <= 60 else override[:60] + '...'}")
    if not equals or not name:
        found.complain((), "must be KEY=VALUE, such as --set workers=2x8 or --set env.LR=0.1", at=mark)
        return
    top, dot, entry = name.partition(".")
    path: KeyPath = (top, entry) if dot else (top,)
    if top not in JobSpec.model_fields:
        message, hint = unknown_key(top)
        found.complain((top,), message, hint, at=mark)
        return
    if dot and (top not in MAPPINGS or not entry):
        *most, last = sorted(MAPPINGS)
        settable = f"{', '.join(most)} and {last}"
        found.complain(path, f"only {settable} have entries that can be set one by one", at=mark)
        return
    _forget(found, path)
    found.marks[path] = found.key_marks[path] = mark
    value_found = _value(path, value, mark)
    if value_found.complaints:
        found.complaints += value_found.complaints
        found.refused.add(path)
    elif not dot:
        found.data[top] = value_found.data
    elif isinstance(found.data.get(top), dict):
        found.data[top][entry] = value_found.data
    else:
        found.data[top] = {entry: value_found.data}


def _value(path: KeyPath, value: str, mark: Mark) -> Contents:
    if value[:1] not in tuple("[{'\""):
        return Contents(data=value)
    try:
        node = document.parse(value, mark.source)
        inner = Contents() if node is None else document.contents(node, path)
    except DocumentError as error:
        inner = Contents(complaints=list(error.complaints))
    # A line and a column within a flag help nobody.
    inner.complaints = [
        replace(complaint, mark=mark, key=complaint.key or document.dotted(path)) for complaint in inner.complaints
    ]
    return inner


def _forget(found: Contents, path: KeyPath) -> None:
    """What the file said at `path` no longer matters, nor where it stood."""
    for marks in (found.marks, found.key_marks):
        for below in [known for known in marks if known[: len(path)] == path]:
            del marks[below]
    found.refused = {known for known in found.refused if known[: len(path)] != path}
