"""What the tests of hardware files share: small ones of some formats, and how one is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.hardware.formats import FormatError, parse

FIXTURES = Path(__file__).parents[2] / "fixtures" / "hardware"


def near(node):
    return {nic.name: nic.near for nic in node.nics}


def links(node):
    return [link for _, _, link in node.shape.pairs()]


def refused(text, filename="x"):
    with pytest.raises(FormatError) as caught:
        parse(text, filename)
    return caught.value.line, caught.value.message


TWO = "\tGPU0\tGPU1\tCPU Affinity\nGPU0\t X \tNV2\t0-7\nGPU1\tNV2\t X \t0-7\n"


LISTED = "CA   1  1 0x00000000000000aa 4x EDR - SW   2 10 0x00000000000000bb ( 'n1 HCA-1' - 'leaf one' )\n"


TREE = """
switches:
  top: {switches: [l1, l2], labels: {zone: z1}}
  l1: {labels: {row: 1}}
  l2: {}
blocks:
- {switch: l1, nodes: ["n[1-2]"], annotations: {accelerator.x/domain: nv1, accelerator.x/sub-domain: s1}}
- {switch: l2, nodes: [n3]}
"""
