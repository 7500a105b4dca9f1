"""`orch doctor`: what versions the nodes have, what would go wrong with NCCL, and what transport a recorded log shows."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from cli import output as out
from cli.errors import USAGE, Fail

if TYPE_CHECKING:
    from orchestrator.health.nccl_log import NcclLog

WARNINGS_SHOWN = 10
CAUSES_SHOWN = 3
FILE = click.Path(exists=True, dir_okay=False, allow_dash=True)


@click.command()
@click.option("--node", help="This node alone, with all that is known of it.")
@click.option(
    "--python",
    metavar="PATH",
    help="The interpreter that is asked; by default orch's own, as of a job without `python:`.",
)
@click.option("--nccl-log", "logs", multiple=True, type=FILE, help="A log that NCCL wrote; more may follow.")
@click.argument("more", nargs=-1, type=FILE, metavar="[FILE]...")
@out.output_option
def doctor(node: str | None, python: str | None, logs: tuple[str, ...], more: tuple[str, ...], output: str) -> None:
    """What would go wrong with NCCL, or has gone wrong.

    Compares the nodes: driver, torch, CUDA, cuDNN, NCCL, adapters, limits; marks with ! in what they differ; says what
    will break and how to mend it, the worst first. Ends with 1 where something is an error. Without a cluster it looks
    at this machine.

    With --nccl-log it reads logs that NCCL wrote with NCCL_DEBUG=INFO and says over what its links go. Several files
    are the ranks of one job; - is standard input.

    \b
    orch doctor
    orch doctor --node gpu-01 --python /venv/bin/python
    orch doctor --nccl-log nccl.*.log
    orch doctor --nccl-log train.log --json
    """
    files = (*logs, *more)
    if not logs:
        if more:
            raise click.UsageError(f"logs of NCCL are named with --nccl-log {' '.join(more[:3])}")
        from cli.matrix import examine, is_interpreter

        examine(node, is_interpreter(python), output)
        return
    if node is not None or python is not None:
        raise click.UsageError("--nccl-log reads files: --node and --python have no part in that")
    if output in ("csv", "name"):
        raise click.UsageError(f"a log is no list: -o {output} has no form for it; table, json and jsonl have")
    from orchestrator.health.nccl_log import read, to_json

    seen = read(_lines(files))
    if not seen.lines and not seen.transports:
        raise Fail(f"{', '.join(files)}: no line of NCCL among what was read; run the job with NCCL_DEBUG=INFO", USAGE)
    if output == "json":
        out.print_json(to_json(seen))
    elif output == "jsonl":
        click.echo(json.dumps(to_json(seen)))
    else:
        _show(seen)


def _lines(files: tuple[str, ...]) -> Iterator[str]:
    for name in files:
        try:
            with click.open_file(name, errors="replace") as file:
                yield from file
        except OSError as error:
            raise Fail(f"{name} cannot be read: {error.strerror}", USAGE) from None


def _show(seen: NcclLog) -> None:
    """Fields, then sentences: what the links mean, and what NCCL warned of."""
    from orchestrator.health.meaning import meaning

    gdr = {True: "yes", False: "no", None: "unknown"}[seen.gdr]
    if seen.gdr is False and not any(name.startswith(("NET/", "COLLNET")) for name in seen.transports):
        gdr = "no: nothing goes over the network"
    out.lines_of(
        [
            (seen.library, ", ".join(seen.versions) or "unknown version"),
            ("ranks", seen.ranks or None),
            ("nodes", f"{seen.nodes} ({_few(seen.hosts)})" if seen.hosts else seen.nodes),
            ("links", ", ".join(f"{count} {kind}" for kind, count in seen.links.items())),
            ("transports", ", ".join(seen.transports)),
            ("worst", seen.worst),
            ("GPUDirect RDMA", gdr),
            ("set", ", ".join(f"{name}={' or '.join(values)}" for name, values in seen.environment)),
        ]
    )
    wrong = meaning(seen)
    for one in wrong:
        click.echo(out.wrapped(out.clean(one.text)))
        for cause in one.causes[:CAUSES_SHOWN]:
            click.echo(out.wrapped(out.clean(f"  {'because' if cause.shown else 'perhaps'} {cause.text}")))
            click.echo(out.wrapped(out.clean(f"    {cause.mend}")))
    for text, count in seen.warnings[:WARNINGS_SHOWN]:
        click.echo(out.wrapped(out.clean(f"NCCL warns{f' ({count} times)' if count > 1 else ''}: {text}")))
    if not wrong and not seen.warnings:
        click.echo("Nothing is wrong with these links.")


def _few(names: tuple[str, ...]) -> str:
    return ", ".join(names) if len(names) <= 4 else f"{', '.join(names[:3])} and {len(names) - 3} more"
