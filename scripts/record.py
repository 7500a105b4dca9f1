"""What commands look like in a terminal, as an SVG: runs them in a real one and draws its screen.

    python scripts/record.py docs/images/demo.svg --title orch -- "orch submit jobs/digits.yaml --follow" "orch runs"

Each argument after -- is one command line, run by the shell and shown after a `$`. The recording ends with exit code 1,
and writes nothing, when a command fails: a picture of a failure is not published by accident.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from pathlib import Path

import pexpect
from rich.console import Console
from rich.terminal_theme import TerminalTheme
from rich.text import Text

CONTROL = re.compile(r"\x1b\[\??[\d;]*[A-HJKSTfhlnsu]|\x1b\][^\x07]*\x07|\x1b[()][A-Z0-9]|[\x00-\x08\x0b-\x1a]")
"""What moves the cursor or sets the terminal; colours (`ESC [ ... m`) stay."""

WEB_FONT = re.compile(r"\s*@font-face \{[^}]*\}")
"""Rich names fonts on somebody's server; a picture in our README asks nobody for anything."""

BLACK_TO_WHITE = "3c404a e86c6c 80c878 e0b860 6ea4f0 c68ce6 60c6ce dee0e6"
BRIGHT = "7a808e f68c8c a0de96 f4d082 96c0fa daaaf4 8cdce2 fafafc"


def colour(code: str) -> tuple[int, int, int]:
    red, green, blue = bytes.fromhex(code)
    return red, green, blue


THEME = TerminalTheme(
    colour("181a20"),
    colour("dee0e6"),
    [colour(code) for code in BLACK_TO_WHITE.split()],
    [colour(code) for code in BRIGHT.split()],
)


def screen(raw: str) -> str:
    """The lines that stay on the screen: of a line that was drawn over (a progress bar), its last form.

    Programs that move the cursor up, such as full-screen ones, are not understood.
    """
    lines = raw.replace("\r\n", "\n").split("\n")
    return "\n".join(CONTROL.sub("", line.rstrip("\r").rpartition("\r")[2]) for line in lines)


def run(command: str, columns: int, timeout: float) -> tuple[str, int]:
    """The command's screen and exit code (minus the signal that ended it), in a pseudo-terminal of so many columns."""
    environment = os.environ | {"TERM": "xterm-256color", "COLUMNS": str(columns)}
    terminal = pexpect.spawn(
        "/bin/bash", ["-c", command], dimensions=(60, columns), env=environment, encoding="utf-8", timeout=timeout
    )
    raw = terminal.read()
    terminal.close()
    return screen(raw), terminal.exitstatus if terminal.exitstatus is not None else -(terminal.signalstatus or 0)


def shortened(text: str, most: int) -> str:
    """The text with its middle left out, and said so, where it has more than `most` lines."""
    lines = text.rstrip("\n").split("\n")
    if len(lines) <= most:
        return "\n".join(lines)
    head = most * 2 // 5  # what a command says last is what has become of it
    tail = most - head - 1
    return "\n".join([*lines[:head], f"\x1b[2m... {len(lines) - head - tail} lines ...\x1b[0m", *lines[-tail:]])


def main() -> int:
    parser = argparse.ArgumentParser(description="Draws what commands print as an SVG.")
    parser.add_argument("picture", type=Path)
    parser.add_argument("--title", default="")
    parser.add_argument("--columns", type=int, default=110)
    parser.add_argument("--most", type=int, default=24, help="lines of one command's output before its middle is cut")
    parser.add_argument("--timeout", type=float, default=300, help="seconds for one command")
    parser.add_argument("commands", nargs="+")
    args = parser.parse_args()

    console = Console(record=True, width=args.columns, force_terminal=True, color_system="truecolor", file=sys.stderr)
    for number, command in enumerate(args.commands):
        output, code = run(command, args.columns, args.timeout)
        if code != 0:
            print(f"{output}\n{command}: exit code {code}; no picture was made", file=sys.stderr)
            return 1
        if number:
            console.print()
        console.print(Text.assemble(("$ ", "bold green"), (command, "bold")))
        console.print(Text.from_ansi(shortened(output, args.most)))
    # A fixed id keeps the file's difference to what really changed.
    svg = console.export_svg(title=args.title, theme=THEME, unique_id="orch")
    args.picture.parent.mkdir(parents=True, exist_ok=True)
    args.picture.write_text(WEB_FONT.sub("", svg))
    return 0


if __name__ == "__main__":
    sys.exit(main())
