"""How names of machines, switches and adapters are sorted, and shortened where several count as one."""

from __future__ import annotations

import re
from collections.abc import Sequence


def natural(name: str) -> tuple[tuple[int, int | str], ...]:
    """A key that sorts gpu-2 before gpu-10."""
    pieces = re.split(r"([0-9]{1,18})", name)
    # Numbers are what was split at: text between them may hold digits too, of which int() takes none.
    return tuple((0, int(piece)) if place % 2 else (1, piece) for place, piece in enumerate(pieces))


def joined_name(names: Sequence[str]) -> str:
    """One short name for several things that count as one place: `leaf-01+3` is leaf-01 and three more."""
    ordered = sorted(names)
    return ordered[0] if len(ordered) == 1 else f"{ordered[0]}+{len(ordered) - 1}"
