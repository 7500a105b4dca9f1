"""Measured speeds in files: Pollux's folder of applications, Gavel's table."""

from __future__ import annotations

import json
from pathlib import Path

from orchestrator.scheduling.simulate import gavel_profile, pollux_profile
from orchestrator.scheduling.simulate.pollux_profile import Point
from orchestrator.scheduling.simulate.speed import Profile
from orchestrator.scheduling.simulate.traces.errors import TraceError
from orchestrator.scheduling.simulate.traces.rows import Rows, number, whole

GAVEL = "simulation_throughputs.json"


def read_profiles(path: Path, gpu: str = "v100") -> Profile:
    """The profiles in a folder: an application's `placements.csv` and `scalability.csv` in a folder of its name, or Gavel's
    `simulation_throughputs.json` (also named itself), of which one kind of GPU is taken. Raises TraceError."""
    table = path if path.is_file() else path / GAVEL
    if table.is_file():
        return _gavel(table, gpu)
    folders = sorted(folder for folder in path.glob("*") if (folder / "placements.csv").is_file())
    if not folders:
        raise TraceError([f"{path}: holds neither {GAVEL} nor folders with a placements.csv"])
    return pollux_profile.profile_of({folder.name: _application(folder) for folder in folders})


def beside(trace: Path) -> Path | None:
    """The folder of applications' profiles that lies with a trace: `profiles/` in its folder or next to that (as in Pollux's
    artifact), or its folder itself."""
    here = trace.absolute().parent
    places = (here / "profiles", here.parent / "profiles", here)
    return next((place for place in places if next(place.glob("*/placements.csv"), None) is not None), None)


def _gavel(path: Path, gpu: str) -> Profile:
    try:
        table = json.loads(path.read_text())
        kinds = sorted(kind for kind in table if f"{kind}_unconsolidated" in table)
        if gpu not in kinds:
            raise TraceError([f"{path}: has no GPU {gpu}: it has {', '.join(kinds) or 'none'}"])
        return gavel_profile.profile_of(table, gpu)
    except OSError as error:
        raise TraceError([f"{path}: {error.strerror or 'cannot be read'}"]) from None
    except json.JSONDecodeError as error:
        raise TraceError([f"{path}:{error.lineno}: {error.msg}"]) from None
    except (AttributeError, TypeError):
        raise TraceError([f"{path}: is no table of throughputs by GPU and model"]) from None


def _application(folder: Path) -> tuple[list[tuple[str, Point]], list[tuple[int, int, Point]]]:
    by_key: list[tuple[str, Point]] = []
    rows = _rows(folder / "placements.csv", "placement", "local_bsz", "step_time", "sync_time")
    for _ in rows:
        key, point = rows.read("placement", _key), _point(rows)
        if key is not None and point is not None:
            by_key.append((key, point))
    rows.finish()
    by_size: list[tuple[int, int, Point]] = []
    if (folder / "scalability.csv").is_file():
        rows = _rows(folder / "scalability.csv", "num_nodes", "num_replicas", "local_bsz", "step_time", "sync_time")
        for _ in rows:
            nodes, gpus, point = rows.read("num_nodes", whole), rows.read("num_replicas", whole), _point(rows)
            if nodes is not None and gpus is not None and point is not None:
                by_size.append((nodes, gpus, point))
        rows.finish()
    return by_key, by_size


def _rows(path: Path, *titles: str) -> Rows:
    try:
        rows = Rows(path.read_text(), str(path))
    except OSError as error:
        raise TraceError([f"{path}: {error.strerror or 'cannot be read'}"]) from None
    rows.require(*titles)
    return rows


def _point(rows: Rows) -> Point | None:
    samples, step, sync = (rows.read(title, number) for title in ("local_bsz", "step_time", "sync_time"))
    return None if samples is None or step is None or sync is None else (samples, step, sync)


def _key(text: str) -> str:
    if not text.isdigit() or "0" in text:
        raise ValueError("must be digits of 1 to 9, the GPUs on each node")
    return text
