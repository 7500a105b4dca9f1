"""Which paths of a working folder stay out of its snapshot: .gitignore, .git/info/exclude and .orchignore."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import re

    from pathspec.pattern import RegexPattern

ALWAYS = frozenset({".git", "__pycache__"})
VENV_MARK = "pyvenv.cfg"


@dataclass(frozen=True)
class _Rules:
    """One ignore file: its patterns hold for what lies under `base`."""

    base: str
    patterns: tuple[RegexPattern, ...]

    def verdict(self, path: str) -> bool | None:
        """True: ignored; False: taken back by a `!` pattern; None: no pattern says anything."""
        if not path.startswith(self.base):
            return None
        subject = path[len(self.base) :]
        for pattern in reversed(self.patterns):
            if pattern.include is not None and _matches(pattern.regex, subject):
                return bool(pattern.include)
        return None


def _matches(regex: re.Pattern[str], subject: str) -> bool:
    """Whether the pattern names this entry itself.

    pathspec also lets a pattern that names a folder match all that lies below. We ask folder by folder, as git does, so
    that would be wrong: `!*/` takes back folders, not the files in them. The group `ps_d` is the folder's slash.
    """
    for match in regex.finditer(subject):
        slash = match.end("ps_d") if "ps_d" in regex.groupindex else -1
        if slash in (-1, len(subject)):
            return True
    return False


@dataclass(frozen=True)
class Ignore:
    """The ignore files that hold in one folder, the nearest last. Paths are relative to `root`, parts joined by `/`."""

    root: Path
    """The top of the git work tree, or the snapshotted folder where there is none."""
    git: tuple[_Rules, ...] = ()
    orch: tuple[_Rules, ...] = ()

    def entering(self, folder: str, names: set[str]) -> Ignore:
        """The rules inside `folder` ("" or "a/b/"), whose entries are `names`."""
        git = self.git + tuple(self._read(folder, ".gitignore")) if ".gitignore" in names else self.git
        orch = self.orch + tuple(self._read(folder, ".orchignore")) if ".orchignore" in names else self.orch
        return self if git is self.git and orch is self.orch else Ignore(self.root, git, orch)

    def ignores(self, path: str, is_dir: bool) -> bool:
        """Whether the entry stays out, given that the folder that holds it does not."""
        subject = path + "/" if is_dir else path
        # .orchignore speaks last whatever its depth, so that one line of it can take back what git leaves out.
        for rules in (*reversed(self.orch), *reversed(self.git)):
            verdict = rules.verdict(subject)
            if verdict is not None:
                return verdict
        return False

    def _read(self, folder: str, name: str) -> Iterator[_Rules]:
        yield from _parse(self.root / folder / name, folder)


def outside(top: Path | None, git_dir: Path | None, folder: Path) -> Ignore:
    """What holds in `folder` before its own files are read: the exclude file and the .gitignore files above it."""
    if top is None or git_dir is None:
        return Ignore(folder)
    rules = Ignore(top, tuple(_parse(git_dir / "info" / "exclude", "")))
    above = ""
    for part in folder.relative_to(top).parts:
        rules = rules.entering(above, {".gitignore"})
        if rules.ignores(above + part, is_dir=True):
            # Whoever submits from an ignored folder means that folder: the patterns that drop it whole say nothing.
            return Ignore(top)
        above += part + "/"
    return rules


def _parse(path: Path, base: str) -> Iterator[_Rules]:
    try:
        lines = path.read_text("utf-8", "surrogateescape").splitlines()
    except OSError:
        return
    # 40 ms that a tree without ignore files does not pay.
    from pathspec import GitIgnoreSpec

    yield _Rules(base, tuple(GitIgnoreSpec.from_lines(lines).patterns))
