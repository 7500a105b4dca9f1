"""Whatever a file holds, reading it ends soon, in a Cluster or in a FormatError."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.hardware.as_json import to_json
from orchestrator.hardware.formats import FORMATS, FormatError, parse
from orchestrator.hardware.model import Cluster

FIXTURES = [path.read_text() for path in sorted((Path(__file__).parents[1] / "fixtures" / "hardware").iterdir())]
REAL = Path(os.environ.get("ORCH_REAL_FILES", "")) if os.environ.get("ORCH_REAL_FILES") else None
if REAL is not None:
    FIXTURES += [path.read_text()[:20_000] for path in sorted(REAL.glob("[hf]a*/*")) if path.suffix != ".source"]
EXAMPLES = int(os.environ.get("ORCH_FUZZ_EXAMPLES", "60"))

WORDS = st.sampled_from(
    [
        "GPU0",
        "GPU1",
        "NIC0",
        "X",
        "NV4",
        "SYS",
        "OK",
        "\t",
        "\n",
        " ",
        "CPU Affinity",
        "SwitchName=",
        "Nodes=",
        "[",
        "]",
        "n[1-3]",
        ",",
        "\\\n",
        "#",
        "<system>",
        "</system>",
        "<cpu>",
        "<pci busid='1'>",
        "<gpu/>",
        "</cpu>",
        "&a;",
        "<<: *a",
        "Switch 1 ",
        '"S-1"',
        '"H-1"',
        "[1]",
        "# ",
        "CA 1 1 0x1 4x EDR",
        " - ",
        "switches:",
        "- ",
        "{",
        "}",
        ": ",
        "&a ",
        "*a",
        "blocks:",
        "nodes:",
        "gpus: 8xH100",
        "islands: ",
        "node,leaf",
        "a,b",
        '"',
        "é",
        "\x00",
        "\x1b[4m",
        "0",
        "-1",
        "11111111111111111111111",
    ]
)
TEXTS = st.one_of(
    st.text(max_size=200), st.lists(WORDS, max_size=60).map("".join), st.lists(WORDS, max_size=60).map(" ".join)
)


def _read(text, read):
    try:
        cluster = read(text)
    except FormatError as error:
        refusal = error
    else:
        refusal = None
    if refusal is not None:
        assert refusal.message
        assert refusal.line is None or refusal.line >= 1
        return
    assert isinstance(cluster, Cluster)
    json.dumps(to_json(cluster))
    for node in cluster.nodes:
        assert len(cluster.path(node.name)) == len(cluster.levels)


@pytest.mark.parametrize("kind", FORMATS)
@settings(max_examples=EXAMPLES)
@given(text=TEXTS)
def test_any_text_is_read_or_refused(kind, text):
    _read(text, lambda t: FORMATS[kind](t, "node"))


@st.composite
def _damaged(draw):
    """A good file with a few of its parts cut, doubled, moved or replaced."""
    text = draw(st.sampled_from(FIXTURES))
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(text)))
        end = min(len(text), start + draw(st.integers(0, 60)))
        piece = draw(st.one_of(st.just(""), WORDS, st.just(text[start:end] * 2), st.text(max_size=5)))
        text = text[:start] + piece + text[end:]
    return text[: draw(st.one_of(st.just(len(text)), st.integers(0, len(text))))]


@settings(max_examples=EXAMPLES * 5)
@given(text=_damaged())
def test_a_damaged_file_is_read_or_refused(text):
    _read(text, lambda t: parse(t, "node"))


BIG = 100_000
PATHOLOGICAL = {
    "brackets": "[" * BIG,
    "braces": "{" * BIG,
    "block sequences": "- " * (BIG // 2),
    "keys": "? " * (BIG // 2),
    "blanks": "nodes:" + " " * BIG,
    "tabs": "GPU0" + "\t" * BIG,
    "columns": " ".join(f"GPU{i}" for i in range(9_000)),
    "rows": "GPU0 GPU1\n" + "GPU0 X SYS\n" * 8_000,
    "a wide matrix": "\t".join(["", *(f"GPU{i}" for i in range(180))])
    + "\n"
    + "\n".join("\t".join([f"GPU{i}", *("X" if i == j else "SYS" for j in range(180))]) for i in range(180)),
    "prefixes": "a: GPU0\n" * 12_000,
    "many prefixes": "\n".join(f"h{i}: GPU0" for i in range(9_000)),
    "elements": "<system>" + "<cpu>" * 30_000,
    "siblings": "<system><cpu>" + "<pci busid='1'><gpu/></pci>" * 3_500 + "</cpu></system>",
    "numbers": "<system><cpu numaid='" + "9" * BIG + "'/></system>",
    "commas": "SwitchName=a Nodes=" + "," * BIG,
    "hostlists": "SwitchName=a Nodes=" + "[1-9]" * 20_000,
    "wide hostlists": "SwitchName=a Nodes=" + ",".join(["n[1-99999]"] * 9_000),
    "many wide hostlists": "\n".join(f"SwitchName=s{i} Nodes=n[1-99999]" for i in range(3_000)),
    "equals": "SwitchName=" + "=" * BIG,
    "backslashes": "SwitchName=a \\\n" * 7_000,
    "a chain of switches": "\n".join(f"SwitchName=s{i} Switches=s{i + 1}" for i in range(3_000)),
    "quotes": 'Switch 1 "S-1"' + '"' * BIG,
    "ports": 'Switch 1 "S-1"\n' + '[1] "H-1"[1] # "a b"\n' * 4_000,
    "a port without end": 'Switch 1 "S-1"\n[1] "H-1"[1]' + "(" * BIG,
    "listed": "CA 1 1 0x1 4x EDR - SW 1 1 0x1 ( '" + "' - '" * 20_000,
    "a chain of leaves": "\n".join(
        f"SW {i} 1 0x{i:x} 4x EDR - SW {i + 1} 1 0x{i + 1:x} ( 'n{i}' - 'n{i + 1}' )" for i in range(1, 1_500)
    )
    + "\nCA 0 1 0xffffff 4x EDR - SW 1 1 0x1 ( 'h 1' - 'n1' )",
    "anchors": "a0: &a0 [x]\n" + "\n".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 60)),
    "anchored nodes": "b0: &a0 [x]\n"
    + "\n".join(f"b{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 60))
    + "\nblocks:\n- nodes: *a59",
    "merges": "a0: &a0 {x: 1}\n"
    + "\n".join(f"a{i}: &a{i}\n  <<: [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 19))
    + "\nnodes: 1",
    "cells": "node,leaf\n" + "," * BIG,
    "columns of a CSV": ",".join(f"c{i}" for i in range(15_000)) + "\n" + ",".join("1" for _ in range(15_000)),
    "quoted cells": "node,leaf\n" + '"' * BIG,
    "lines": "\n" * BIG,
    "comments": "node,leaf\n" + "#\n" * (BIG // 2),
    "zeros": "\x00" * BIG,
    "escapes": "\x1b[" * (BIG // 2),
}


@pytest.mark.parametrize("shape", PATHOLOGICAL)
def test_100_kilobytes_of_anything_take_less_than_two_seconds(shape):
    for kind in (None, *FORMATS):
        start = time.process_time()
        _read(PATHOLOGICAL[shape], lambda t, kind=kind: parse(t, "node") if kind is None else FORMATS[kind](t, "node"))
        assert time.process_time() - start < 2, kind
