"""`orch simulate`: what a trace of jobs would have done on a cluster, under orch and under other policies."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cli import context
from cli import output as out
from cli.errors import FAILED, USAGE, Fail
from cli.output import Column
from cli.times import Duration, span

if TYPE_CHECKING:
    from orchestrator.hardware.model import Cluster
    from orchestrator.scheduling.simulate.jobs import Trace
    from orchestrator.scheduling.simulate.study import Row, Rules

NEVER_FITS = 5
MOST_RUNS = 100_000
QUIET_S, EVERY_S = 1.0, 0.2


@click.command()
@click.argument("trace", required=False, type=click.Path(path_type=Path))
@click.option("--history", is_flag=True, help="Replays orch's own history instead of a file.")
@click.option("--policy", default="orch", metavar="A,B", show_default=True, help="Policies, side by side; see below.")
@click.option(
    "--cluster", "files", multiple=True, type=click.Path(path_type=Path), help="A cluster.yaml or hardware file."
)
@click.option("--nodes", type=click.IntRange(1, 100_000), help="A plain cluster of so many nodes, with --gpus.")
@click.option("--gpus", type=click.IntRange(1, 256), help="GPUs of each node of a plain cluster.")
@click.option(
    "--leaf", type=click.IntRange(1), default=16, show_default=True, help="Nodes to a leaf of a plain cluster."
)
@click.option("--unit", type=click.Choice(("s", "min", "ms")), help="Unit of a CSV's times (default: told from it).")
@click.option(
    "--profiles",
    multiple=True,
    type=click.Path(path_type=Path),
    help="Measured speeds: Pollux's (default: those that lie with the workload) or Gavel's.",
)
@click.option("--profile-gpu", default="v100", show_default=True, help="Which GPU of Gavel's table.")
@click.option("--communication", type=click.FloatRange(0, 1), default=0.1, show_default=True,
              help="Exposed share of communication in a gang's time at its best place, where nothing was measured.")  # fmt: skip
@click.option("--limits", type=click.FloatRange(0), default=2.0, show_default=True,
              help="Time limit of jobs without one, in times of their duration; 0: none.")  # fmt: skip
@click.option("--add-nodes", type=click.IntRange(1), help="What if the cluster had so many more nodes: prints both.")
@click.option("--load", type=click.FloatRange(0.01, 100), default=1.0, help="Submits the jobs so many times as fast.")
@click.option(
    "--sample", type=click.FloatRange(0, 1, min_open=True), default=1.0, help="Replays this share of the jobs."
)
@click.option("--seed", type=int, default=0, show_default=True, help="Of the sample.")
@click.option("--start-cost", type=Duration(), default="0s", show_default=True, help="What a first start takes.")
@click.option(
    "--restart-cost", type=Duration(), default="30s", show_default=True, help="What every further start takes."
)
@click.option("--checkpoint", type=Duration(), default="0s", show_default=True,
              help="How often jobs save; a preempted one loses what is newer. 0s: nothing is lost.")  # fmt: skip
@click.option("--cycle", type=Duration(), default="0s", show_default=True, help="Decides only so often; 0s: at once.")
@click.option("--las-threshold", type=click.FloatRange(0), default=16.0, show_default=True, metavar="GPU-HOURS",
              help="Where las moves a job to its second queue.")  # fmt: skip
@click.option("--plot", type=click.Path(path_type=Path, dir_okay=False), help="Draws the study: FILE.html or FILE.svg.")
@out.output_option
def simulate(trace: Path | None, history: bool, policy: str, plot: Path | None, output: str, **given: Any) -> None:
    """What a trace of jobs would have done on a cluster.

    TRACE is a CSV with at least job_id, num_gpu, submit_time, duration; a workload of Pollux; the output of `sacct -P`; or
    runs as `orch runs --json` prints them.

    \b
    Policies: orch           the scheduler that the controller runs
              fifo           in order of submission; nobody passes
              fifo-backfill  the first has a reservation; others pass it if they do not delay it (EASY)
              greedy         whoever fits passes
              las            least attained service, preempting (Tiresias)
    All but orch place first fit; fifo:pack, las:spread, greedy:one-node place otherwise.

    \b
    orch simulate trace.csv --nodes 16 --gpus 8 --policy orch,fifo-backfill,las
    orch simulate trace.csv --cluster cluster.yaml --add-nodes 4
    orch simulate workloads/workload-6.csv --nodes 16 --gpus 4 --plot study.html
    """
    from orchestrator.scheduling.simulate.study import study

    if plot is not None and plot.suffix not in (".html", ".svg"):
        raise Fail(f"--plot: {plot} must end in .html or .svg", USAGE)
    policies = [name.strip() for name in policy.split(",") if name.strip()]
    jobs = _trace(trace, history, given)
    clusters, profiles = _clusters(given), _profiles(given, jobs, trace)
    progress = _Progress()
    try:
        rows = study(jobs, clusters, policies, _rules(given), profiles, progress)
    except ValueError as error:
        raise Fail(str(error), USAGE) from None
    except RuntimeError as error:
        raise Fail(str(error), FAILED) from None
    finally:
        progress.done()
    _warn(rows)
    shown = [_row(row) for row in rows]
    if output == "json":
        out.print_json({"policies": shown})
    else:
        out.print_rows(shown, COLUMNS, output, "policy", "no policy was named")
    if plot is not None:
        _draw(plot, rows, shown, trace)
    if not rows[0].measures.runs:
        raise Fail("no job of the trace fits this cluster", NEVER_FITS)


def _time(title: str, spare: int = 0) -> Column:
    return Column(f"{title}_s", lambda row: row[title], lambda row: span(row[title]), right=True, spare=spare)


def _percent(title: str, key: str, spare: int = 0) -> Column:
    return Column(title, lambda row: row[key], lambda row: f"{row[key]:.1%}", right=True, spare=spare)


COLUMNS = (
    Column("policy", lambda row: row["policy"]),
    Column("cluster", lambda row: row["cluster"]),
    Column("runs", lambda row: row["runs"], right=True, spare=7),
    *(_time("mean_wait"), _time("median_wait", spare=2), _time("p95_wait", spare=8)),
    *(_time("mean_completion"), _time("median_completion", spare=1), _time("p95_completion", spare=6)),
    Column(
        "p95_slowdown", lambda row: row["p95_slowdown"], lambda row: f"{row['p95_slowdown']:.1f}", right=True, spare=3
    ),
    _percent("used", "utilisation_arriving"),
    _percent("fragmented", "fragmentation", spare=4),
    _percent("cross_leaf", "cross_leaf", spare=5),
    Column(
        "lost_gpu_h",
        lambda row: row["preempted_gpu_seconds"] / 3600,
        lambda row: f"{row['preempted_gpu_seconds'] / 3600:.1f}",
        right=True,
    ),
)


def _row(row: Row) -> dict[str, Any]:
    from orchestrator.scheduling.simulate.measures import as_json

    measures = row.measures
    cluster = f"{measures.nodes} nodes, {measures.gpus} GPUs" + (f" ({row.label})" if row.label else "")
    return {**as_json(measures), "cluster": cluster}


def _trace(path: Path | None, history: bool, given: dict[str, Any]) -> Trace:
    from orchestrator.scheduling.simulate.jobs import faster_arrivals, sampled
    from orchestrator.scheduling.simulate.traces import TraceError, read_trace

    if (path is None) != history:
        raise Fail("name one trace: a file, or --history for orch's own", USAGE)
    try:
        found = _own_history() if path is None else read_trace(path, given["unit"])
    except TraceError as error:
        raise Fail(str(error), USAGE) from None
    for note in found.notes:
        out.say(note)
    if given["sample"] < 1:
        found = sampled(found, given["sample"], given["seed"])
        out.say(f"{len(found.jobs)} jobs are in the sample")
    return faster_arrivals(found, given["load"])


def _own_history() -> Trace:
    """What the controller, or the database where it is down, says of all runs."""
    from cli import history
    from orchestrator.scheduling.simulate.traces import TraceError
    from orchestrator.scheduling.simulate.traces.past_runs import trace_of_runs

    complaints: list[str] = []
    found = trace_of_runs(
        [(0, run) for run in history.many({"sort": "submitted", "limit": MOST_RUNS})], "the history", complaints
    )
    if complaints or not found.jobs:
        said = "; ".join(found.notes)
        raise TraceError(complaints or ["the history holds no run that had GPUs" + (f": {said}" if said else "")])
    return found


def _clusters(given: dict[str, Any]) -> list[tuple[str, Cluster]]:
    """The cluster, and where --add-nodes asks for it the larger one."""
    from orchestrator.hardware.formats import FormatError, read_hardware
    from orchestrator.scheduling.simulate.clusters import plain, with_more_nodes

    nodes, gpus, files = given["nodes"], given["gpus"], list(given["files"])
    if (nodes is None) != (gpus is None):
        raise Fail("--nodes and --gpus go together: --nodes 16 --gpus 8", USAGE)
    if nodes is not None and files:
        raise Fail("--cluster and --nodes exclude each other", USAGE)
    if nodes is not None:
        cluster = plain(nodes, gpus, given["leaf"])
    else:
        settings = None if files else context.config()
        files = files or [*settings.fabric, *filter(None, (settings.hardware,))] if settings is not None else files
        if not files:
            raise Fail(
                "which cluster? --nodes 16 --gpus 8 makes a plain one, --cluster FILE reads one, and cluster.yaml may "
                "declare its hardware",
                USAGE,
            )
        try:
            cluster = read_hardware(files)
        except FormatError as error:
            raise Fail(str(error), USAGE) from None
        for note in cluster.notes:
            out.say(note)
        if not any(node.gpus for node in cluster.nodes):
            raise Fail(f"{', '.join(map(str, files))}: none of its {len(cluster.nodes)} nodes has a GPU", USAGE)
    more = given["add_nodes"]
    return [("", cluster)] if more is None else [("", cluster), (f"+{more} nodes", with_more_nodes(cluster, more))]


def _profiles(given: dict[str, Any], jobs: Trace, trace: Path | None) -> list[Any]:
    """Those that were named; of a trace that tells work and no times, else those that lie with it, if any."""
    from orchestrator.scheduling.simulate.profiles import beside, read_profiles
    from orchestrator.scheduling.simulate.traces import TraceError

    works = [job for job in jobs.jobs if job.duration_s is None]
    paths = given["profiles"]
    if not paths and trace is not None and works and (found := beside(trace)) is not None:
        paths = (found,)
        out.say(f"measured speeds are those in {found}")
    try:
        profiles = [read_profiles(path, given["profile_gpu"]) for path in paths]
    except TraceError as error:
        raise Fail(str(error), USAGE) from None
    if any(not any(profile.knows(job) for profile in profiles) for job in works):
        out.say(
            "the workload says work and no durations: Pollux's on nodes of four T4 are taken; --profiles DIR names others"
        )
    return profiles


def _rules(given: dict[str, Any]) -> Rules:
    from orchestrator.scheduling.simulate.replay import Costs
    from orchestrator.scheduling.simulate.study import Rules

    costs = Costs(given["start_cost"], given["restart_cost"], given["checkpoint"], given["cycle"])
    return Rules(
        costs,
        las_threshold_gpu_s=given["las_threshold"] * 3600,
        settings=context.config().policy,
        talk=given["communication"],
        limit_factor=given["limits"],
    )


def _warn(rows: Sequence[Row]) -> None:
    never = rows[0].replayed.never if rows else ()
    if never:
        largest = max(job.gpus for job in never)
        count = (
            "1 job does not fit the empty cluster and is"
            if len(never) == 1
            else f"{len(never)} jobs do not fit the empty cluster and are"
        )
        out.say(f"{count} left out; the largest has {largest} GPUs")


def _draw(path: Path, rows: Sequence[Row], shown: list[dict[str, Any]], trace: Path | None) -> None:
    from orchestrator.scheduling.simulate import chart

    if path.suffix == ".svg":
        text = chart.svg(rows)
    else:
        columns = [c for c in COLUMNS if c.title != "cluster" or len({row["cluster"] for row in shown}) > 1]
        titles = [column.title.removesuffix("_s").replace("_", " ") for column in columns]
        cells = [
            [column.shown(row) if column.shown else out.plain(column.value(row)) for column in columns] for row in shown
        ]
        name = trace.name if trace is not None else "orch's history"
        said = f"{rows[0].measures.runs:,} jobs of {name} on {shown[0]['cluster']}"
        text = chart.page(rows, "orch simulate", said, titles, cells)
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise Fail(f"--plot: {path} cannot be written: {error.strerror}", USAGE) from None
    out.say(f"drawn: {path}")


class _Progress:
    """Says on stderr how far a replay is, once it takes longer than a second: in place on a terminal, else now and then."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._begin = self._said = clock()
        self._live = out.colored(err=True)
        self._drawn = False

    def __call__(self, name: str, ended: int, jobs: int) -> None:
        now = self._clock()
        if now - self._begin < QUIET_S or now - self._said < (EVERY_S if self._live else 10.0):
            return
        self._said = now
        text = f"{name}: {ended:,} of {jobs:,} jobs have ended"
        if self._live:
            click.echo(f"\r\x1b[K{out.clean(text)}", nl=False, err=True)
            self._drawn = True
        else:
            out.say(text)

    def done(self) -> None:
        if self._drawn:
            click.echo("\r\x1b[K", nl=False, err=True)
