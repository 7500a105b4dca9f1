"""Text of others that a terminal would act on, made text that it only shows."""

from __future__ import annotations

import re

# Escape sequences (CSI; OSC, DCS and the like up to their end; the short ones), then what is left of control characters
# and the marks that turn the direction of text, with which a name could rewrite the line that shows it.
_ESCAPES = re.compile(
    r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]|(?:\x1b[\]PX^_]|[\x90\x98\x9d-\x9f]).*?(?:\x07|\x1b\\|\x9c|$)|\x1b[ -/]*[0-~]",
    re.DOTALL,
)
_CONTROLS = re.compile(
    "[\x00-\x08\x0a-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)


def clean(text: str) -> str:
    """Text that cannot move the cursor, change the colour or the title, or break the line; tabs stay."""
    return text if text.isprintable() else _CONTROLS.sub(" ", _ESCAPES.sub("", text))
