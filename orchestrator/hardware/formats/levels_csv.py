"""What a CSV of places says: a row for each node, a column for its name and one for each level.

The name's column is called ip, host, hostname, node, name or server; without such a one it is the column whose values
are all different. `gpus` (a number) and `gpu`, `model` or `gpu_type` say what is in the node. Every other column is a
level; which are wider follows from how many values they have, so the order of columns does not matter. The narrowest
is the `leaf`, then `pod`, `spine`, `core`; the column's own name stays as a label, so that it can be asked for too.
"""

from __future__ import annotations

import csv
import io
from collections import defaultdict
from collections.abc import Sequence
from itertools import pairwise

from orchestrator.hardware.formats.errors import FormatError
from orchestrator.hardware.formats.switches import level_of
from orchestrator.hardware.model import FABRIC_LEVELS, MOST_GPUS, Cluster, Domain, Gpu, Node, Shape

_NAMES = (
    "node",
    "name",
    "host",
    "hostname",
    "node_name",
    "nodename",
    "server",
    "machine",
    "ip",
    "node_ip",
    "address",
    "sn",
)
_COUNTS = frozenset({"gpus", "gpu_count", "num_gpus", "gpu_num"})
_MODELS = frozenset({"gpu", "model", "gpu_type", "gpu_model", "gpu_spec", "accelerator"})
_OTHER = frozenset({"cpu", "cpus", "cpu_milli", "cores", "mem", "memory", "memory_mib", "memory_gib", "disk"})

_Rows = list[tuple[int, dict[str, str]]]


def parse(text: str, name: str = "levels", levels: Sequence[str] | None = None) -> Cluster:
    """The nodes of the CSV and the domains that its columns make.

    `levels` says which columns are levels, widest first; absent, all that are nothing else. A name of a narrower
    level that comes below several wider ones is taken for several places, and called `wider/narrower`. Raises
    FormatError where a row has not the header's columns, a node comes twice, or a cell is empty that a level needs.
    """
    header, rows = _read(text)
    key = _name_column(header, rows)
    counts = next((column for column in header if _is_count(column, rows)), None)
    models = next((column for column in header if column != counts and column.lower() in _MODELS), None)
    if levels is None:
        chosen = _ordered([c for c in header if c not in (key, counts, models) and _may_be_level(c, rows)], rows)
    else:
        chosen = list(levels)
        if missing := [level for level in chosen if level not in header]:
            raise FormatError(1, f"there is no column {missing[0]}; the columns are {', '.join(header)}")
    places, domains = _domains(key, chosen, rows)
    shapes: dict[tuple[int, str | None], Shape] = {}
    nodes: dict[str, Node] = {}
    first: dict[str, int] = {}
    for line, row in rows:
        node = row[key]
        if node in first:
            raise FormatError(line, f"{node} comes twice (first on line {first[node]})")
        first[node] = line
        count, model = _count(line, row[counts]) if counts else 0, (row[models] or None) if models else None
        if (count, model) not in shapes:
            shapes[count, model] = Shape(tuple(Gpu(index, model) for index in range(count)))
        labels = {column: place for column, place in zip(chosen, places[node], strict=True) if place}
        nodes[node] = Node(node, shapes[count, model], {c: p for c, p in labels.items() if c not in FABRIC_LEVELS})
    return Cluster(tuple(nodes.values()), domains)


def _read(text: str) -> tuple[list[str], _Rows]:
    """The header and the numbered rows, cells without surrounding blanks; comment lines and blank ones left out."""
    lines = text.lstrip("\ufeff").replace("\r\n", "\n").replace("\r", "\n").split("\n")
    kept = [(number, line) for number, line in enumerate(lines, start=1) if line.strip() and not line.startswith("#")]
    if not kept:
        raise FormatError(None, "it has no header")
    delimiter = max(",;\t", key=kept[0][1].count)
    numbers = [number for number, _ in kept]
    try:
        # Strict, so that a quote that never closes is an error, and not the rest of the file in one cell.
        cells = list(csv.reader(io.StringIO("\n".join(line for _, line in kept)), delimiter=delimiter, strict=True))
    except csv.Error as error:
        raise FormatError(None, f"broken CSV: {error}") from None
    header = [cell.strip() for cell in cells[0]]
    if len(header) < 2 or len(set(header)) < len(header) or not all(header):
        raise FormatError(numbers[0], "the header needs two columns or more, each with a name of its own")
    rows: _Rows = []
    for position, row in enumerate(cells[1:], start=1):
        # A quoted cell with a line break makes fewer rows than lines; the number is then the nearest there is.
        number = numbers[min(position, len(numbers) - 1)]
        if len(row) != len(header):
            raise FormatError(number, f"the row has {len(row)} cells, the header {len(header)} columns")
        rows.append((number, {column: cell.strip() for column, cell in zip(header, row, strict=True)}))
    if not rows:
        raise FormatError(numbers[0], "a header, and no row below it")
    return header, rows


def _name_column(header: list[str], rows: _Rows) -> str:
    lower = {column.lower(): column for column in reversed(header)}
    for candidate in _NAMES:
        if candidate in lower:
            return lower[candidate]
    distinct = [column for column in header if len({row[column] for _, row in rows}) == len(rows)]
    if len(distinct) != 1:
        raise FormatError(1, f"no column is called {', '.join(_NAMES[:4])} or ip: which one names the node?")
    return distinct[0]


def _is_count(column: str, rows: _Rows) -> bool:
    # Some lists call the number of GPUs `gpu`, others their model.
    return column.lower() in _COUNTS or (column.lower() == "gpu" and all(row[column].isdigit() for _, row in rows))


def _may_be_level(column: str, rows: _Rows) -> bool:
    return column.lower() not in _OTHER and (len(rows) <= 8 or len({row[column] for _, row in rows}) < len(rows))


def _ordered(columns: list[str], rows: _Rows) -> list[str]:
    """The columns widest first: those with known names in their order, others by how few values they have."""
    values = {column: len({row[column] for _, row in rows}) for column in columns}
    if all(column in FABRIC_LEVELS for column in columns):
        return sorted(columns, key=FABRIC_LEVELS.index)
    # Equal counts leave the order of the file: CSVs that people write go from wide to narrow.
    return sorted(columns, key=lambda column: values[column])


def _domains(key: str, columns: list[str], rows: _Rows) -> tuple[dict[str, list[str]], tuple[Domain, ...]]:
    """The place by node for each column, and all places as domains, widest first."""
    shared = set()
    for wider, narrower in pairwise(columns):
        above = defaultdict(set)
        for _, row in rows:
            above[row[narrower]].add(row[wider])
        if any(len(parents) > 1 for place, parents in above.items() if place):
            shared.add(narrower)
    levels = [_level(column, position, columns) for position, column in enumerate(columns)]
    places: dict[str, list[str]] = {}
    parents: dict[tuple[str, str], str | None] = {}
    members: dict[tuple[str, str], dict[str, None]] = defaultdict(dict)
    for _, row in rows:
        current: tuple[str, str] | None = None
        places[row[key]] = found = []
        for level, column in zip(levels, columns, strict=True):
            place = f"{current[1]}/{row[column]}" if current and column in shared and row[column] else row[column]
            found.append(place)
            if place:
                parents.setdefault((level, place), current[1] if current else None)
                if current:
                    members[current][place] = None
                current = (level, place)
        if current:
            members[current][row[key]] = None
    domains = [Domain(level, place, parent, tuple(members[level, place])) for (level, place), parent in parents.items()]
    return places, tuple(sorted(domains, key=lambda domain: levels.index(domain.level)))


def _level(column: str, position: int, columns: list[str]) -> str:
    if all(name in FABRIC_LEVELS for name in columns):
        return column
    return level_of(len(columns) - position)


def _count(line: int, cell: str) -> int:
    if not cell.isascii() or not cell.isdigit() or len(cell) > 6 or int(cell) > MOST_GPUS:
        raise FormatError(line, f"{cell[:20]!r} is no number of GPUs")
    return int(cell)
