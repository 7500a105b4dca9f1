"""What one decision leaves for the next to be quick: derived values that hold as long as what they were derived from does."""

from __future__ import annotations


class Memory:
    """Opaque to everybody but `plan`. A decision with it is the same as without it."""
