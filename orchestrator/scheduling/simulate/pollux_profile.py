"""Step times that were measured for every placement: the profiles of Pollux's simulator (placements.csv,
scalability.csv).

A placement's key is what petuum/adaptdl (branch osdi21-artifact, simulator/applications.py) makes of it: the GPUs on
each node as digits, in the order of the ring, turned so that the number is smallest: 2, 1 and 1 GPUs on three nodes are
`112`. Between the measured batch sizes of a key the step time is linear. Where the key was not measured (more than four
nodes, more than four GPUs a node), the means by nodes and GPUs tell, together with scalability.csv: linear in GPUs, then
in nodes.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from orchestrator.scheduling.simulate.jobs import Job

Point = tuple[float, float, float]
"""Samples a GPU, seconds of a step, of which seconds of synchronisation."""

MOST_SAMPLES = {"yolov3": 8}
"""What fits a GPU in Pollux's experiments, where more was measured."""

STEPS = {
    ("bert", 384): 480.0,
    ("cifar10", 2048): 3250.0,
    ("cifar10", 4096): 2170.0,
    ("deepspeech2", 320): 2280.0,
    ("deepspeech2", 640): 1390.0,
    ("imagenet", 3200): 42100.0,
    ("imagenet", 6400): 24400.0,
    ("ncf", 32768): 2210.0,
    ("yolov3", 64): 15970.0,
}
"""Steps to the end by application and batch size: the workloads do not say them. From the training runs of the same
artifact (simulator/traces/*/validation-*.csv: iterations, or progress over statistical gain); those of cifar10, ncf and yolov3
fitted so that the completions in its results-jobload/tiresias-1.0 come out, and deepspeech2's moved towards them (the training
runs say 14,577 for yolov3 and 3,178 for cifar10 at 2048). So agreement with that policy is partly made; with others it is not."""

MEASURED_GPUS = (1, 2, 4, 6, 8, 12, 16, 24, 32, 48)
STEP_S = {
    ("bert", 384): (29.1, 13.9, 7.01, 6.17, 5.17, 3.21, 2.78, 2.45, 2.04, 1.88),
    ("cifar10", 2048): (1.4, 0.838, 0.394, 0.268, 0.26, 0.189, 0.154, 0.202, 0.222, 0.21),
    ("cifar10", 4096): (2.81, 1.67, 0.79, 0.513, 0.449, 0.284, 0.223, 0.223, 0.225, 0.284),
    ("deepspeech2", 320): (10.2, 5.2, 2.62, 1.81, 1.55, 1.38, 1.27, 1.2, 1.14, 1.09),
    ("deepspeech2", 640): (20.3, 10.3, 5.19, 3.32, 2.73, 1.79, 1.48, 1.3, 1.39, 1.15),
    ("imagenet", 3200): (14.8, 7.45, 4.0, 2.58, 2.02, 1.36, 1.05, 0.742, 0.695, 0.631),
    ("imagenet", 6400): (29.5, 14.9, 7.99, 5.1, 4.04, 2.64, 2.08, 1.42, 1.09, 0.784),
    ("ncf", 32768): (0.0213, 0.0266, 0.0177, 0.0336, 0.043, 0.0287, 0.0308, 0.0344, 0.0384, 0.0507),
    ("yolov3", 64): (2.59, 1.33, 0.883, 1.8, 1.64, 1.11, 1.17, 1.09, 1.49, 0.912),
}
"""Seconds of a step by application, batch size and as many GPUs as MEASURED_GPUS says, on full nodes of four T4: what
PolluxProfile makes of the artifact's profiles. For a workload alone, without them."""


def usual_s(job: Job) -> float | None:
    """How long a job of Pollux's workloads takes on full nodes of four T4; None where that was never measured."""
    measured = STEP_S.get((job.model or "", job.batch_size or 0))
    if job.steps is None or measured is None:
        return None
    points = [(gpus, (step, 0.0)) for gpus, step in zip(MEASURED_GPUS, measured, strict=True)]
    return job.steps * _linear(points, job.gpus)[0]


@dataclass
class PolluxProfile:
    """The measurements of some applications, by their name."""

    placements: Mapping[str, Mapping[str, Sequence[Point]]]
    """By application and key: points in order of samples."""
    scalability: Mapping[str, Mapping[tuple[int, int], Sequence[Point]]]
    """By application and (nodes, GPUs)."""
    _known: dict[tuple[str, str, int, int], float] = field(default_factory=dict)

    def knows(self, job: Job) -> bool:
        return job.model in self.placements and bool(job.batch_size)

    def seconds(self, job: Job, counts: Sequence[int], ideal: Sequence[int]) -> float:
        """Its duration where it has one, scaled by the step times here and at its ideal placement; else steps times
        step time."""
        step = self.step_s(job, counts)
        if job.steps is not None:
            return job.steps * step
        if job.duration_s is None:
            raise ValueError(f"job {job.id}: nobody knows how many steps {job.model} of {job.batch_size} takes")
        return job.duration_s * step / self.step_s(job, ideal)

    def step_s(self, job: Job, counts: Sequence[int]) -> float:
        """Seconds for a step of the whole batch at a placement, by as many passes as fit the GPUs."""
        assert job.model is not None
        assert job.batch_size is not None
        key = key_of(counts)
        asked = (job.model, key, len(counts), job.batch_size)
        if asked not in self._known:
            self._known[asked] = self._step(job.model, key, counts, job.batch_size)
        return self._known[asked]

    def _step(self, model: str, key: str, counts: Sequence[int], batch: int) -> float:
        gpus = sum(counts)
        points = self.placements[model].get(key)
        everything = [p for each in self.placements[model].values() for p in each]
        most = MOST_SAMPLES.get(model) or max(samples for samples, _, _ in everything)
        each_gpu = math.ceil(batch / gpus - 1e-8)
        passes = math.ceil(each_gpu / most - 1e-8)
        samples = math.ceil(each_gpu / passes - 1e-8)
        step, sync = _at(points, samples) if points else self._between(model, len(counts), gpus, samples)
        # All passes but the last skip the synchronisation; a batch that was rounded up takes fewer steps.
        return (step + (passes - 1) * (step - sync)) * batch / (samples * passes * gpus)

    def _between(self, model: str, nodes: int, gpus: int, samples: float) -> tuple[float, float]:
        table: dict[int, dict[int, tuple[float, float]]] = defaultdict(dict)
        for (at_nodes, at_gpus), points in self.scalability[model].items():
            table[at_nodes][at_gpus] = _at(points, samples)
        rows: list[tuple[float, tuple[float, float]]] = []
        for at_nodes, row in sorted(table.items()):
            if min(row) <= gpus <= max(row):
                rows.append((at_nodes, _linear(sorted(row.items()), gpus)))
        if not rows:
            widest = table[max(table)]
            return widest[max(widest)]
        return _linear(rows, nodes)


def key_of(counts: Sequence[int]) -> str:
    """The placement's key: `112` for 2, 1 and 1 GPUs on three nodes."""
    turned = min(tuple(counts[i:]) + tuple(counts[:i]) for i in range(len(counts)))
    return "".join(map(str, turned))


def profile_of(
    tables: Mapping[str, tuple[Iterable[tuple[str, Point]], Iterable[tuple[int, int, Point]]]],
) -> PolluxProfile:
    """From the rows of each application's placements.csv (key, point) and scalability.csv (nodes, GPUs, point)."""
    placements: dict[str, dict[str, list[Point]]] = {}
    scalability: dict[str, dict[tuple[int, int], list[Point]]] = {}
    for model, (by_key, by_size) in tables.items():
        keyed: dict[str, list[Point]] = defaultdict(list)
        for key, point in by_key:
            keyed[key].append(point)
        placements[model] = {key: sorted(points) for key, points in keyed.items()}
        sized: dict[tuple[int, int], dict[float, list[Point]]] = defaultdict(lambda: defaultdict(list))
        for key, points in placements[model].items():
            digits = [int(digit) for digit in key]
            for point in points:
                sized[len(digits), sum(digits)][point[0]].append(point)
        for nodes, gpus, point in by_size:
            sized[nodes, gpus][point[0]].append(point)
        scalability[model] = {size: sorted(_mean(p) for p in points.values()) for size, points in sized.items()}
    return PolluxProfile(placements, scalability)


def _mean(points: Sequence[Point]) -> Point:
    count = len(points)
    return (points[0][0], sum(p[1] for p in points) / count, sum(p[2] for p in points) / count)


def _at(points: Sequence[Point], samples: float) -> tuple[float, float]:
    return _linear([(at, (step, sync)) for at, step, sync in points], samples)


def _linear(points: Sequence[tuple[float, tuple[float, float]]], x: float) -> tuple[float, float]:
    """Between the two neighbours of x, or the nearest point outside of all."""
    position = bisect_left([at for at, _ in points], x)
    if position == 0 or position == len(points):
        return points[min(position, len(points) - 1)][1]
    (x0, (a0, b0)), (x1, (a1, b1)) = points[position - 1], points[position]
    share = (x - x0) / (x1 - x0)
    return a0 + (a1 - a0) * share, b0 + (b1 - b0) * share
