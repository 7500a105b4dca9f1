"""`orch export`: the history for other tools, read from the database itself."""

from __future__ import annotations

import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cli import context
from cli import output as out
from cli.errors import CONFLICT, USAGE, Fail
from cli.query import filter_options

if TYPE_CHECKING:
    from orchestrator.history.store import Store

FORMATS = ("csv", "jsonl", "parquet")


@click.command()
@filter_options
@click.option("--format", "form", type=click.Choice(FORMATS), help="By default what FILE's name ends in, or csv.")
@click.option(
    "-o", "--output", "target", type=click.Path(path_type=Path), metavar="FILE", help="Where to; default: stdout."
)
@click.option("--force", is_flag=True, help="Replaces FILE where it exists.")
@click.option("--attempts", "what", flag_value="attempts", help="One row for each attempt instead of each run.")
@click.option("--series", "what", flag_value="series", help="One row for each stretch of an attempt's throughput.")
def export(query: dict[str, Any], form: str | None, target: Path | None, force: bool, what: str | None) -> None:
    """The history for other tools: CSV, JSON lines or Parquet.

    One row for each run, the oldest first; the filters are those of `orch runs`. FILE appears when it is whole. Reads the database
    itself, in short steps: neither the controller nor its runs notice.

    \b
    orch export --since 90d -o runs.parquet
    orch export --attempts --state failed > failed.csv
    """
    from orchestrator.history.asking import asked
    from orchestrator.history.errors import StoreError
    from orchestrator.history.store import Store

    form = form or next((one for one in FORMATS if target and target.suffix == f".{one}"), "csv")
    if form == "parquet" and target is None:
        raise click.UsageError("--format parquet: name a file with -o; it cannot be written to a pipe or a terminal")
    _check(form, target, force)
    settings = context.config()
    given = {k: [str(one) for one in v] if isinstance(v, list) else [str(v)] for k, v in query.items() if v is not None}
    try:
        wanted = asked(given | {"live": ["0"]}).wanted
        with Store.open(settings.database, readonly=True) as store:
            count = _write(store, what or "runs", wanted, form, target, force)
    except ValueError as error:
        raise Fail(str(error), USAGE) from None
    except StoreError as error:
        raise Fail(str(error), error.exit_code) from None
    except FileExistsError:
        raise _exists(target) from None
    except OSError as error:
        if isinstance(error, BrokenPipeError):
            raise
        raise Fail(f"{target or 'the output'} cannot be written: {error.strerror}", USAGE) from None
    if target is not None:
        out.say(f"wrote {count:,} rows to {target}")


def _check(form: str, target: Path | None, force: bool) -> None:
    """Refuses what could only fail later. Raises Fail."""
    if target is not None and target.exists() and not force:
        raise _exists(target)
    if form == "parquet":
        try:
            import pyarrow  # noqa: F401
        except ImportError:
            raise Fail(
                "Parquet needs pyarrow, which is not installed: pip install 'orch-train[parquet]'", USAGE
            ) from None


def _exists(target: Path | None) -> Fail:
    return Fail(f"{target} exists and is left as it is: write elsewhere, or replace it with --force", CONFLICT)


def _write(store: Store, what: str, wanted: Any, form: str, target: Path | None, force: bool) -> int:
    from orchestrator.history import export as forms

    count = 0
    with ExitStack() as stack:
        file: Any = sys.stdout
        if target is not None:
            file = stack.enter_context(forms.whole_file(target, force, binary=form == "parquet"))
        make = {"csv": forms.Csv, "jsonl": forms.JsonLines, "parquet": forms.Parquet}[form]
        writer = make(file, forms.FIELDS[what])
        for count, row in enumerate(store.export(what, wanted), 1):  # noqa: B007
            writer.write(row)
        writer.close()
    return count
