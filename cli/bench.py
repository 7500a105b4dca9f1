"""`orch bench`: the bandwidth of links, measured by ordinary runs, beside what the model promises and what it was before."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import click

from cli import bench_show as show
from cli import context, history
from cli import output as out
from cli.bench_plan import Ask, Plan, bytes_of, pair_runs, plan_runs
from cli.bench_run import measure
from cli.times import Ago, Duration, now
from orchestrator.bench.results import BACKENDS, COLLECTIVES

if TYPE_CHECKING:
    from cli.api import Controller


class Words(click.ParamType):  # type: ignore[type-arg]
    """Some of a list of words, with commas; gives a tuple."""

    name = "list"

    def __init__(self, known: Sequence[str] = ()) -> None:
        self.known = known

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, ...]:
        if isinstance(value, tuple):
            return value
        words = tuple(dict.fromkeys(word.strip() for word in str(value).split(",") if word.strip()))
        if not words:
            self.fail("is empty", param, ctx)
        for word in words:
            if self.known and word not in self.known:
                self.fail(f"{word!r} is none of {', '.join(self.known)}", param, ctx)
        return words


class Size(click.ParamType):  # type: ignore[type-arg]
    """`1M`, `64MiB`, `1G`: powers of 1024 as in nccl-tests; gives bytes."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        try:
            return value if isinstance(value, int) else bytes_of(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


@click.command()
@click.option("--nodes", type=Words(), default=(), help="On these nodes; a leaf or a pod stands for all of its nodes.")
@click.option("--per-node", type=click.IntRange(1), help="So many ranks on each node. Default: one for each GPU.")
@click.option("--gpus", type=click.IntRange(2), help="So many ranks in all, placed as a job of that size would be.")
@click.option("--pairs", is_flag=True, help="All nodes in pairs, a run each; slow pairs again beside good nodes.")
@click.option(
    "--near", metavar="LEVEL", help="Within one nvlink, node, leaf, pod or label; two nodes unless --gpus says more."
)
@click.option(
    "--backend",
    type=Words(BACKENDS),
    default=(),
    help="nccl, gloo, or nccl,gloo side by side. Default: the ranks' own.",
)
@click.option(
    "--collective",
    type=Words(("all", *COLLECTIVES)),
    default="all_reduce",
    show_default=True,
    help=f"Of {', '.join(COLLECTIVES)}; or all.",
)
@click.option("--min", "least", type=Size(), default="1M", show_default=True, help="The smallest size.")
@click.option("--max", "most", type=Size(), help="The largest size. Default: 1G by NCCL, 64M by Gloo.")
@click.option(
    "--iters",
    type=click.IntRange(0, 10_000),
    default=0,
    help="Repetitions at each size. Default: a quarter of a second.",
)
@click.option("--device", type=click.Choice(("auto", "cuda", "cpu")), default="auto", help="What the ranks are on.")
@click.option("--python", metavar="PATH", help="The ranks' interpreter, to measure with its torch and NCCL.")
@click.option("--timeout", type=Duration(), help="Gives up waiting after 30m, 12h ... (exit 124); the runs go on.")
@click.option("--history", "past", is_flag=True, help="Shows earlier results and measures nothing.")
@click.option("--since", type=Ago(), default="30d", show_default=True, help="With --history: not older than this.")
@click.option("--plot", is_flag=True, help="Draws bandwidth by size as well, or with --history by time.")
@out.output_option
def bench(
    nodes: tuple[str, ...],
    per_node: int | None,
    gpus: int | None,
    pairs: bool,
    near: str | None,
    backend: tuple[str, ...],
    collective: tuple[str, ...],
    least: int,
    most: int | None,
    iters: int,
    device: str,
    python: str | None,
    timeout: float | None,
    past: bool,
    since: float,
    plot: bool,
    output: str,
) -> None:
    """Measures what links carry, beside what they promise.

    Bus bandwidth of torch's collectives by size, as nccl-tests defines it, beside the model's prediction, the link's earlier
    results and what links like it reach. The measurements are ordinary runs: they wait their turn, are placed, and can be
    cancelled. Results stay in the history and correct later predictions.

    \b
    orch bench
    orch bench --nodes gpu-01,gpu-02 --backend nccl,gloo --plot
    orch bench --pairs --json | jq .suspects
    orch bench --history --nodes gpu-01 --since 90d

    Without --nodes, --gpus and --near: all GPUs of one node. Exit code 1 where a run failed, 3 for a node that is not there.
    """
    if plot and output != "table":
        raise click.UsageError(f"--plot draws below the table: it does not go with -o {output}")
    collectives = COLLECTIVES if "all" in collective else collective
    if past:
        _history(nodes, backend, () if collective == ("all_reduce",) else collectives, since, plot, output)
        return
    if pairs and (gpus or near):
        raise click.UsageError("--pairs says where by itself: give it with --nodes and --per-node only")
    if gpus and per_node:
        raise click.UsageError("--gpus leaves the shape to orch: give either --gpus or --per-node")
    if most is not None and most < least:
        raise click.UsageError("--max must not be less than --min")
    ask = Ask(nodes, per_node, gpus, near, backend, collectives, least, most, iters, device, python)
    settings = context.config()
    from cli.submit import connect

    api = connect(settings, dry_run=False)
    assert api is not None
    plan = plan_runs(ask, *_cluster(api), pairs=pairs)
    for note in plan.notes:
        out.say(note)
    done = measure(settings, api, plan.runs, timeout)
    if pairs:
        done = _pairs_again(settings, api, plan, done, timeout)
    results: list[dict[str, Any]] = api.call("GET", "benches", query={"run": [run["id"] for run in done.runs]})
    answer = show.answer(done, results, pairs=pairs)
    show.printed(answer, output, plot=plot, pairs=pairs)
    if any(run["state"] != "succeeded" for run in done.runs) or done.timed_out:
        sys.stdout.flush()
        click.get_current_context().exit(124 if done.timed_out else 1)


def _cluster(api: Controller) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Nodes and domains, once a node's agent has answered."""
    from cli.cluster import once_nodes_answer

    once_nodes_answer(api)
    nodes: list[dict[str, Any]] = api.call("GET", "nodes")
    topo: dict[str, Any] = api.call("GET", "topo")
    return nodes, topo["domains"]


def _pairs_again(settings: Any, api: Controller, plan: Plan, done: Any, timeout: float | None) -> Any:
    """The second round: the nodes of slow pairs, each beside one that has done well."""
    results = api.call("GET", "benches", query={"run": [run["id"] for run in done.runs]})
    again = pair_runs(plan, show.second_round(done, results))
    if not again:
        return done
    told = ", ".join(" + ".join(run["only"]) for run in again)
    out.say(f"slow or failed pairs; their nodes again beside good ones: {told}")
    return done.joined(measure(settings, api, again, timeout))


def _history(
    nodes: tuple[str, ...],
    backend: tuple[str, ...],
    collectives: tuple[str, ...],
    since: float,
    plot: bool,
    output: str,
) -> None:
    from cli.errors import Unreachable

    begin = now() - timedelta(seconds=since)
    query = {"node": list(nodes) or None, "backend": list(backend) or None, "collective": list(collectives) or None}
    settings = context.config()
    try:
        results = context.controller(settings).call("GET", "benches", query=query | {"since": begin.isoformat()})
    except Unreachable as down:
        results = history.read(settings, down, lambda store: _read(store, nodes, backend, collectives, begin))
    show.print_history(results, output, plot=plot)


def _read(store: Any, nodes: Sequence[str], backend: Sequence[str], collectives: Sequence[str], begin: Any) -> Any:
    """The same from the database."""
    from orchestrator.control.benches import compared
    from orchestrator.history.benches import BenchFilter

    wanted = BenchFilter((), begin, frozenset(nodes), tuple(collectives), tuple(backend))
    shown = store.benches(wanted)
    return compared(shown, store.related_benches(shown, now()))
