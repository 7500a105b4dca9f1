"""How far the bandwidth model is from published and measured all-reduce bandwidths.

`python benchmarks/bandwidth_table.py` prints the table; with `--write` it replaces the one in docs/bandwidth-model.md.
"""

from __future__ import annotations

import argparse
import math
import sys
from dataclasses import dataclass
from pathlib import Path

from orchestrator.hardware.model import Gpu, Nic, Shape, all_to_all
from orchestrator.placement.bandwidth import ShapeLinks, Span, predict

DOCUMENT = Path(__file__).resolve().parents[1] / "docs" / "bandwidth-model.md"
BEGIN, END = "<!-- table: benchmarks/bandwidth_table.py --write -->", "<!-- end of table -->"
TOLERANCE = 0.15


def shape(model: str, gpus: int, link: str, nics: int = 0, rate_gbps: float = 0.0, near: bool = True) -> Shape:
    adapters = tuple(
        Nic(
            f"mlx5_{i}",
            near=tuple(range(i * gpus // nics, (i + 1) * gpus // nics)) if near else (),
            rate_gbps=rate_gbps,
        )
        for i in range(nics)
    )
    return Shape(tuple(Gpu(i, model) for i in range(gpus)), all_to_all(gpus, link), adapters)


def dgx1() -> Shape:
    """The hybrid cube mesh of DGX-1 and of NDv2: six NVLinks a GPU, and none between most pairs of the two halves."""
    pairs = {(0, 1): 1, (0, 2): 1, (0, 3): 2, (0, 4): 2, (1, 2): 2, (1, 3): 1, (1, 5): 2, (2, 3): 2, (2, 6): 1,
             (3, 7): 1, (4, 5): 1, (4, 6): 1, (4, 7): 2, (5, 6): 2, (5, 7): 1, (6, 7): 2}  # fmt: skip
    links = tuple(f"NV{pairs[a, b]}" if (a, b) in pairs else "SYS" for a in range(8) for b in range(a + 1, 8))
    return Shape(tuple(Gpu(i, "V100") for i in range(8)), links)


@dataclass(frozen=True)
class Case:
    """One machine and what others saw on it, GB/s of bus bandwidth; `low` and `high` where several are known."""

    name: str
    shape: Shape
    ranks: int
    span: Span
    low: float
    high: float
    source: str
    threshold: bool = False
    """The figure is what operators accept at least, not what was measured."""

    @property
    def predicted(self) -> float:
        links = ShapeLinks(self.shape)
        per_node = min(self.ranks, len(self.shape.gpus))
        return predict(links.of((1 << per_node) - 1), self.ranks, self.span).busbw

    @property
    def error(self) -> float:
        """The relative error against the nearer end of what was seen; 0 inside it. A threshold bounds from below
        only."""
        nearest = min(max(self.predicted, self.low), self.high)
        if self.threshold and self.predicted > self.low:
            return self.predicted / self.low - 1
        return self.predicted / nearest - 1


H100 = shape("H100", 8, "NV18", 8, 400)
ONE = Span(1)
CASES = (
    Case("8 x V100, DGX-1 mesh", dgx1(), 8, ONE, 110, 110, "azurehpc-health-checks nd40rs_v2", True),
    Case("8 x A100, NVSwitch", shape("A100", 8, "NV12"), 8, ONE, 228, 235, "azurehpc nd96asr_v4, ml-engineering, OCI"),
    Case("2 x A100, NVLink bridge", shape("A100", 2, "NV12"), 2, ONE, 193, 193, "azurehpc nc48ads_v4", True),
    Case("4 x A100, PCIe between two bridged pairs", Shape(tuple(Gpu(i, "A100") for i in range(4)),
         ("NV12", "NODE", "NODE", "NODE", "NODE", "NV12")), 4, ONE, 25, 25, "azurehpc nc96ads_v4", True),
    Case("8 x H100, NVSwitch", H100, 8, ONE, 460, 460, "azurehpc nd96isr_h100_v5", True),
    Case("8 x H200, NVSwitch", shape("H200", 8, "NV18"), 8, ONE, 431, 482, "azurehpc nd96isr_h200_v5, ml-engineering"),
    Case("2 nodes of 8 x H100, 8 x 400 Gb/s", H100, 16, Span(2), 448, 488, "OCI (RoCE), AWS p5 (EFA)"),
    Case("8 nodes of 8 x H100, 8 x 400 Gb/s", H100, 64, Span(8), 386, 386, "coreweave/nccl-tests (with SHARP)"),
    Case("4 nodes of 8 x A100, 8 x 200 Gb/s", shape("A100", 8, "NV12", 8, 200), 32, Span(4), 185, 185, "OCI", True),
    Case("4 nodes of 8 x B200, 8 x 400 Gb/s", shape("B200", 8, "NV18", 8, 400), 32, Span(4), 377, 377,
         "awsome-distributed-ai"),
    Case("2 nodes of 8 x B300, 16 x 400 Gb/s", shape("B300", 8, "NV18", 16, 400), 16, Span(2), 654, 751,
         "awsome-distributed-ai, 16 and 64 GiB"),
    Case("GB200 NVL72, one rack", shape("GB200", 72, "NV18", 72, 400), 72, ONE, 835, 847, "coreweave/nccl-tests"),
    Case("GB300 NVL72, one rack", shape("GB300", 72, "NV18", 72, 800), 72, ONE, 937, 937,
         "Azure sku_performance_baseline"),
    Case("2 racks of GB200 NVL72", shape("GB200", 72, "NV18", 72, 400), 144, Span(2), 810, 810, "coreweave/nccl-tests"),
    Case("20 racks of GB200 NVL72", shape("GB200", 72, "NV18", 72, 400), 1440, Span(20), 405, 405,
         "coreweave/nccl-tests"),
    Case("2 x H200, NVLink", shape("H200", 2, "NV18"), 2, ONE, 332, 332, "measured here"),
    Case("2 x H200, shared memory", shape("H200", 2, "PHB"), 2, ONE, 28, 28, "measured here"),
    Case("2 x H200, sockets", Shape((Gpu(0, "H200"),), (), (Nic("lo", rate_gbps=1000),)), 2, Span(2), 3.6, 4.2,
         "measured here"),
)  # fmt: skip


def table() -> str:
    rows = ["| machine | predicted GB/s | seen GB/s | off by | source |", "|---|---|---|---|---|"]
    for case in CASES:
        seen = f"{case.low:g}" if case.low == case.high else f"{case.low:g} to {case.high:g}"
        miss = "" if abs(case.error) <= TOLERANCE else " **(misses)**"
        source = f"{case.source}{', a threshold' if case.threshold else ''}"
        rows.append(f"| {case.name} | {case.predicted:.3g} | {seen} | {case.error:+.0%}{miss} | {source} |")
    missed = sum(abs(case.error) > TOLERANCE for case in CASES)
    rows += ["", f"{len(CASES) - missed} of {len(CASES)} within {TOLERANCE:.0%}."]
    return "\n".join(rows)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="replace the table in docs/bandwidth-model.md")
    text = table()
    print(text)
    if parser.parse_args().write:
        before, _, rest = DOCUMENT.read_text().partition(BEGIN)
        _, _, after = rest.partition(END)
        DOCUMENT.write_text(f"{before}{BEGIN}\n{text}\n{END}{after}")
    assert all(math.isfinite(case.predicted) for case in CASES)
    return 0


if __name__ == "__main__":
    sys.exit(main())
