"""What jobs a file tells of: which format it has, and the Trace in it."""

from __future__ import annotations

import gzip
import re
import zlib
from dataclasses import replace
from pathlib import Path

from orchestrator.scheduling.simulate.jobs import Trace
from orchestrator.scheduling.simulate.traces import past_runs, plain_csv, pollux, sacct
from orchestrator.scheduling.simulate.traces.errors import TraceError
from orchestrator.scheduling.simulate.traces.plain_csv import UNITS

__all__ = ["UNITS", "TraceError", "detect", "parse", "read_trace"]

MOST_BYTES = 1 << 30


def read_trace(path: Path, unit: str | None = None) -> Trace:
    """The trace in a file, which may be gzipped. Raises TraceError, also where the file cannot be read or holds no job."""
    try:
        if path.stat().st_size > MOST_BYTES:
            raise TraceError([f"{path}: is larger than {MOST_BYTES >> 30} GiB"])
        data = path.read_bytes()
        text = (gzip.decompress(data) if data.startswith(b"\x1f\x8b") else data).decode("utf-8", "replace")
    except (OSError, EOFError, zlib.error) as error:
        raise TraceError([f"{path}: {getattr(error, 'strerror', None) or 'cannot be read'}"]) from None
    return parse(text, str(path), unit)


def detect(text: str) -> str:
    """`runs`, `sacct`, `pollux` or `csv`, by the first line that has anything in it."""
    first = next((line for line in text.removeprefix("\ufeff").splitlines() if line.strip()), "").strip()
    if first.startswith(("{", "[")):
        return "runs"
    if "|" in first and sacct.recognises(first.lower().split("|")):
        return "sacct"
    titles = [title.strip(' "').lower() for title in re.split(r"[,;\t]", first)]
    return "pollux" if all(title in titles for title in pollux.REQUIRED) else "csv"


def parse(text: str, source: str, unit: str | None = None) -> Trace:
    """The trace in a text, in whichever format it is. Raises TraceError."""
    if not text.strip():
        raise TraceError([f"{source}: is empty"])
    kind = detect(text)
    if kind == "csv":
        first = text.lstrip().splitlines()[0]
        if "job_id" not in first.lower() and not re.search(r"[,;\t]", first):
            raise TraceError(
                [
                    f"{source}:1: is no trace: neither a CSV with {', '.join(plain_csv.REQUIRED)}, nor a Pollux workload "
                    f"({', '.join(pollux.REQUIRED)}), nor the output of `sacct -P`, nor runs as orch prints them"
                ]
            )
        trace = plain_csv.parse(text, source, unit)
    else:
        trace = {"runs": past_runs, "sacct": sacct, "pollux": pollux}[kind].parse(text, source)
        if unit is not None:
            note = f"--unit is of no use here: {source} says the unit itself"
            trace = replace(trace, notes=(*trace.notes, note))
    if not trace.jobs:
        # Of the notes only those about this source say why; the others are about how it was read.
        said = "; ".join(note for note in trace.notes if source in note)
        raise TraceError([f"{source}: holds no job that can be replayed" + (f": {said}" if said else "")])
    return trace
