"""An attempt's transport on the controller: what its nodes told of their links, held against what its placement promised."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from orchestrator.hardware.model import Cluster
from orchestrator.health import transport
from orchestrator.health.facts import NodeFacts
from orchestrator.health.failure import Failure
from orchestrator.health.nccl_log import NcclLog
from orchestrator.health.verdict import verdict
from orchestrator.placement.promise import promised
from orchestrator.placement.values import Placement
from orchestrator.spec import JobSpec


@dataclass(frozen=True)
class Judged:
    """A verdict, and what follows from it."""

    value: dict[str, Any]
    """As it is recorded and shown."""
    note: str | None
    """An event's text, where the transport is worse than planned."""
    failure: Failure | None = None
    """Why the attempt ends, where the job wants it to end for that."""


def judge(
    spec: JobSpec,
    placement: Placement,
    cluster: Cluster,
    told: Mapping[str, NcclLog],
    info: Mapping[str, Mapping[str, Any]],
    env: Mapping[str, str],
) -> Judged:
    """The verdict on an attempt; `told` is by node, `info` what each node's agent said of it, `env` what its ranks were given."""
    seen = transport.combine(told.values())
    # What is known of the nodes is for the causes of a bad verdict; without it there are fewer.
    facts = {part.node: info.get(part.node, {}).get("host") or NodeFacts(part.node) for part in placement.nodes}
    found = verdict(promised(placement, cluster), seen, env, facts)
    if missing := [part.node for part in placement.nodes if part.node not in told]:
        found = replace(found, reason=f"{found.reason}; nothing was heard of {', '.join(missing[:4])}")
    value = transport.to_json(found, seen)
    if found.word != "worse than planned":
        return Judged(value, None)
    sentence = transport.sentence(value)
    if spec.on_degraded != "fail":
        return Judged(value, sentence)
    by_job = transport.set_by(found, spec.env)
    return Judged(value, sentence, Failure("degraded", sentence, cause="user" if by_job else "infra"))
