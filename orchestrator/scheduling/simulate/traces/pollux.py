"""A workload of Pollux's simulator: name, time (s), application, num_replicas, batch_size; work instead of durations."""

from __future__ import annotations

from orchestrator.document import shown
from orchestrator.scheduling.simulate.jobs import Job, Trace, trace_of
from orchestrator.scheduling.simulate.pollux_profile import STEPS
from orchestrator.scheduling.simulate.traces.rows import Rows, number, whole

REQUIRED = ("name", "time", "application", "num_replicas", "batch_size")


def parse(text: str, source: str) -> Trace:
    """The jobs; each has `steps` and no duration. A column `steps` wins over what is known of Pollux's applications.

    Raises TraceError.
    """
    rows = Rows(text, source)
    rows.require(*REQUIRED)
    jobs = []
    for _ in rows:
        submitted = rows.read("time", number)
        gpus = rows.read("num_replicas", whole)
        batch = rows.read("batch_size", whole)
        application = rows.text("application")
        steps = rows.read("steps", number) if rows.text("steps") else STEPS.get((application, batch or 0))
        if gpus == 0 or batch == 0:
            rows.complain("num_replicas" if gpus == 0 else "batch_size", "must be at least 1")
        elif steps is None and batch is not None and not rows.text("steps"):
            known = ", ".join(f"{name} {size}" for name, size in STEPS)
            rows.complain(
                "application",
                f"nobody knows how many steps {shown(application)} of {batch} takes: known are {known}; "
                "a column steps says it for others",
            )
        if submitted is None or not gpus or not batch or steps is None:
            continue
        jobs.append(
            Job(
                rows.text("name"),
                gpus,
                submitted,
                name=f"{application}-{gpus}x{batch}",
                model=application,
                batch_size=batch,
                steps=steps,
            )
        )
    rows.finish()
    return trace_of(jobs)
