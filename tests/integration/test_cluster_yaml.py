"""The cluster.yaml that we ship is one that `ray up` accepts as it is, and that orch reads."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from orchestrator.config import load_config

ROOT = Path(__file__).resolve().parents[2]


def test_ray_accepts_the_shipped_cluster_yaml_as_it_is() -> None:
    util = pytest.importorskip("ray.autoscaler._private.util")
    declared = yaml.safe_load((ROOT / "cluster.yaml").read_text())
    prepared = util.prepare_config(declared)
    util.validate_config(prepared)
    assert prepared["provider"]["worker_ips"] == ["10.0.0.2", "10.0.0.3"]
    assert prepared["metadata"] == declared["metadata"]


def test_ray_refuses_orchs_keys_outside_of_metadata() -> None:
    util = pytest.importorskip("ray.autoscaler._private.util")
    declared = yaml.safe_load((ROOT / "cluster.yaml").read_text())
    declared["orch"] = declared.pop("metadata")["orch"]
    with pytest.raises(Exception, match="Additional properties are not allowed"):
        util.validate_config(util.prepare_config(declared))


def test_orch_reads_the_shipped_cluster_yaml(tmp_path: Path) -> None:
    config = load_config({"HOME": str(tmp_path)}, ROOT, {})
    assert config.address is None, "a fresh clone must not look for machines that are not there"
    assert (config.lease, config.code_limit, config.log_limit) == (25.0, 256 * 2**20, 64 * 2**20)
    assert config.origins["lease"].startswith("cluster.yaml:")
