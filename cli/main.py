"""The group `orch`: which commands there are, and where each is."""

from __future__ import annotations

import atexit
import gc
import importlib
import os
import sys
from typing import Any, NoReturn

import click

import orchestrator

COMMANDS = {
    "submit": ("submit", "Queues a run of JOB and prints its id."),
    "plan": ("plan", "Where JOB would go, changing nothing."),
    "ps": ("runs", "What runs, and what waits for what."),
    "show": ("runs", "One run whole."),
    "why": ("why", "Why a run waits, or ended as it did."),
    "runs": ("query", "The history of runs, the latest first; or sums over groups of them."),
    "compare": ("compare", "Runs side by side, and what explains how their speeds differ."),
    "export": ("export", "The history for other tools: CSV, JSON lines or Parquet."),
    "report": ("report", "Runs, or the cluster, as pictures in one HTML file."),
    "logs": ("logs", "What the ranks of a run printed."),
    "cancel": ("change", "Ends runs, or takes them out of the queue."),
    "set": ("change", "Changes what a run asks for."),
    "retry": ("change", "Queues an ended run again."),
    "top": ("top", "The cluster, what runs and what waits, live."),
    "nodes": ("nodes", "The nodes: their state, their health and what is on them."),
    "drain": ("nodes", "Takes nodes out of use."),
    "undrain": ("nodes", "Brings nodes back into use."),
    "topo": ("topo", "The tree of the cluster, and what is free of it."),
    "bench": ("bench", "Measures what links carry, beside what they promise."),
    "doctor": ("doctor", "What would go wrong with NCCL, or has gone wrong."),
    "simulate": ("simulate", "What a trace of jobs would have done on a cluster."),
    "up": ("cluster", "Starts the cluster and its controller."),
    "down": ("cluster", "Ends the controller and the cluster."),
    "status": ("cluster", "Whether the controller is up, and how busy it is."),
    "audit": ("audit", "Who asked the controller for what."),
    "init": ("files", "Writes a job.yaml to start from."),
    "schema": ("files", "Prints the JSON Schema of job files, for editors."),
    "config": ("files", "The configuration, and where each value is from."),
}
"""The module of `cli` that has a function of the command's name, imported only when it is needed, and the first sentence of
its help, so that `orch --help` imports none of them."""

INTERRUPTED = 130
PIPE_CLOSED = 141


class LazyGroup(click.Group):
    """A group whose commands are imported when they are called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"cli.{COMMANDS[cmd_name][0]}")
        # A name that Python has a use for itself is followed by a _.
        command: click.Command = getattr(module, cmd_name if hasattr(module, cmd_name) else f"{cmd_name}_")
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError:
            if args[:1] and args[0].startswith("-"):
                raise
            from orchestrator.document import nearest
            from orchestrator.terminal import clean

            raise click.UsageError(
                f"there is no command {clean(args[0])!r}. {nearest(args[0], COMMANDS)}", ctx
            ) from None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, sentence) for name, (_, sentence) in COMMANDS.items()])

    def invoke(self, ctx: click.Context) -> Any:
        try:
            result = super().invoke(ctx)
            sys.stdout.flush()
        except KeyboardInterrupt:
            click.echo("interrupted", err=True)
            ctx.exit(INTERRUPTED)
        except BrokenPipeError:
            # Whoever read our output has read enough. What is still buffered goes nowhere, quietly.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            ctx.exit(PIPE_CLOSED)
        return result


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.option("--home", metavar="FOLDER", help="Where orch keeps its things (default: ~/.orch).")
@click.option("--address", metavar="HOST:PORT", help="The Ray head of the cluster, or local.")
@click.option("--database", metavar="URL", help="The history (default: a SQLite file in the home folder).")
@click.version_option(orchestrator.__version__, prog_name="orch")
def orch(**flags: str | None) -> None:
    """Runs multi-node training jobs: the right GPUs, the right links, and the truth about both.

    \b
    orch init train.py           writes a job.yaml to start from
    orch submit job.yaml -f      queues it and follows it to its end
    orch ps                      what runs, and what waits for what
    """


def main() -> NoReturn:
    """The entry point of the `orch` program."""
    # Collecting garbage while modules load, and once more at the end, finds next to none and costs a short command some 30 ms.
    gc.set_threshold(50_000)
    atexit.register(gc.freeze)
    for stream in (sys.stdout, sys.stderr):
        # A name that the terminal's encoding lacks is no reason to end with a traceback.
        stream.reconfigure(errors="replace")  # type: ignore[union-attr]
    orch(prog_name="orch")
    raise AssertionError("click ends the process")
