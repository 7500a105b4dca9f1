"""A checkpoint folder over several hosts: one folder, or one on each."""

from __future__ import annotations

import pytest
from hosts import wait_until
from orchlab import SLEEPS, Orch

pytestmark = [pytest.mark.lab, pytest.mark.ray, pytest.mark.timeout(150)]


def notes(orch: Orch, run: int) -> list[str]:
    return [event["reason"] for event in orch.show(run)["events"] if (event["reason"] or "").startswith("checkpoint:")]


def test_a_folder_that_each_host_has_for_itself_is_told_and_a_shared_one_is_not(orch: Orch) -> None:
    shared = orch.begins(SLEEPS, "3x1", "asleep", 3, job=f"checkpoint: {orch.lab.shared}/ckpt")
    orch("cancel", shared)
    own = orch.begins(SLEEPS, "3x1", "asleep", 3, job="checkpoint: /tmp/ckpt")
    wait_until(lambda: notes(orch, own), 30, "the run says what is wrong", every=0.2)
    (said,) = notes(orch, own)
    first, *others = [node["node"] for node in orch.show(own)["attempts"][0]["placement"]["nodes"]]
    assert said.startswith(f"checkpoint: {others[0]} and {others[1]} do not see what {first} writes in /tmp/ckpt")
    # It was looked at before, by the same nodes.
    assert notes(orch, shared) == []
    assert not list((orch.lab.shared / "ckpt").glob(".orch-*"))
    orch("cancel", own)
