"""A machine's links to others as they are now: its RDMA ports and a network interface, with the kernel's count of their losses."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from orchestrator.hardware.model import Nic
from orchestrator.health.vitals import Port


def ports(nics: Iterable[Nic], interface: str | None, root: str | Path = "/") -> tuple[Port, ...]:
    """The ports of `nics`, and `interface` where it is none of theirs. What a driver does not count is None."""
    files = Path(root)
    found = []
    for nic in nics:
        port = files / "sys/class/infiniband" / nic.name / "ports" / str(nic.port)
        downs = _number(port / "counters/link_downed")
        if downs is None:
            # RoCE: the link is that of the adapter's network interface.
            devices = sorted((files / "sys/class/infiniband" / nic.name / "device/net").glob("*"))
            downs = _number(devices[0] / "carrier_down_count") if len(devices) == 1 else None
        found.append(Port(f"{nic.name}:{nic.port}", nic.state in (None, "ACTIVE"), nic.rate_gbps, downs))
    if interface and interface != "lo":
        folder = files / "sys/class/net" / interface
        # Where a driver knows no speed it says -1, or nothing.
        speed = _number(folder / "speed") or 0
        up = _number(folder / "carrier") == 1
        downs = _number(folder / "carrier_down_count")
        found.append(Port(interface, up, speed / 1000 if speed > 0 else None, downs, rdma=False))
    return tuple(found)


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None
