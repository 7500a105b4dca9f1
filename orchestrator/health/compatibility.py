"""Which versions go together: CUDA and drivers, torch's wheels and the NCCL they were built with.

From NVIDIA's table of minor-version compatibility and the requirements of torch's Linux wheels.
"""

from __future__ import annotations

from packaging.version import InvalidVersion, Version

MINIMUM_DRIVER = {13: "580", 12: "525", 11: "450"}
"""By CUDA's major version: the oldest driver that runs programs built with it."""

TORCH_WHEELS = {
    # torch: CUDA, cuDNN, NCCL
    "2.6": ("12.4", "9.1.0", "2.21.5"),
    "2.7": ("12.6", "9.5.1", "2.26.2"),
    "2.8": ("12.8", "9.10.2", "2.27.3"),
    "2.9": ("12.8", "9.10.2", "2.27.5"),
    "2.10": ("12.8", "9.10.2", "2.27.5"),
    "2.11": ("13.0", "9.19.0", "2.28.9"),
    "2.12": ("13.0", "9.20.0", "2.29.7"),
    "2.13": ("13.0", "9.20.0", "2.29.7"),
    "2.14": ("13.0", "9.24.0", "2.30.7"),
}
"""By torch's minor version: what its default wheel brings. The first wheels for CUDA 13 are those of 2.11."""


def version(text: str | None) -> Version | None:
    """A version as drivers, CUDA, cuDNN, NCCL and torch write it; None where it is none.

    cuDNN's own number is understood: 91002 is 9.10.2, 8907 is 8.9.7.
    """
    if text is None:
        return None
    if text.isdecimal() and len(text) >= 4:
        number = int(text)
        split = (10_000, 100) if number >= 90_000 else (1_000, 100)
        text = f"{number // split[0]}.{number % split[0] // split[1]}.{number % split[1]}"
    try:
        return Version(text)
    except InvalidVersion:
        return None


def minimum_driver(cuda: str | None) -> str | None:
    """The oldest driver for programs built with this CUDA; None where the table has no row."""
    found = version(cuda)
    return MINIMUM_DRIVER.get(found.major) if found else None


def nccl_of_torch(torch: str | None) -> str | None:
    """The NCCL that this torch's default wheel was built and tested with."""
    found = version(torch)
    wheel = TORCH_WHEELS.get(f"{found.major}.{found.minor}") if found else None
    return wheel[2] if wheel else None
