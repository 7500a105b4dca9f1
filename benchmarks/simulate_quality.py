"""How good the queue is: recorded workloads replayed under orch and under the policies that others use.

    python benchmarks/simulate_quality.py TRACES [--only yardsticks,pollux,philly,v100] [--write]

TRACES is a folder with pollux/ (workloads and profiles of petuum/adaptdl, branch osdi21-artifact), philly/ (ChronusArtifact's
trace_job_Philly_SLO.csv) and gavel/ (simulation_throughputs.json). Everything is done by `orch simulate`'s own code and is
deterministic; only the CPU seconds change from run to run. `--write` puts the tables that were made into docs/performance.md.

yardsticks: Pollux's workloads under the rules that its own simulator was run with (a decision every 60 s, 30 s for every start,
policies that know no time limits), beside what that simulator said.
pollux: the same workloads on the same 16 nodes of 4 T4, four nodes to a leaf, decisions at once, 30 s for a restart; and with
dear restarts, 5 min and the work since the last full hour, where policies preempt by service.
philly: all 30,735 jobs of 14 days on 250 nodes of 8, and a quarter of them on 40; 16 nodes to a leaf, speeds by the bandwidth
model.
v100: that quarter's arrivals, sizes and durations, with models of Gavel's table given to jobs by their number, on 43 nodes of 8
V100 with 25 Gb/s Ethernet between.
"""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from orchestrator.hardware.model import Cluster, Gpu, Nic, Node, Shape, all_to_all
from orchestrator.policy import Policy
from orchestrator.scheduling.simulate.clusters import plain
from orchestrator.scheduling.simulate.gavel_profile import GavelProfile
from orchestrator.scheduling.simulate.jobs import Trace, sampled
from orchestrator.scheduling.simulate.measures import Measures
from orchestrator.scheduling.simulate.profiles import read_profiles
from orchestrator.scheduling.simulate.replay import Costs
from orchestrator.scheduling.simulate.speed import Profile
from orchestrator.scheduling.simulate.study import Rules, study
from orchestrator.scheduling.simulate.traces import read_trace

DOCUMENT = Path(__file__).resolve().parents[1] / "docs" / "performance.md"
PHILLY = "philly/trace_job_Philly_SLO.csv"

WORKLOADS = (6, 1, 8)
TOLD = {
    "las:spread": ("tiresias", (3470, 2474, 5080)),
    "fifo:pack": ("fifo-pack", (15154, 8142, 14782)),
    "fifo:in-order": ("fifo-firstfit", (15810, 9099, 15624)),
    "greedy:pack": ("fjf-pack", (5846, 4729, 11484)),
    "greedy:in-order": ("fjf-firstfit", (6570, 4953, 11671)),
    "greedy:spread": ("fjf-spread", (6071, 4645, 12043)),
}
"""By our policy: what it is called there, and the mean completion in seconds that Pollux's simulator gave for each of WORKLOADS."""

QUARTER = 0.25
"""Of Philly's jobs, where a queue is wanted: as crowded as the whole on four times the nodes, and done in minutes."""

SERVICE = Rules(settings=Policy(service=16.0))
"""orch with `policy.service: 16`: what Tiresias's two queues are to LAS."""

DEAR = Costs(restart_s=300, checkpoint_s=3600)
"""What preemption costs where starting takes long and jobs save once an hour."""

COMPARED = ("fifo", "fifo-backfill", "las", "orch")


def t4() -> Cluster:
    """16 nodes of 4 GPUs as in Pollux's experiments (g4dn.12xlarge: T4 on the CPU's PCIe, one port of 50 Gb/s); which leaves
    they had is not told: four nodes to one."""
    shape = Shape(tuple(Gpu(i, "T4") for i in range(4)), all_to_all(4, "PHB"), (Nic("eth0", rate_gbps=50.0),))
    return Cluster(tuple(Node(f"n{i}", shape, {"leaf": f"l{i // 4}"}) for i in range(16)))


def v100(nodes: int) -> Cluster:
    """Nodes of 8 V100 that NVLink joins, with one 25 Gb/s Ethernet port between them."""
    shape = Shape(
        tuple(Gpu(i, "V100") for i in range(8)),
        all_to_all(8, "NV1"),
        (Nic("eth0", rate_gbps=25.0),),
    )
    return Cluster(tuple(Node(f"n{i}", shape, {"leaf": f"l{i // 16}"}) for i in range(nodes)))


def measured(
    trace: Trace, cluster: Cluster, policies: Sequence[str], rules: Rules, profiles: Sequence[Profile] = ()
) -> Iterator[tuple[Measures, float]]:
    """Each policy's measures, with the CPU seconds that it took."""
    for policy in policies:
        begin = time.process_time()
        (row,) = study(trace, [("", cluster)], [policy], rules, profiles)
        yield row.measures, time.process_time() - begin


def yardsticks(traces: Path) -> Iterator[str]:
    profile = read_profiles(traces / "pollux/profiles")
    rules = Rules(Costs(start_s=30, restart_s=30, cycle_s=60), limit_factor=0)
    found: dict[str, list[float]] = {}
    for number in WORKLOADS:
        trace = read_trace(traces / f"pollux/workloads/workload-{number}.csv")
        for measures, _ in measured(trace, t4(), list(TOLD), rules, [profile]):
            found.setdefault(measures.policy, []).append(measures.completion.mean)
    yield "| rule | here | " + " | ".join(f"workload {n}: Pollux's simulator | here" for n in WORKLOADS) + " |"
    yield "|---|---|" + "---|---|" * len(WORKLOADS)
    for policy, (name, told) in TOLD.items():
        cells = [
            f"{theirs:,} | {ours:,.0f} ({ours / theirs - 1:+.0%})"
            for theirs, ours in zip(told, found[policy], strict=True)
        ]
        yield f"| {name} | `{policy}` | {' | '.join(cells)} |"


HEAD = (
    "| workload | policy | wait, median | p95 | completion, mean | median | p95 | used while jobs come | cross-leaf | preemptions "
    "| CPU s |",
    "|---|---|---|---|---|---|---|---|---|---|---|",
)


def row(workload: str, measures: Measures, cpu_s: float) -> str:
    wait, done = measures.wait, measures.completion
    return (
        f"| {workload} | {measures.policy} | {wait.median:,.0f} | {wait.p95:,.0f} | {done.mean:,.0f} | {done.median:,.0f} | "
        f"{done.p95:,.0f} | {measures.utilisation_arriving:.0%} | {measures.cross_leaf:.0%} | {measures.preemptions:,} | "
        f"{cpu_s:.0f} |"
    )


def pollux(traces: Path) -> Iterator[str]:
    profile = read_profiles(traces / "pollux/profiles")
    yield from HEAD
    for number in WORKLOADS:
        trace = read_trace(traces / f"pollux/workloads/workload-{number}.csv")
        for measures, cpu_s in measured(trace, t4(), COMPARED, Rules(), [profile]):
            yield row(f"Pollux {number}", measures, cpu_s)
        for measures, cpu_s in measured(trace, t4(), ["orch"], SERVICE, [profile]):
            yield row(f"Pollux {number}, service 16", measures, cpu_s)
        for name, policy, rules in (("", "las", Rules(DEAR)), (", service 16", "orch", replace(SERVICE, costs=DEAR))):
            for measures, cpu_s in measured(trace, t4(), [policy], rules, [profile]):
                yield row(f"Pollux {number}, dear restarts{name}", measures, cpu_s)


def philly(traces: Path) -> Iterator[str]:
    trace = read_trace(traces / PHILLY)
    yield from HEAD
    for measures, cpu_s in measured(trace, plain(250, 8), COMPARED, Rules()):
        yield row("Philly, 250 x 8", measures, cpu_s)
    separated = (*COMPARED[:-1], "fifo-backfill:one-node", "las:one-node", "orch")
    quarter = sampled(trace, QUARTER, seed=0)
    for measures, cpu_s in measured(quarter, plain(40, 8), separated, Rules()):
        yield row("a quarter of Philly, 40 x 8", measures, cpu_s)
    for measures, cpu_s in measured(quarter, plain(40, 8), ["orch"], SERVICE):
        yield row("a quarter of Philly, 40 x 8, service 16", measures, cpu_s)


def one_node(traces: Path) -> Iterator[str]:
    profile = read_profiles(traces / "gavel")
    assert isinstance(profile, GavelProfile)
    models = sorted(name for name in profile.slowdowns if name[-1].isdigit() and len(profile.slowdowns[name]) == 3)
    trace = sampled(read_trace(traces / PHILLY), QUARTER, seed=0)
    jobs = tuple(replace(job, model=models[int(job.id) % len(models)]) for job in trace.jobs)
    policies = ("greedy:one-node", "greedy:pack", "greedy:in-order", "greedy:spread", "fifo-backfill", "orch")
    yield "| 43 nodes of 8 V100 | completion, mean h | median h | p95 h | gangs split | GPU-hours over the best placements' |"
    yield "|---|---|---|---|---|---|"
    everything = [(m, "") for m, _ in measured(Trace(jobs), v100(43), policies, Rules(), [profile])]
    everything += [(m, ", service 16") for m, _ in measured(Trace(jobs), v100(43), ["orch"], SERVICE, [profile])]
    for m, how in everything:
        done = m.completion
        yield (
            f"| {m.policy}{how} | {done.mean / 3600:.1f} | {done.median / 3600:.1f} | {done.p95 / 3600:.1f} | {m.split:.0%} | "
            f"{m.stretched:+.0%} |"
        )


TABLES = {"yardsticks": yardsticks, "pollux": pollux, "philly": philly, "v100": one_node}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("traces", type=Path)
    parser.add_argument("--only", default=",".join(TABLES), help="the tables to make (default: all)")
    parser.add_argument("--write", action="store_true", help="replace the tables in docs/performance.md")
    given = parser.parse_args()
    for name in given.only.split(","):
        lines = []
        for line in TABLES[name](given.traces):
            print(line, flush=True)
            lines.append(line)
        when = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")
        said = (
            f"{when}, {os.cpu_count()} CPUs, Python {platform.python_version()}, load average {os.getloadavg()[0]:.1f}."
        )
        print(said, flush=True)
        if given.write:
            begin, end = (
                f"<!-- table: benchmarks/simulate_quality.py --only {name} --write -->",
                "<!-- end of table -->",
            )
            before, found, rest = DOCUMENT.read_text().partition(begin)
            assert found, f"{DOCUMENT} has no place for {name}"
            after = rest.partition(end)[2]
            DOCUMENT.write_text(f"{before}{begin}\n{said}\n\n" + "\n".join(lines) + f"\n{end}{after}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
