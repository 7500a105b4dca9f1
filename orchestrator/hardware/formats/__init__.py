"""What files say of the hardware: which format a file has, and one Cluster out of several files."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from orchestrator.hardware.formats import ibnetdiscover, inline, levels_csv, nccl_xml, nvidia_smi, slurm, topograph
from orchestrator.hardware.formats.errors import FormatError
from orchestrator.hardware.model import Cluster, Domain, Gpu, Nic, Node, Shape

__all__ = ["FORMATS", "FormatError", "detect", "merged", "parse", "read_hardware"]

Parse = Callable[[str, str], Cluster]

FORMATS: dict[str, Parse] = {
    "nccl-xml": nccl_xml.parse,
    "nvidia-smi": nvidia_smi.parse,
    "ibnetdiscover": ibnetdiscover.parse,
    "slurm": slurm.parse,
    "topograph": topograph.parse,
    "cluster.yaml": inline.parse,
    "csv": levels_csv.parse,
}

MOST_BYTES = 64 * 1024 * 1024
"""A file larger than that is none of these formats."""

_IBNETDISCOVER = re.compile(
    r'(?m)^[ \t]*(?:(?:Switch|Ca|Rt)\s+[0-9]+\s+"|(?:CA|SW|RT)\s+[0-9]+\s+[0-9]+\s+0x|(?:switch|ca)guid=)'
)
_SYSTEM = re.compile(r"(?m)^[ \t]*<system\b")
_SLURM = re.compile(r"(?im)^[ \t]*(?:SwitchName|BlockName|BlockSizes|BlockLevels)[ \t]*=")
_TOPOGRAPH = re.compile(r"(?m)^(?:switches|blocks|capacity_blocks)[ \t]*:")
_INLINE = re.compile(r"(?m)^(?:metadata|hardware|orch|nodes|cluster_name)[ \t]*:|\bgpus[ \t]*:")


def detect(text: str, filename: str = "") -> str:
    """The name in FORMATS of the format that `text` has, by what stands in it.

    Raises FormatError where it has none. The file's name decides only where the text does not.
    """
    start = text.lstrip("\ufeff \t\r\n")
    suffix = Path(filename).suffix.lower()
    if not start:
        raise FormatError(None, "the file is empty")
    if start.startswith("<") or suffix == ".xml" or _SYSTEM.search(text):
        return "nccl-xml"
    if nvidia_smi.found_in(text):
        return "nvidia-smi"
    for name, pattern in (("ibnetdiscover", _IBNETDISCOVER), ("slurm", _SLURM), ("topograph", _TOPOGRAPH)):
        if pattern.search(text):
            return name
    if _INLINE.search(text) or suffix in (".yaml", ".yml"):
        return "cluster.yaml"
    first = next((line for line in start.splitlines() if not line.startswith("#")), "")
    if suffix == ".csv" or re.search(r"[,;\t]", first):
        return "csv"
    raise FormatError(None, f"it has none of the formats that orch reads: {', '.join(FORMATS)}")


def parse(text: str, filename: str = "node", name: str | None = None) -> Cluster:
    """What `text` says, in whichever format it is. A machine without a name in it is called `name`, or like the file.

    Raises FormatError.
    """
    return FORMATS[detect(text, filename)](text, name or Path(filename).stem)


def read_hardware(paths: Sequence[str | Path]) -> Cluster:
    """What several files say together: nodes and domains of the same name are one.

    A file about one machine names it by its own name (`gpu-01.txt` is gpu-01), with the folder's where two files of
    one format are called alike. Raises FormatError with the path in it, also where a file cannot be read.
    """
    texts = [(Path(path), _read(Path(path))) for path in paths]
    formats = []
    for path, text in texts:
        try:
            formats.append(detect(text, path.name))
        except FormatError as error:
            raise error.at(str(path)) from None
    called = [(path.stem, kind) for (path, _), kind in zip(texts, formats, strict=True)]
    clusters = []
    for (path, text), key in zip(texts, called, strict=True):
        name = path.stem if called.count(key) == 1 else f"{path.absolute().parent.name}-{path.stem}"
        try:
            clusters.append(FORMATS[key[1]](text, name))
        except FormatError as error:
            raise error.at(str(path)) from None
    return merged(clusters)


def _read(path: Path) -> str:
    try:
        if path.stat().st_size > MOST_BYTES:
            raise FormatError(None, f"the file is larger than {MOST_BYTES // 1024 // 1024} MiB", str(path))
        data = path.read_bytes()
    except OSError as error:
        raise FormatError(None, error.strerror or "it cannot be read", str(path)) from None
    # What a Windows shell redirects into a file is UTF-16.
    return data.decode("utf-16" if data.startswith((b"\xff\xfe", b"\xfe\xff")) else "utf-8", "replace")


def merged(clusters: Sequence[Cluster]) -> Cluster:
    """One cluster out of several that may speak of the same nodes; where they contradict each other the first
    counts."""
    if len(clusters) == 1:
        return clusters[0]
    nodes: dict[str, Node] = {}
    domains: dict[tuple[str, str], Domain] = {}
    notes: list[str] = []
    for cluster in clusters:
        notes += cluster.notes
        for node in cluster.nodes:
            nodes[node.name] = _merged_node(nodes[node.name], node, notes) if node.name in nodes else node
        for domain in cluster.domains:
            key = (domain.level, domain.name)
            known = domains.get(key, domain)
            members = tuple(dict.fromkeys((*known.members, *domain.members)))
            domains[key] = replace(known, parent=known.parent or domain.parent, members=members)
    return Cluster(tuple(nodes.values()), tuple(domains.values()), tuple(notes))


def _merged_node(first: Node, second: Node, notes: list[str]) -> Node:
    return replace(
        first,
        shape=_merged_shape(first.name, first.shape, second.shape, notes),
        labels={**second.labels, **first.labels},
        clique=first.clique or second.clique,
        uuids=first.uuids or second.uuids,
    )


def _merged_shape(name: str, first: Shape, second: Shape, notes: list[str]) -> Shape:
    if first.gpus and second.gpus and first.indices != second.indices:
        notes.append(
            f"{name} has {len(first.gpus)} GPUs in one file and {len(second.gpus)} in another: the first counts."
        )
        return first
    same = bool(first.gpus and second.gpus)
    gpus = tuple(map(_merged_gpu, first.gpus, second.gpus)) if same else first.gpus or second.gpus
    links = first.links or second.links
    if first.links and second.links and first.links != second.links:
        notes.append(f"{name}: the links between its GPUs differ between two files: the first counts.")
    known = {(nic.name, nic.port): nic for nic in second.nics}
    nics = [_merged_nic(nic, known.pop((nic.name, nic.port), nic)) for nic in first.nics]
    return Shape(
        gpus=gpus,
        links=links,
        nics=(*nics, *known.values()),
        cpus=first.cpus if first.cpus is not None else second.cpus,
        memory_mib=first.memory_mib if first.memory_mib is not None else second.memory_mib,
        numas=first.numas if first.numas is not None else second.numas,
        peer_access=first.peer_access or second.peer_access,
    )


def _merged_gpu(first: Gpu, second: Gpu) -> Gpu:
    known = (a if (a := getattr(first, name)) is not None else getattr(second, name) for name in Gpu.__slots__)
    return Gpu(*known)


def _merged_nic(first: Nic, second: Nic) -> Nic:
    filled = {field: getattr(second, field) for field in Nic.__slots__ if getattr(first, field) in (None, ())}
    return replace(first, **filled)
