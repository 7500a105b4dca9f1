"""A small YAML file as plain text values, each with its place; and its mistakes, each with file, line, column and key.

Every scalar stays the text that was written: `1e-3`, `no` and `012` mean what the key that holds them says, not what a
version of YAML guesses. That leaves YAML's syntax, which libyaml reads 30 times faster than the parsers in Python.
"""

from __future__ import annotations

import re
import stat
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, TypeAlias

MAX_BYTES = 64 * 1024
MAX_DEPTH = 64
MAX_NODES = 10_000
MAX_PRINTED = 50

KeyPath: TypeAlias = tuple[str | int, ...]
"""Where a value sits: `("env", "LR")`, `("secrets", 0)`; the whole document is `()`."""

_CONTROL = "\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ufeff\ud800-\udfff"
CONTROL = re.compile(f"[{_CONTROL}]")
"""What no text may hold: it would act on terminals, or hide what a line says. Tab and line ends are not in it."""

CONTROL_IN_LINE = re.compile(f"[{_CONTROL}\t\n\r]")
"""What no text of one line may hold."""

_UTF_16_OR_32 = (b"\xff\xfe", b"\xfe\xff", b"\x00\x00\xfe\xff")


@dataclass(frozen=True, slots=True)
class Mark:
    """A place: line and column count from 1, and are 0 where there is none (a flag, a file that cannot be read)."""

    source: str
    line: int = 0
    column: int = 0

    def __str__(self) -> str:
        return f"{self.source}:{self.line}:{self.column}" if self.line else self.source


@dataclass(frozen=True)
class Complaint:
    """One mistake. Prints as `job.yaml:4:3: workers: message. hint`, without any character that acts on a terminal."""

    mark: Mark
    key: str
    """Dotted, as in `env.LR`; empty where it is about the whole file."""
    message: str
    hint: str = ""

    def __str__(self) -> str:
        parts = [str(self.mark), self.key, self.message + (f". {self.hint}" if self.hint else "")]
        return printable(": ".join(part for part in parts if part))


class DocumentError(Exception):
    """What was given cannot be used; `complaints` says everything that is wrong with it, in the order of the lines."""

    def __init__(self, complaints: Iterable[Complaint]) -> None:
        # Flags have line 0 and come first; a stable sort keeps them in their order.
        self.complaints = tuple(sorted(complaints, key=lambda c: (c.mark.source, c.mark.line, c.mark.column)))
        super().__init__(self.complaints)

    def __str__(self) -> str:
        lines = [str(complaint) for complaint in self.complaints[:MAX_PRINTED]]
        if (more := len(self.complaints) - MAX_PRINTED) > 0:
            lines.append(f"... and {more} more")
        return "\n".join(lines)


def printable(text: str) -> str:
    """`text` with everything that a terminal would not simply show written as an escape."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def shown(value: object, limit: int = 60) -> str:
    """A value from a file as a message names it: quoted, one line, short."""
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list | tuple):
        return "a list"
    text = printable(str(value))
    return f"'{text[:limit]}...'" if len(text) > limit else f"'{text}'"


def dotted(path: KeyPath) -> str:
    return ".".join(str(part) if len(str(part)) <= 80 else f"{str(part)[:80]}..." for part in path)


def nearest(word: str, known: Iterable[str]) -> str:
    """`Did you mean 'workers'?`, or the keys that there are where none is near."""
    import difflib

    known = list(known)
    # A word longer than this resembles no key, and the comparison is quadratic.
    near = difflib.get_close_matches(word.lower(), known, n=1) if len(word) <= 40 else []
    return f"Did you mean '{near[0]}'?" if near else f"There are: {', '.join(known)}"


# Reading bytes --------------------------------------------------------------------------------------------------------


def read_text(path: str | Path, max_bytes: int = MAX_BYTES) -> str:
    """The text of a file, or of standard input for `-`; reads at most `max_bytes` + 1 bytes. Raises DocumentError."""
    name = "<stdin>" if str(path) == "-" else str(path)
    try:
        if name == "<stdin>":
            return decode(sys.stdin.buffer.read(max_bytes + 1), name, max_bytes)
        status = Path(path).stat()
        if stat.S_ISDIR(status.st_mode):
            raise _mistake(name, "is a folder, not a file")
        if not stat.S_ISREG(status.st_mode):
            # Opening a pipe would wait for somebody to write.
            raise _mistake(name, "is a pipe or a device, not a file", "To read standard input, give '-'")
        if status.st_size > max_bytes:
            raise _too_big(name, status.st_size, max_bytes)
        with open(path, "rb") as file:
            return decode(file.read(max_bytes + 1), name, max_bytes)
    except OSError as error:
        raise _mistake(name, f"cannot be read: {error.strerror or error}") from None
    except ValueError:
        raise _mistake(name, "is not a usable file name") from None


def decode(data: bytes, source: str, max_bytes: int = MAX_BYTES) -> str:
    """UTF-8 (with a byte order mark or without) as text. Raises DocumentError for all else."""
    if len(data) > max_bytes:
        raise _too_big(source, None, max_bytes)
    if data.startswith(_UTF_16_OR_32):
        raise _mistake(source, "is UTF-16 or UTF-32", "Save it as UTF-8")
    at = data.find(b"\0")
    if at >= 0:
        raise DocumentError([Complaint(_byte_mark(source, data, at), "", "a NUL byte", "Is it a text file in UTF-8?")])
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        message = f"the byte 0x{data[error.start]:02x} is not UTF-8"
        hint = "If the file is in Latin-1 or another old encoding, save it as UTF-8"
        raise DocumentError([Complaint(_byte_mark(source, data, error.start), "", message, hint)]) from None


def _byte_mark(source: str, data: bytes, at: int) -> Mark:
    line_start = data.rfind(b"\n", 0, at) + 1
    # What comes before the first bad byte is good UTF-8; a NUL may come after bad bytes, hence "replace".
    column = len(data[line_start:at].decode("utf-8", "replace")) + 1
    return Mark(source, data.count(b"\n", 0, at) + 1, column)


def _mistake(source: str, message: str, hint: str = "") -> DocumentError:
    return DocumentError([Complaint(Mark(source), "", message, hint)])


def _too_big(source: str, size: int | None, max_bytes: int) -> DocumentError:
    what = "has more than" if size is None else f"has {size:,} bytes, more than"
    return _mistake(
        source, f"{what} {max_bytes // 1024} KiB, the most that such a file may have", "Is it the right file?"
    )


# Reading YAML ---------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Scalar:
    mark: Mark
    text: str
    null: bool = False
    problem: str = ""


@dataclass(slots=True)
class Sequence:
    mark: Mark
    items: list[Node] = field(default_factory=list)
    problem: str = ""


@dataclass(slots=True)
class Mapping:
    mark: Mark
    entries: list[tuple[Node, Node]] = field(default_factory=list)
    problem: str = ""


Node: TypeAlias = Scalar | Sequence | Mapping
"""A part of a document. `problem` says why it cannot be used; a part that nobody uses may have one."""

_NULLS = {"", "~", "null", "Null", "NULL"}


def parse(text: str, source: str, max_bytes: int = MAX_BYTES) -> Node | None:
    """The one document in `text`, None where there is none. Raises DocumentError for bad YAML and beyond the caps."""
    if len(text) > max_bytes or len(text.encode("utf-8", "replace")) > max_bytes:
        raise _too_big(source, None, max_bytes)
    text = text.removeprefix("\ufeff")
    if unfit := list(_control_characters(text, source)):
        raise DocumentError(unfit)
    return _build(_events(text, source), source)


def _control_characters(text: str, source: str) -> Iterator[Complaint]:
    for found in islice(CONTROL.finditer(text), MAX_PRINTED):
        line_start = text.rfind("\n", 0, found.start()) + 1
        mark = Mark(source, text.count("\n", 0, found.start()) + 1, found.start() - line_start + 1)
        yield Complaint(mark, "", f"the control character U+{ord(found[0]):04X}", "Remove it")


def _events(text: str, source: str) -> Iterator[Any]:
    import yaml

    try:
        yield from yaml.parse(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except yaml.MarkedYAMLError as error:
        raise DocumentError([_syntax(error, text, source)]) from None
    except yaml.YAMLError as error:
        raise _mistake(source, f"is not YAML: {error}") from None


_PLAIN_WORDS = {
    "mapping values are not allowed in this context": (
        "a ': ' where no key can be",
        "Quote the value if ': ' belongs to it, and indent all keys of a level alike",
    ),
    "could not find expected ':'": ("a key without ': ' after it", ""),
    "found a tab character that violates indentation": ("a tab", "YAML is indented with spaces"),
    "found undefined tag handle": ("a tag ('!...'): tags are not used here", ""),
}


def _syntax(error: Any, text: str, source: str) -> Complaint:
    """libyaml's complaint in plainer words."""
    mark = error.problem_mark or error.context_mark
    if mark is None:
        return Complaint(Mark(source), "", f"is not YAML: {error.problem or error.context}")
    at = Mark(source, mark.line + 1, mark.column + 1)
    lines = text.split("\n")
    rest = lines[mark.line][mark.column :] if mark.line < len(lines) else ""
    if "cannot start any token" in (error.problem or ""):
        if rest[:1] == "\t":
            return Complaint(at, "", "a tab", "YAML is indented with spaces")
        return Complaint(at, "", f"a value cannot begin with {shown(rest[:1])}", "Put it in quotes")
    if error.problem in _PLAIN_WORDS:
        return Complaint(at, "", *_PLAIN_WORDS[error.problem])
    begun = f", {error.context} that begins in line {error.context_mark.line + 1}" if error.context_mark else ""
    return Complaint(at, "", f"is not YAML: {error.problem}{begun}")


def _build(events: Iterator[Any], source: str) -> Node | None:
    """A tree of what libyaml tells one event at a time, so that the caps hold before anything large exists."""
    import yaml

    root: Node | None = None
    stack: list[Sequence | Mapping] = []
    keys: list[Node | None] = []
    count = documents = 0
    for event in events:
        if isinstance(event, yaml.CollectionEndEvent):
            stack.pop()
            keys.pop()
            continue
        at = Mark(source, event.start_mark.line + 1, event.start_mark.column + 1)
        if isinstance(event, yaml.DocumentStartEvent):
            documents += 1
            if documents > 1:
                raise DocumentError([Complaint(at, "", "a second document begins here ('---')", "A file holds one")])
        if not isinstance(event, yaml.NodeEvent):
            continue
        count += 1
        if count > MAX_NODES:
            raise DocumentError([Complaint(at, "", f"more than {MAX_NODES:,} values", "Is it the right file?")])
        node = _node(event, at)
        if not stack:
            root = node
        elif isinstance(stack[-1], Sequence):
            stack[-1].items.append(node)
        elif keys[-1] is None:
            keys[-1] = node
        else:
            stack[-1].entries.append((keys[-1], node))
            keys[-1] = None
        if not isinstance(node, Scalar):
            stack.append(node)
            keys.append(None)
            if len(stack) > MAX_DEPTH:
                raise DocumentError([Complaint(at, "", f"nested more than {MAX_DEPTH} deep")])
    return root


def _node(event: Any, at: Mark) -> Node:
    import yaml

    if isinstance(event, yaml.AliasEvent):
        return Scalar(at, "", problem=f"an alias ({shown('*' + event.anchor)}): write the value out instead")
    problem = ""
    if event.anchor is not None:
        problem = f"an anchor ({shown('&' + event.anchor)}): write the value out where it is needed instead"
    elif event.tag is not None:
        problem = f"a tag ({shown(event.tag)}): tags are not used here"
    if isinstance(event, yaml.ScalarEvent):
        return Scalar(at, event.value, null=event.implicit[0] and event.value in _NULLS, problem=problem)
    if isinstance(event, yaml.SequenceStartEvent):
        return Sequence(at, problem=problem)
    return Mapping(at, problem=problem)


# Plain values ---------------------------------------------------------------------------------------------------------


@dataclass
class Contents:
    """A document as plain values (dict, list and str), where each of them and each key stands, and what is wrong."""

    data: Any = None
    marks: dict[KeyPath, Mark] = field(default_factory=dict)
    key_marks: dict[KeyPath, Mark] = field(default_factory=dict)
    complaints: list[Complaint] = field(default_factory=list)
    refused: set[KeyPath] = field(default_factory=set)
    """The values that were left out of `data`, because a complaint is about them."""

    def complain(self, path: KeyPath, message: str, hint: str = "", *, at: Mark | None = None) -> None:
        mark = at or self.mark(path)
        self.complaints.append(Complaint(mark, dotted(path), message, hint))

    def mark(self, path: KeyPath, *, key: bool = False) -> Mark:
        """Where the value at `path` (or its key) stands, or else the nearest thing around it."""
        if key and path in self.key_marks:
            return self.key_marks[path]
        while path and path not in self.marks:
            path = path[:-1]
        return self.marks.get(path, Mark("?"))


def contents(node: Node, base: KeyPath = ()) -> Contents:
    """The plain values below `node`, which stands at `base` of what its reader knows."""
    found = Contents()
    data = _plain(node, base, found)
    found.data = None if data is _NOTHING else data
    return found


_NOTHING = object()


def _plain(node: Node, path: KeyPath, found: Contents) -> Any:
    found.marks[path] = node.mark
    if node.problem:
        return _refuse(path, found, node.problem)
    if isinstance(node, Scalar):
        if node.null:
            return _refuse(path, found, "has no value", "Give it one, or leave the key out ('' is an empty text)")
        return node.text
    if isinstance(node, Sequence):
        items = [_plain(item, (*path, index), found) for index, item in enumerate(node.items)]
        # What was refused keeps its place, so that the index of what follows stays true.
        return ["" if item is _NOTHING else item for item in items]
    data: dict[str, Any] = {}
    for key, value in node.entries:
        if not isinstance(key, Scalar) or key.problem or key.null:
            problem = key.problem or "must be a plain word"
            found.complain(path, f"a key: {problem}", at=key.mark)
            continue
        inner = (*path, key.text)
        if inner in found.key_marks:
            first = found.key_marks[inner]
            found.complain(inner, f"is given twice, first in line {first.line}", at=key.mark)
            continue
        found.key_marks[inner] = key.mark
        if (plain := _plain(value, inner, found)) is not _NOTHING:
            data[key.text] = plain
    return data


def _refuse(path: KeyPath, found: Contents, message: str, hint: str = "") -> object:
    found.complain(path, message, hint)
    found.refused.add(path)
    return _NOTHING
