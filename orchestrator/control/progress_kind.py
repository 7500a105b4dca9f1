"""What a rank's progress is counted in, and what one look at it, or two, then say. Pure."""

from __future__ import annotations

from typing import Literal

from orchestrator.control.rank_progress import RankProgress

Kind = Literal["steps", "reports", "batches", "log"]


def count_of(look: RankProgress, kind: Kind | None) -> int:
    if kind == "log":
        return int(look.logged.get("step", 0))
    return 0 if kind is None else int(getattr(look, kind))


def newest_at(look: RankProgress, kind: Kind | None) -> int:
    return {"steps": look.step_at, "reports": look.report_at, "batches": look.batch_at}.get(kind or "", look.logged_at)


def first_at(look: RankProgress, kind: Kind | None) -> int:
    firsts = {"steps": look.first_step_at, "reports": look.first_report_at, "batches": look.first_batch_at}
    return firsts.get(kind or "", look.logged_at)


def saved_count(look: RankProgress, kind: Kind | None) -> int:
    saved = {"steps": look.saved_steps, "reports": look.saved_reports, "batches": look.saved_batches}
    return saved.get(kind or "", 0)


def samples_of(look: RankProgress, kind: Kind | None) -> int:
    if look.reported_samples:
        return look.reported_samples
    return look.samples if kind == "steps" else look.batch_samples if kind == "batches" else 0


def was_read(look: RankProgress, kind: Kind) -> bool:
    """Whether a checkpoint was read before the first step; of several reads only the time of the newest is known."""
    return look.loads > 1 or (look.loads == 1 and look.load_at <= first_at(look, kind))


def step_time(before: RankProgress, look: RankProgress, kind: Kind | None) -> float | None:
    steps = count_of(look, kind) - count_of(before, kind)
    return (
        (newest_at(look, kind) - newest_at(before, kind)) / steps / 1e9
        if steps > 0 and newest_at(before, kind)
        else None
    )


def own_time(before: RankProgress, look: RankProgress, kind: Kind | None) -> float | None:
    # Where there was no step at the first look, the first step is where it begins.
    step = step_time(before, look, kind) or mean_step(look, kind)
    return without_waiting(step, look.own_time, look.comm_time)


def without_waiting(step: float | None, own: float, reducing: float) -> float | None:
    """Of a step's seconds those that are the rank's own: all but DDP's all-reduces, and its compute before these at the least.

    Both in nanoseconds. All ranks leave an all-reduce together, so who spends least in it came last, whatever kept it: its
    data, its forward pass, or what the script does before that. Compute alone does not tell: kernels that queue up behind
    others on a late GPU take less time than those that a GPU which keeps up waits for.
    """
    return step if step is None or not own else max(step - reducing / 1e9, own / 1e9)


def mean_step(look: RankProgress, kind: Kind | None) -> float | None:
    count = count_of(look, kind)
    return (newest_at(look, kind) - first_at(look, kind)) / (count - 1) / 1e9 if count > 1 else None
