"""`orch init`, `schema` and `config`: files to start from, and where each setting comes from."""

from __future__ import annotations

from operator import itemgetter
from pathlib import Path

import click

from cli import context
from cli import output as out
from cli.errors import CONFLICT, USAGE, Fail
from cli.output import Column


@click.command()
@click.argument("script", required=False, type=click.Path(path_type=Path))
@click.option(
    "--file",
    "target",
    default="job.yaml",
    show_default=True,
    type=click.Path(path_type=Path),
    help="Where to write it.",
)
def init(script: Path | None, target: Path) -> None:
    """Writes a job.yaml to start from.

    SCRIPT is the script to run (default: the one that is here, or else train.py).

    \b
    orch init train.py
    """
    from orchestrator.schema import starter_job

    name = str(script) if script else _guess()
    text = starter_job(name, target.name)
    try:
        with target.open("x") as file:
            file.write(text)
    except FileExistsError:
        raise Fail(
            f"{target} exists and is left as it is: remove it, or write elsewhere with --file", CONFLICT
        ) from None
    except OSError as error:
        raise Fail(f"{target} cannot be written: {error.strerror}", USAGE) from None
    if not (target.parent / name).is_file():
        out.say(f"there is no {name} beside it yet")
    out.say(f"wrote {target}: `orch submit {target} --follow` runs it")


def _guess() -> str:
    scripts = [path.name for path in Path().glob("*.py")]
    return scripts[0] if len(scripts) == 1 else "train.py"


@click.command()
def schema() -> None:
    """Prints the JSON Schema of job files, for editors.

    \b
    orch schema > job.schema.json
    """
    from orchestrator.schema import job_schema

    out.print_json(job_schema())


@click.command()
@out.output_option
def config(output: str) -> None:
    """The configuration, and where each value is from.

    A flag wins over an ORCH_ variable, that over ./cluster.yaml, that over ~/.config/orch/config.yaml.

    \b
    orch config
    """
    rows = [dict(zip(("key", "value", "origin"), row, strict=True)) for row in context.config().rows()]
    columns = [Column(name, itemgetter(name)) for name in ("key", "value", "origin")]
    out.print_rows(rows, columns, output, "key", "")
