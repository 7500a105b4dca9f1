"""The runs' logs on the head: a file for each rank and attempt, written as chunks arrive, read as lines.

`LOGS/RUN/ATTEMPT/rank-N.log` holds the rank's bytes from the first on, so a chunk that arrives twice lands on itself. Beside it
`rank-N.idx` says when which byte was written (for `--since`), and `rank-N.tail` holds the end of a log that outgrew its limit.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePath

from orchestrator.control.backend import LogChunk
from orchestrator.control.nccl_watch import nccl_files
from orchestrator.terminal import clean

READ = 1 << 20
LONGEST_LINE = 64 << 10
"""A line that grows longer is shown in pieces: progress bars without line ends must not be held back for ever."""

LAST_BYTES = 16 << 10


@dataclass(frozen=True)
class Line:
    """One line of a rank's log; `offset` is the position after it."""

    attempt: int
    rank: int
    offset: int
    text: str


class LogFolder:
    """All logs."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def file(self, run: int, attempt: int, rank: int, ending: str = "log") -> Path:
        return self._root / str(run) / str(attempt) / f"rank-{rank}.{ending}"

    def write(self, chunk: LogChunk) -> None:
        """Puts a chunk where it belongs. Raises OSError, a full disk among them."""
        path = self.file(chunk.run, chunk.attempt, chunk.rank, "tail" if chunk.tail else "log")
        if chunk.file is not None:
            path = path.with_name(PurePath(chunk.file).name)
        if not path.parent.exists():
            path.parent.mkdir(mode=0o700, parents=True)
        handle = os.open(path, os.O_CREAT | os.O_WRONLY, 0o600)
        try:
            if chunk.tail:
                os.ftruncate(handle, 0)
            done, data = 0, memoryview(chunk.data)
            while done < len(data):
                done += os.pwrite(handle, data[done:], done if chunk.tail else chunk.offset + done)
        finally:
            os.close(handle)
        if not chunk.tail and chunk.file is None:
            with open(os.open(path.with_suffix(".idx"), os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o600), "a") as index:
                index.write(f"[{chunk.offset},{chunk.at:.3f}]\n")

    def attempts(self, run: int) -> list[int]:
        return self._numbers(self._root / str(run), "", "")

    def ranks(self, run: int, attempt: int) -> list[int]:
        return self._numbers(self._root / str(run) / str(attempt), "rank-", ".log")

    def nccl(self, run: int, attempt: int, rank: int | None = None) -> Iterator[Line]:
        """What NCCL said, rank by rank: the files of a rank's processes one after the other, as if they were one."""
        at: dict[int, int] = {}
        for of, path in nccl_files(self._root / str(run) / str(attempt)):
            if rank is None or of == rank:
                with path.open("rb") as file:
                    for raw in file:
                        at[of] = at.get(of, 0) + len(raw)
                        yield Line(attempt, of, at[of], _text(raw.rstrip(b"\n")))

    def write_stack(self, run: int, attempt: int, rank: int, text: str) -> None:
        """Keeps where a rank stood, in place of what was kept of that before. Raises OSError."""
        path = self._root / str(run) / str(attempt) / f"stack-{rank}.txt"
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with open(os.open(path, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600), "w", encoding="utf-8") as file:
            file.write(text)

    def stacks(self, run: int, attempt: int, rank: int | None = None) -> Iterator[Line]:
        """Where the ranks stood when that was asked last, rank by rank."""
        folder = self._root / str(run) / str(attempt)
        for of in self._numbers(folder, "stack-", ".txt"):
            if rank is None or of == rank:
                at = 0
                for raw in (folder / f"stack-{of}.txt").read_bytes().splitlines(keepends=True):
                    at += len(raw)
                    yield Line(attempt, of, at, _text(raw.rstrip(b"\n")))

    @staticmethod
    def _numbers(folder: Path, before: str, after: str) -> list[int]:
        if not folder.is_dir():
            return []
        names = (entry.name for entry in folder.iterdir())
        middles = (n[len(before) : len(n) - len(after)] for n in names if n.startswith(before) and n.endswith(after))
        return sorted(int(middle) for middle in middles if middle.isdigit())

    def since(self, run: int, attempt: int, rank: int, when: float) -> int:
        """The offset of the first byte that was written at or after `when` (Unix seconds)."""
        index = self.file(run, attempt, rank, "idx")
        if index.exists():
            for row in index.read_text().splitlines():
                try:
                    offset, at = json.loads(row)
                except ValueError:
                    continue
                if at >= when:
                    return int(offset)
        path = self.file(run, attempt, rank)
        return path.stat().st_size if path.exists() else 0

    def lines(self, run: int, attempt: int, rank: int, start: int = 0, *, whole: bool) -> Iterator[Line]:
        """The lines from byte `start` on; a last line without an end only where `whole` says that no more will come.

        The tail of a log that outgrew its limit follows as if it were the same file.
        """
        path = self.file(run, attempt, rank)
        if not path.exists():
            return
        offset = start
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            file.seek(start)
            rest = b""
            while block := file.read(READ):
                *complete, rest = (rest + block).split(b"\n")
                for raw in complete:
                    offset += len(raw) + 1
                    yield Line(attempt, rank, offset, _text(raw))
                if len(rest) > LONGEST_LINE:
                    offset += len(rest)
                    yield Line(attempt, rank, offset, _text(rest))
                    rest = b""
        if not whole:
            return
        if rest:
            offset += len(rest)
            yield Line(attempt, rank, offset, _text(rest))
        tail = self.file(run, attempt, rank, "tail")
        if tail.exists() and start <= size:
            yield Line(attempt, rank, size + 1, "[orch] the log outgrew its limit; what follows is its end")
            # The first line is cut off somewhere in its middle, and nothing stands behind the last line's end.
            for i, raw in enumerate(tail.read_bytes().removesuffix(b"\n").split(b"\n")[1:], 2):
                yield Line(attempt, rank, size + i, _text(raw))

    def last_lines(self, run: int, attempt: int, rank: int) -> tuple[str, ...]:
        """The end of what the rank wrote, LAST_BYTES of it at most."""
        rest = b""
        for ending in ("tail", "log"):
            path = self.file(run, attempt, rank, ending)
            if path.exists():
                with path.open("rb") as file:
                    file.seek(max(0, os.fstat(file.fileno()).st_size - LAST_BYTES))
                    rest = file.read()
                break
        # They go into reasons, which are shown in many places.
        return tuple(clean(_text(raw)) for raw in rest.removesuffix(b"\n").split(b"\n")) if rest else ()


def _text(raw: bytes) -> str:
    # A progress bar redraws itself with carriage returns: what it showed last is the line.
    return raw.rstrip(b"\r").rsplit(b"\r", 1)[-1].decode("utf-8", "replace")
