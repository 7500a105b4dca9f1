"""A job file, checked: by the controller where one runs, else here.

The checker takes a tenth of a second to load, and the controller has it loaded. Whatever is wrong is told by the one here: it
has the file's folder before it, and nothing of a bad file is sent any further.
"""

from __future__ import annotations

import os
import shlex
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cli import context
from cli import output as out
from cli.errors import USAGE, Fail

if TYPE_CHECKING:
    from orchestrator.config import Config

LARGEST = 64 * 1024


@dataclass(frozen=True)
class Job:
    """A job as it is sent."""

    spec: dict[str, Any]
    folder: Path
    """What workdir is relative to."""

    @property
    def name(self) -> str:
        return str(self.spec["name"])

    @property
    def secrets(self) -> tuple[str, ...]:
        return tuple(self.spec["secrets"])

    @property
    def workdir(self) -> Path:
        return self.folder / str(self.spec["workdir"])

    @property
    def script(self) -> str:
        return shlex.split(self.spec["run"])[0]

    @property
    def ranks(self) -> int:
        nodes, _, each = str(self.spec["workers"]).rpartition("x")
        return int(nodes or 1) * int(each)


def checked(settings: Config, path: Path, overrides: tuple[str, ...]) -> Job:
    """The job of a file. Ends the command with code 2 and every complaint where something is wrong with it."""
    job = _by_the_controller(settings, path, overrides) or _here(path, overrides)
    if axes := job.spec.get("array"):
        from orchestrator.array import unused

        if note := unused(axes, job.spec["run"], job.spec["env"]):
            out.say(f"{path}: array: {note}")
    return job


def _by_the_controller(settings: Config, path: Path, overrides: tuple[str, ...]) -> Job | None:
    """None where the controller does not answer, or finds anything to complain of."""
    try:
        with open(path, "rb", opener=_plain_files_only) as file:
            text = file.read(LARGEST + 1).decode()
        if len(text) > LARGEST:
            return None
        body = {"text": text, "filename": str(path), "overrides": list(overrides)}
        spec = context.controller(settings).call("POST", "check", body=body)["spec"]
        job = Job(spec, path.resolve().parent)
        return job if (job.workdir / job.script).is_file() else None
    except (OSError, UnicodeDecodeError, Fail, KeyError):
        return None


def _plain_files_only(path: str, flags: int) -> int:
    if not stat.S_ISREG(Path(path).stat().st_mode):
        raise OSError("a pipe or a device is not read twice")
    return os.open(path, flags)


def _here(path: Path, overrides: tuple[str, ...]) -> Job:
    from orchestrator import jobfile

    try:
        spec = jobfile.load_job(path, overrides)
    except jobfile.JobFileError as error:
        for complaint in error.complaints:
            click.echo(str(complaint), err=True)
        raise click.exceptions.Exit(USAGE) from None
    return Job(spec.model_dump(mode="json"), jobfile.job_folder(path))
