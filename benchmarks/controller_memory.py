"""What a live run costs the controller in memory, beside what it costs Ray's job submission.

orch: RUNS runs of a script that sleeps, one rank each, on a node with as many pretended CPU slots. PSS of the controller's process
(memory that it shares with others divided among them) before the first and with all of them running; the ranks are not counted,
as they are the user's. A few runs come and go first, so that what is loaded once is not charged to the runs.

Ray: PSS of the supervisor process that Ray starts for each job of `ray job submit`, and keeps while the job lives.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import shutil
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

import psutil
from harness import Orch, pss_mib, ray_head, record, spread, table

SLEEP = "import time\ntime.sleep(3600)\n"
LIMIT_MIB = 1.0
PATIENCE_S = 180.0


def orch_mib_per_run(runs: int) -> tuple[float, float, float]:
    """PSS of the controller before and with the runs, in MiB, and what one run adds."""
    with Orch(runs) as orch:
        quick = orch.job("quick", "", {"workers": 1, "device": "cpu"})
        for _ in range(3):
            orch.run("submit", "--wait", str(quick))
        pid = orch.controller_pid()
        before = pss_mib(pid)
        sleep = orch.job("sleep", SLEEP, {"workers": 1, "device": "cpu"})
        # Every client sends a key; they differ, and so do the runs.
        for _ in range(runs):
            orch.run("submit", str(sleep))
        deadline = time.monotonic() + PATIENCE_S
        while (live := sum(run["state"] == "running" for run in orch.api("runs?live=1"))) < runs:
            if time.monotonic() > deadline:
                raise RuntimeError(f"{live} of {runs} runs were running after {PATIENCE_S:.0f} s")
            time.sleep(0.2)
        time.sleep(2)
        after = pss_mib(pid)
        return before, after, (after - before) / runs


def ray_mib_of_supervisors(jobs: int) -> list[float]:
    """PSS of each job's supervisor, in MiB."""
    folder = Path(tempfile.mkdtemp(prefix="obm-", dir="/tmp"))
    try:
        with ray_head(sys.executable, 4, folder / "ray") as (_, dashboard):
            for _ in range(jobs):
                body = json.dumps({"entrypoint": "sleep 3600"}).encode()
                request = urllib.request.Request(f"{dashboard}/api/jobs/", body, {"Content-Type": "application/json"})
                urllib.request.urlopen(request, timeout=60).close()
            deadline = time.monotonic() + PATIENCE_S
            while time.monotonic() < deadline:
                with urllib.request.urlopen(f"{dashboard}/api/jobs/", timeout=60) as answer:
                    if sum(job["status"] == "RUNNING" for job in json.load(answer)) == jobs:
                        break
                time.sleep(0.2)
            time.sleep(2)
            return [pss_mib(pid) for pid in supervisors(folder)]
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def supervisors(folder: Path) -> list[int]:
    """Workers of this head that are called JobSupervisor; a worker's command line no longer names its head, its parent's does."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if "JobSupervisor" in " ".join(process.cmdline()) and str(folder) in " ".join(process.parent().cmdline()):
                found.append(process.pid)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=40)
    parser.add_argument("--jobs", type=int, default=3, help="of Ray, each of which takes more than 100 MB")
    parser.add_argument("--record", action="store_true", help="write the results to docs/performance.md")
    given = parser.parse_args()
    before, after, each = orch_mib_per_run(given.runs)
    ray = ray_mib_of_supervisors(given.jobs)
    rows = [
        [f"orch's controller, {given.runs} runs ({before:.0f} MiB before, {after:.0f} with them)", f"{each:.2f}"],
        [f"Ray's job supervisors, {len(ray)} jobs", spread(ray, ".0f")],
    ]
    verdict = f"orch: wanted at most {LIMIT_MIB:g} MiB a run: {'met' if each <= LIMIT_MIB else 'missed'}."
    record("Memory of a live run", f"{table(['', 'MiB a live run'], rows)}\n\n{verdict}", keep=given.record)


if __name__ == "__main__":
    main()
