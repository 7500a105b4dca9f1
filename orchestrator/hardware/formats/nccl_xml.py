"""What NCCL's topology XML says: the override files that clouds ship, and dumps from NCCL_TOPO_DUMP_FILE.

`<cpu>` elements hold a tree of `<pci>` elements; GPUs, NICs and switches are told apart by their children or their
PCI class. An override file often has neither `<gpu>` nor `<net>` (NCCL finds those itself), nor NVLink: then GPUs are
numbered by PCI address, as NVML does, and NICs are called by theirs. Links over PCIe are said as NCCL says them: PIX
through one switch, PXB through several, PHB through one CPU, SYS between CPUs.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NoReturn
from xml.parsers import expat

from orchestrator.hardware.formats.errors import FormatError
from orchestrator.hardware.model import MOST_GPUS, Cluster, Domain, Gpu, Nic, Node, Shape

_MODELS = {
    "0x15f8": "P100-PCIE-16GB",
    "0x15f9": "P100-SXM2-16GB",
    "0x1db1": "V100-SXM2-16GB",
    "0x1db5": "V100-SXM2-32GB",
    "0x1db8": "V100-SXM3-32GB",
    "0x1db4": "V100-PCIE-16GB",
    "0x1db6": "V100-PCIE-32GB",
    "0x1df6": "V100S-PCIE-32GB",
    "0x1eb8": "T4",
    "0x2204": "RTX-3090",
    "0x2230": "RTX-A6000",
    "0x2235": "A40",
    "0x2236": "A10",
    "0x2237": "A10G",
    "0x20b0": "A100-SXM4-40GB",
    "0x20b2": "A100-SXM4-80GB",
    "0x20b3": "A100-SXM4-64GB",
    "0x20b1": "A100-PCIE-40GB",
    "0x20f1": "A100-PCIE-40GB",
    "0x20b5": "A100-PCIE-80GB",
    "0x20b7": "A30",
    "0x20f3": "A800-SXM4-80GB",
    "0x20f5": "A800-PCIE-80GB",
    "0x26b1": "RTX-6000-Ada",
    "0x26b5": "L40",
    "0x26b9": "L40S",
    "0x27b8": "L4",
    "0x2321": "H100-NVL-94GB",
    "0x2322": "H800-PCIE-80GB",
    "0x2324": "H800-SXM5-80GB",
    "0x2329": "H20",
    "0x2330": "H100-SXM5-80GB",
    "0x2331": "H100-PCIE-80GB",
    "0x2335": "H200-SXM5-141GB",
    "0x2342": "GH200-96GB",
    "0x2684": "RTX-4090",
    "0x2901": "B200",
    "0x2941": "GB200",
}
"""NVIDIA's PCI device ids; a device that is not here has no model rather than a guessed one."""

_NVIDIA = "0x10de"
_SWITCH_CLASS, _NVSWITCH_CLASS = "0x0604", "0x068000"
_MOST_DEPTH = 64
_BEGIN = re.compile(r"(?m)^[\ufeff \t]*<(?=[A-Za-z?!])")
"""Where the XML begins."""


@dataclass
class _Element:
    tag: str
    attributes: dict[str, str]
    line: int
    children: list[_Element] = field(default_factory=list)

    def get(self, name: str) -> str:
        return self.attributes.get(name, "").strip()

    def named(self, *tags: str) -> list[_Element]:
        return [child for child in self.children if child.tag in tags]

    def integer(self, name: str, default: int) -> int:
        """The attribute as an integer, decimal or 0x; `default` where it is absent or empty."""
        text = self.get(name)
        try:
            value = int(text, 0) if len(text) < 20 else None
        except ValueError:
            try:
                value = int(float(text))
            except (ValueError, OverflowError):
                value = None
        if text and value is None:
            raise FormatError(self.line, f"<{self.tag}> has {name}={text[:40]!r}, which is no number")
        return default if value is None else value


@dataclass(frozen=True)
class _Place:
    """Where a device hangs: its CPU, and the PCI switches above it, from the CPU down."""

    cpu: int
    switches: tuple[int, ...]

    def to(self, other: _Place) -> str:
        if self.cpu != other.cpu:
            return "SYS"
        common = sum(1 for a, b in zip(self.switches, other.switches, strict=False) if a == b)
        if not common:
            return "PHB"
        return "PIX" if len(self.switches) + len(other.switches) - 2 * common == 0 else "PXB"


@dataclass
class _Host:
    """What the CPUs of one machine hold."""

    gpus: list[tuple[_Element, _Element | None, _Place, int | None]] = field(default_factory=list)
    """The `<pci>`, its `<gpu>` where there is one, its place, its NUMA node."""
    nics: list[tuple[_Element, _Element | None, _Place, int | None]] = field(default_factory=list)
    """The `<pci>` or `<nic>`, its `<net>` where there is one, its place, its NUMA node."""
    numas: set[int] = field(default_factory=set)


def parse(text: str, name: str = "node") -> Cluster:
    """The machine that `text` describes, called `name`; a dump of several machines names them by NCCL's host hash.

    Raises FormatError for XML that is broken, has a DOCTYPE, or is no topology.
    """
    root = _read(text)
    if root.tag == "graphs":
        raise FormatError(root.line, "this is NCCL's graph (NCCL_GRAPH_DUMP_FILE), not its topology")
    if root.tag != "system":
        raise FormatError(root.line, f"<{root.tag[:40]}> is not NCCL's topology: its outermost element is <system>")
    hosts: dict[str, _Host] = {}
    for index, cpu in enumerate(root.named("cpu")):
        _collect(cpu, index, hosts.setdefault(cpu.get("host_hash"), _Host()))
    if not any(host.gpus or host.nics for host in hosts.values()):
        raise FormatError(root.line, "the topology names no GPU and no NIC")
    notes: list[str] = []
    if len(hosts) == 1:
        shape = _shape(next(iter(hosts.values())), notes)
        return Cluster((Node(name, shape),), notes=tuple(notes))
    nodes = tuple(Node(f"host-{key or 'unnamed'}", _shape(host, notes)) for key, host in hosts.items())
    return Cluster(nodes, _shared_nvlink(name, nodes), tuple(notes))


def _shared_nvlink(name: str, nodes: tuple[Node, ...]) -> tuple[Domain, ...]:
    """NCCL fuses machines into one topology only where NVLink joins them."""
    switched = tuple(node.name for node in nodes if node.shape.nvswitch)
    return (Domain("nvlink", name, None, switched),) if len(switched) > 1 else ()


def _read(text: str) -> _Element:
    """The outermost element. Entities can only be declared in a DOCTYPE, so refusing that refuses entity bombs."""
    # The text is decoded already: what its XML declaration says of an encoding is no longer true.
    parser = expat.ParserCreate("utf-8")
    # Blank lines and prompts around the XML are an error to a parser, and common in what people paste.
    begin = _BEGIN.search(text)
    trimmed = text[begin.start() :].lstrip() if begin else text.lstrip("\ufeff \t\r\n")
    blank = text.count("\n", 0, len(text) - len(trimmed))
    whole, end_tag, _ = trimmed.rpartition("</system>")
    trimmed = whole + end_tag or trimmed
    stack: list[_Element] = []
    roots: list[_Element] = []

    def start(tag: str, attributes: dict[str, str]) -> None:
        element = _Element(tag, attributes, parser.CurrentLineNumber + blank)
        if len(stack) >= _MOST_DEPTH:
            raise FormatError(element.line, f"elements are nested deeper than {_MOST_DEPTH}")
        (stack[-1].children if stack else roots).append(element)
        stack.append(element)

    def end(_tag: str) -> None:
        stack.pop()

    def doctype(*_: object) -> NoReturn:
        raise FormatError(parser.CurrentLineNumber + blank, "it has a DOCTYPE, which NCCL's topology never has")

    parser.StartElementHandler, parser.EndElementHandler = start, end
    parser.StartDoctypeDeclHandler = doctype
    try:
        parser.Parse(trimmed.encode("utf-8", "replace"), True)
    except expat.ExpatError as error:
        raise FormatError(error.lineno + blank, f"broken XML: {expat.ErrorString(error.code)}") from None
    return roots[0]


def _collect(cpu: _Element, index: int, host: _Host) -> None:
    numa = cpu.integer("numaid", -1)
    known = numa if numa >= 0 else None
    if known is not None:
        host.numas.add(known)
    for pci, switches in _devices(cpu, ()):
        place = _Place(index, switches)
        if _is_gpu(pci):
            host.gpus.extend((pci, gpu, place, known) for gpu in _or_none(pci.named("gpu")))
        elif _is_nic(pci):
            for nic in pci.named("nic") or [pci]:
                _collect_nic(pci, nic, place, known, host)
    for nic in cpu.named("nic"):
        _collect_nic(nic, nic, _Place(index, ()), known, host)


def _collect_nic(pci: _Element, nic: _Element, place: _Place, numa: int | None, host: _Host) -> None:
    for net in _or_none(nic.named("net", "ib")):
        host.nics.append((pci, net, place, numa))


def _or_none(elements: list[_Element]) -> list[_Element | None]:
    return [*elements] or [None]


def _devices(element: _Element, switches: tuple[int, ...]) -> Iterator[tuple[_Element, tuple[int, ...]]]:
    """Every PCI device that is no switch, with the switches above it."""
    for pci in element.named("pci"):
        if pci.named("pci") or pci.get("class").startswith(_SWITCH_CLASS):
            yield from _devices(pci, (*switches, id(pci)))
        else:
            yield pci, switches


def _is_gpu(pci: _Element) -> bool:
    if pci.named("gpu"):
        return True
    kind, vendor = pci.get("class"), pci.get("vendor")
    return not pci.named("nic") and kind.startswith(("0x0302", "0x0300")) and vendor in ("", _NVIDIA)


def _is_nic(pci: _Element) -> bool:
    return bool(pci.named("nic", "net")) or pci.get("class").startswith("0x02")


def _shape(host: _Host, notes: list[str]) -> Shape:
    if len(host.gpus) > MOST_GPUS:
        raise FormatError(
            host.gpus[0][0].line, f"one machine has {len(host.gpus)} GPUs; more than {MOST_GPUS} are not read"
        )
    if host.gpus and all(gpu is None for _, gpu, _, _ in host.gpus):
        notes.append("The file says nothing of NVLink: NCCL looks for it by itself where such a file is used.")
    host.gpus.sort(key=lambda entry: _address(entry[0].get("busid")))
    indices = _indices(host)
    order = sorted(range(len(indices)), key=lambda position: indices[position])
    entries = [host.gpus[position] for position in order]
    gpus = tuple(
        Gpu(
            sorted(indices)[position],
            _MODELS.get(pci.get("device")) if pci.get("vendor") in ("", _NVIDIA) else None,
            sm=(gpu.integer("sm", 0) or None) if gpu is not None else None,
            numa=numa,
            bus_id=pci.get("busid") or None,
        )
        for position, (pci, gpu, _, numa) in enumerate(entries)
    )
    places = [place for _, _, place, _ in entries]
    bonded = _nvlinks(entries, [gpu.index for gpu in gpus], notes)
    links = tuple(
        f"NV{bonded[a, b]}" if (a, b) in bonded else places[a].to(places[b])
        for a in range(len(gpus))
        for b in range(a + 1, len(gpus))
    )
    return Shape(gpus, links, _nics(host, gpus, places), numas=len(host.numas) or None)


def _indices(host: _Host) -> list[int]:
    """The GPU's index for each entry of `host.gpus`: its `dev`, or its place by PCI address where one has none."""
    devs = [gpu.integer("dev", -1) if gpu is not None else -1 for _, gpu, _, _ in host.gpus]
    if any(dev < 0 for dev in devs):
        return list(range(len(devs)))
    for position, dev in enumerate(devs):
        if dev in devs[:position]:
            element = host.gpus[position][0]
            raise FormatError(element.line, f"two GPUs of one machine have dev={dev}")
    return devs


def _nvlinks(
    entries: list[tuple[_Element, _Element | None, _Place, int | None]], indices: list[int], notes: list[str]
) -> dict[tuple[int, int], int]:
    """Bonded NVLinks by pair of positions: direct ones, or the fewer of both GPUs' links to the switches."""
    position_of = {_address(pci.get("busid")): position for position, (pci, _, _, _) in enumerate(entries)}
    direct: dict[tuple[int, int], int] = {}
    switched = [0] * len(entries)
    for position, (_, gpu, _, _) in enumerate(entries):
        for link in gpu.named("nvlink") if gpu is not None else []:
            count = link.integer("count", 1)
            target = position_of.get(_address(link.get("target")))
            if not 0 < count < 1000:
                raise FormatError(link.line, f"<nvlink> has count={count}")
            if target is not None and target != position:
                direct[position, target] = direct.get((position, target), 0) + count
            elif link.get("tclass") in ("", _NVSWITCH_CLASS):
                switched[position] += count
    bonded = {
        (a, b): min(switched[a], switched[b])
        for a in range(len(entries))
        for b in range(a + 1, len(entries))
        if switched[a] and switched[b]
    }
    for (a, b), there in direct.items():
        back = direct.get((b, a), there)
        bonded[min(a, b), max(a, b)] = min(there, back)
        if a < b and there != back:
            notes.append(
                f"GPU {indices[a]} names {there} NVLinks to GPU {indices[b]}, GPU {indices[b]} names {back} back: "
                f"{min(there, back)} taken."
            )
    return bonded


def _nics(host: _Host, gpus: tuple[Gpu, ...], places: list[_Place]) -> tuple[Nic, ...]:
    nics: dict[tuple[str, int], Nic] = {}
    for pci, net, place, numa in host.nics:
        bus_id = pci.get("busid") or None
        name = (net.get("name") if net is not None else "") or bus_id
        if not name:
            raise FormatError(pci.line, f"<{pci.tag}> of a NIC has neither name nor busid")
        port = max(net.integer("port", 1), 1) if net is not None else 1
        if (name, port) in nics:
            # NCCL hangs an interface without a PCI device below every CPU: it belongs to none.
            previous = nics[name, port]
            nics[name, port] = Nic(name, port, previous.near, previous.rate_gbps, previous.link_layer)
            continue
        speed = net.integer("speed", 0) if net is not None else 0
        near = tuple(gpu.index for gpu, other in zip(gpus, places, strict=True) if place.to(other) in ("PIX", "PXB"))
        layer = {"0x0207": "InfiniBand", "0x0200": "Ethernet"}.get(pci.get("class")[:6])
        nics[name, port] = Nic(name, port, near, speed / 1000 if speed > 0 else None, layer, None, numa, None, bus_id)
    return tuple(nics.values())


def _address(busid: str) -> tuple[int | str, ...]:
    """A PCI address to sort and compare by, whatever the width of its domain: `0000:17:00.0` and `00000000:17:00.0`."""
    try:
        return tuple(int(part, 16) for part in busid.lower().replace(".", ":").split(":"))
    except ValueError:
        return (1 << 62, busid)
