"""How a rank's script ended, as its interpreter saw it: written down, and shown as in a plain run.

Loaded by rank.py in any interpreter from Python 3.9 on: standard library only.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from typing import Any

FOLDER = __file__.rpartition("/")[0]
PROGRESS_FOLDER = os.path.join(FOLDER.rsplit("/", 2)[0], "progress")
OBSERVING = tuple(os.path.join(PROGRESS_FOLDER, name) for name in ("observer.py", "on_import.py"))
MOST_ERRORS, LONGEST_TEXT = 8, 1000
"""Of a last word: exceptions, and characters of each."""
WORD = {"path": "", "pid": 0}
"""Where this rank leaves its last word, beside its progress file, and which process that is: not a child that it forks."""


def is_ours(path: str) -> bool:
    """Whether a frame of that file is of what runs the script, and not of the script."""
    return path in OBSERVING or path.rpartition("/")[0] == FOLDER


def will_be_at(path: str) -> None:
    """This process leaves its last word there; none where the path is empty."""
    WORD.update(path=path, pid=os.getpid())


def without_ours(error: BaseException, seen: set[int]) -> Any:
    """The error's traceback without frames of ours, those of its causes too."""
    seen.add(id(error))
    for other in (error.__cause__, error.__context__):
        if other is not None and id(other) not in seen:
            other.__traceback__ = without_ours(other, seen)
    frames, at = [], error.__traceback__
    while at is not None:
        if not is_ours(at.tb_frame.f_code.co_filename):
            frames.append(at)
        at = at.tb_next
    following = None
    for frame in reversed(frames):
        frame.tb_next = following
        following = frame
    return following


def hide_our_frames(error: BaseException) -> None:
    """Has an uncaught exception shown as in a plain run: without frames of ours, by the script's own hook."""
    script_hook = sys.excepthook

    def hook(kind: Any, value: Any, traceback: Any) -> None:
        sys.excepthook = script_hook
        traceback = without_ours(value, set())
        sys.last_traceback = traceback
        script_hook(kind, value.with_traceback(traceback), traceback)

    if not isinstance(error, SystemExit):
        sys.excepthook = hook


def errors_of(error: BaseException | None) -> list[list[str]]:
    """Type and text of the exception, then of those that it came from, as a traceback would show them."""
    found: list[list[str]] = []
    seen: set[int] = set()
    while error is not None and id(error) not in seen and len(found) < MOST_ERRORS:
        seen.add(id(error))
        if not isinstance(error, SystemExit):
            kind = type(error)
            name = (
                kind.__qualname__
                if kind.__module__ in ("builtins", "__main__")
                else kind.__module__ + "." + kind.__qualname__
            )
            found.append([name, str(error)[:LONGEST_TEXT]])
        hidden = error.__cause__ is not None or error.__suppress_context__
        error = error.__cause__ if hidden else error.__context__
    return found


def leave_word(error: BaseException | None) -> None:
    """Writes down how the script ends: what follows may take long, and may end otherwise.

    A process group that is torn down with the interpreter can abort it: exit codes are lost by that, 75 among them.
    """
    if not WORD["path"] or os.getpid() != WORD["pid"]:
        return
    code = 0 if error is None else None
    if isinstance(error, SystemExit):
        code = 0 if error.code is None else error.code & 0xFF if isinstance(error.code, int) else 1
    with contextlib.suppress(Exception):
        word = {"at": time.clock_gettime(time.CLOCK_BOOTTIME), "exit": code, "errors": errors_of(error)}
        with open(os.open(str(WORD["path"]), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as stream:
            stream.write(json.dumps(word))
