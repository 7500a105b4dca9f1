"""Files of other people's making: whatever is in them is read or refused in words, soon, and without much memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rows import fault, representative

from orchestrator.config import ConfigError, load_config
from orchestrator.config_keys import KEYS
from orchestrator.hardware.formats import FormatError, read_hardware

SETTINGS = settings(
    max_examples=int(os.environ.get("ORCH_FUZZ_EXAMPLES", "150")),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
PLAIN = """
10s|0|-1|1e999|nan|true|null|~|sqlite:////x|postgresql://a:b@c/d|http://x|10.0.0.1:6379|[a, b]|{a: b}|&a x|*a
!!python/object/apply:os.system [id]|<<: *a|'|"|..|/|~root/x|²|; rm -rf /|$(id)
"""
WORDS = [*PLAIN.strip().replace("\n", "|").split("|"), "9" * 400, "\t", "\x00", "\x1b[2J"]
KEY = st.sampled_from([*(name.split(".")[0] for name in KEYS), "orch", "metadata", "x", "shares"]) | st.text(max_size=4)
VALUE = st.recursive(
    st.sampled_from(WORDS) | st.text(max_size=8),
    lambda inner: st.dictionaries(KEY, inner, max_size=3) | st.lists(inner, max_size=3),
    max_leaves=8,
)


def written(value: Any) -> str:
    """As YAML, in its flow form; the words as they stand."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {written(one)}" for key, one in value.items()) + "}"
    return "[" + ", ".join(map(written, value)) + "]" if isinstance(value, list) else value


def refusal(read: Callable[[], object], error: type[Exception]) -> str:
    """What it is refused with; empty where it is taken."""
    try:
        read()
    except error as refused:
        return str(refused)
    return ""


@pytest.fixture
def complaints(tmp_path: Path) -> Callable[[bytes], list[str]]:
    """The lines of what is said of a cluster.yaml."""

    def load(data: bytes) -> list[str]:
        (tmp_path / "cluster.yaml").write_bytes(data)
        return refusal(lambda: load_config({"HOME": str(tmp_path)}, tmp_path, {}), ConfigError).splitlines()

    return load


def are_harmless(lines: list[str]) -> bool:
    return all((line.isprintable() and "cluster.yaml" in line) or line.startswith("... and") for line in lines)


@SETTINGS
@given(st.dictionaries(KEY, VALUE, max_size=4))
def test_any_values_of_cluster_yaml_are_taken_or_refused(complaints, value: dict[str, Any]) -> None:
    text = f"metadata:\n  orch: {written(value)}\n"
    assert are_harmless(complaints(text.encode("utf-8", "surrogatepass")))


@SETTINGS
@given(st.binary(max_size=200) | st.text(max_size=100).map(lambda text: text.encode("utf-8", "surrogatepass")))
def test_any_bytes_of_cluster_yaml_are_taken_or_refused(complaints, data: bytes) -> None:
    assert are_harmless(complaints(data))


@SETTINGS
@given(st.sampled_from([name for name in KEYS if name != "home"]), st.sampled_from(WORDS) | st.text(max_size=20))
def test_any_value_of_a_variable_is_taken_or_refused(tmp_path: Path, key: str, value: str) -> None:
    name = "ORCH_" + key.replace(".", "_").upper()
    said = refusal(lambda: load_config({"HOME": str(tmp_path), name: value}, tmp_path, {}), ConfigError)
    assert not said or said.startswith(name)
    assert said.replace("\n", "").isprintable()


@SETTINGS
@given(VALUE)
def test_any_hardware_of_cluster_yaml_is_read_or_refused(tmp_path: Path, value: Any) -> None:
    path = tmp_path / "cluster.yaml"
    path.write_bytes(f"metadata:\n  orch:\n    hardware: {written(value)}\n".encode("utf-8", "surrogatepass"))
    assert "Traceback" not in refusal(lambda: read_hardware([path]), FormatError)


def bombs() -> dict[str, str]:
    """Small files that grow when they are read: references to references, and nesting without an end."""
    aliases = "a0: &a0 lol\n" + "\n".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 12))
    entities = "".join(f'<!ENTITY a{i} "{f"&a{i - 1};" * 10}">' for i in range(1, 12))
    return {
        "aliases.yaml": aliases,
        "deep.yaml": "metadata: " + "[" * 500_000,
        "deep.json": "[" * 500_000,
        "maps.yaml": "{a: " * 200_000,
        "wide.yaml": "metadata: {orch: {" + ", ".join(f"k{i}: 1" for i in range(60_000)) + "}}",
        "merge.yaml": "a: &a {b: 1}\nmetadata:\n  orch:\n    <<: *a\n",
        "laughs.xml": f'<?xml version="1.0"?><!DOCTYPE s [<!ENTITY a0 "lol">{entities}]><system version="1">&a11;</system>',
        "outside.xml": '<!DOCTYPE s [<!ENTITY x SYSTEM "file:///etc/passwd">]><system version="1"><cpu host="&x;"/></system>',
        "deep.xml": "<system>" + "<a>" * 100_000,
        "list.conf": "SwitchName=s Nodes=a[0-999999999]\n",
        "lists.conf": "SwitchName=s Nodes=a[0-9][0-9][0-9][0-9][0-9][0-9][0-9][0-9][0-9]\n",
        "long.csv": "node,leaf\n" + "a" * 900_000 + ",l\n",
    }


READS = """
import json, resource, sys, time
from pathlib import Path
from orchestrator.config import ConfigError, load_config
from orchestrator.hardware.formats import FormatError, read_hardware
from orchestrator.jobfile import JobFileError, load_job
folder = Path(sys.argv[1])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
slow = {}
for path in sorted(folder.iterdir()):
    for reads, refusal in (
        (lambda: load_job(path), JobFileError),
        (lambda: load_config({"HOME": "/", "ORCH_CONFIG": str(path)}, folder, {}), ConfigError),
        (lambda: read_hardware([path]), FormatError),
    ):
        began = time.process_time()
        try:
            reads()
        except refusal as error:
            assert len(str(error)) < 50_000, path
        slow[path.name] = max(slow.get(path.name, 0), time.process_time() - began)
grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
print(json.dumps({"slow": slow, "grown_mb": grown / 1024}))
"""


@fault(34)
@representative
def test_a_bomb_takes_neither_long_nor_much_memory(tmp_path: Path) -> None:
    for name, text in bombs().items():
        (tmp_path / name).write_text(text)
    done = subprocess.run(
        [sys.executable, "-c", READS, tmp_path], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr[-2000:]
    told = json.loads(done.stdout)
    assert {name: seconds for name, seconds in told["slow"].items() if seconds > 2} == {}
    assert told["grown_mb"] < 200
