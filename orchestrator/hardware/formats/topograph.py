"""What a topograph model (YAML) says: a tree of switches, blocks of nodes below them, and their NVLink domains.

`switches` is a mapping or a list of named ones, each with `switches`, `nodes`, `blocks` or `capacity_blocks` below
it; `blocks` (once `capacity_blocks`) hold nodes as hostlists. An NVLink domain is an annotation or label that says
accelerator, or `nvlink`. Labels of a switch hold for all nodes below it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from orchestrator.hardware.formats import switches
from orchestrator.hardware.formats.errors import FormatError
from orchestrator.hardware.formats.hostlist import expand
from orchestrator.hardware.formats.yaml_text import line_of, load, mapping, strings
from orchestrator.hardware.model import Cluster, Domain, Node


@dataclass
class _Model:
    text: str
    children: dict[str, list[str]] = field(default_factory=dict)
    leaves: dict[str, list[str]] = field(default_factory=dict)
    nvlink: dict[str, list[str]] = field(default_factory=dict)
    labels: dict[str, dict[str, str]] = field(default_factory=dict)
    """By node."""
    switch_labels: dict[str, dict[str, str]] = field(default_factory=dict)

    def nodes(self, value: Any, what: str) -> list[str]:
        """The nodes that a list of hostlists names."""
        try:
            found = [node for item in strings(value, what, self.text) for node in expand(item)]
        except ValueError as error:
            raise FormatError(line_of(self.text, what), f"{what}: {error}") from None
        for node in found:
            self.labels.setdefault(node, {})
        return found

    def join(self, domain: str, nodes: list[str]) -> None:
        held = self.nvlink.setdefault(domain, [])
        held.extend(dict.fromkeys(node for node in nodes if node not in set(held)))


def parse(text: str, name: str = "topograph") -> Cluster:
    """The nodes, switches and NVLink domains of the model. Raises FormatError where it is none, or contradicts
    itself."""
    document = load(text)
    if not isinstance(document, dict) or not document.keys() & {"switches", "blocks", "capacity_blocks"}:
        raise FormatError(None, "it has neither switches nor blocks")
    model = _Model(text)
    blocks = [*_named(document, "blocks", text), *_named(document, "capacity_blocks", text)]
    below: dict[str, str] = {}
    for switch, entry in _named(document, "switches", text):
        model.children.setdefault(switch, []).extend(strings(entry.get("switches"), "switches", text))
        model.leaves.setdefault(switch, []).extend(model.nodes(entry.get("nodes"), "nodes"))
        model.switch_labels[switch] = _texts(entry, text)
        for key in ("blocks", "capacity_blocks"):
            below |= dict.fromkeys(strings(entry.get(key), key, text), switch)
    for block, entry in blocks:
        _add_block(model, entry, entry.get("switch", below.get(block)))
    for node, entry in _named(document, "nodes", text):
        model.labels.setdefault(node, {}).update(_texts(entry, text))
        if domain := _nvlink_domain(entry, text):
            model.join(domain, [node])
    if not model.labels:
        raise FormatError(None, "it names no nodes")
    return _cluster(model)


def _add_block(model: _Model, entry: Mapping[str, Any], switch: Any) -> None:
    nodes = model.nodes(entry.get("nodes"), "nodes")
    if switch is not None:
        if not isinstance(switch, str | int):
            raise FormatError(line_of(model.text, "switch"), "switch: a name is wanted")
        model.leaves.setdefault(str(switch), []).extend(nodes)
    labels = _texts(entry, model.text)
    for node in nodes:
        model.labels[node].update(labels)
    if domain := _nvlink_domain(entry, model.text):
        model.join(domain, nodes)


def _cluster(model: _Model) -> Cluster:
    children = {switch: below for switch, below in model.children.items() if below}
    try:
        domains = switches.domains(children, {name: list(dict.fromkeys(held)) for name, held in model.leaves.items()})
    except ValueError as error:
        raise FormatError(None, str(error)) from None
    inherited: dict[str, dict[str, str]] = {}
    # Widest first: what a switch says holds for those below it, unless they say otherwise.
    for domain in domains:
        labels = inherited.get(domain.parent or "", {}) | model.switch_labels.get(domain.name, {})
        inherited[domain.name] = labels
        for node in model.leaves.get(domain.name, ()):
            model.labels[node] = labels | model.labels[node]
    parent = {node: leaf for leaf, nodes in model.leaves.items() for node in nodes}
    for name, nodes in model.nvlink.items():
        above = {parent.get(node) for node in nodes}
        domains += (Domain("nvlink", name, above.pop() if len(above) == 1 else None, tuple(nodes)),)
    return Cluster(tuple(Node(node, labels=labels) for node, labels in model.labels.items()), domains)


def _named(document: Mapping[str, Any], key: str, text: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Name and content of each entry below `key`: a mapping by name, or a list of mappings, with `name` or without."""
    value = document.get(key)
    if isinstance(value, list):
        for position, item in enumerate(value):
            entry = mapping(item, key, text)
            yield str(entry.get("name", f"{key} {position + 1}")), entry
    else:
        for name, item in mapping(value, key, text).items():
            yield name, mapping(item, name, text)


def _texts(entry: Mapping[str, Any], text: str) -> dict[str, str]:
    """Labels and annotations together, those that are plain text."""
    found = mapping(entry.get("labels"), "labels", text) | mapping(entry.get("annotations"), "annotations", text)
    return {key: str(value) for key, value in found.items() if isinstance(value, str | int)}


def _nvlink_domain(entry: Mapping[str, Any], text: str) -> str | None:
    texts = _texts(entry, text)
    attributes = mapping(entry.get("attributes"), "attributes", text)
    for source in (entry, attributes, texts):
        if isinstance(value := source.get("nvlink"), str | int):
            return str(value)
    # Where a domain has parts (accelerator/domain, accelerator/sub-domain), NVLink joins the whole.
    candidates = [key for key in texts if "accelerat" in key.lower() and not key.lower().endswith("sub-domain")]
    if not candidates and "nvidia.com/gpu.clique" in texts:
        candidates = ["nvidia.com/gpu.clique"]
    return texts[candidates[0]] if candidates else None
