"""What `nvidia-smi topo -m`, `-mp` and `-p2p` say of one machine, or of several whose output stands in one file.

The matrix is found wherever it stands: after a prompt, behind log prefixes, between other output. Each row begins
with a column's name and has one word for each column; what follows are CPU and NUMA affinities. Only NUMA is taken
from them, since nvidia-smi cuts long CPU lists off. Prefixes of `pdsh`, `srun -l`, `mpirun` and `kubectl` (`gpu-01: GPU0 X
...`) part the nodes.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace

from orchestrator.hardware.formats.errors import FormatError
from orchestrator.hardware.model import NEAR_WORDS, Cluster, Gpu, Nic, Node, Shape, is_link, nvlinks

_OLD_WORDS = {"SOC": "SYS", "PSB": "PIX"}
"""Words of old drivers, with today's for the same thing."""
_P2P_WORDS = frozenset({"OK", "CNS", "GNS", "TNS", "NS", "DR", "U"})
_UNKNOWN = frozenset({"", "N/A", "-"})
_AFFINITY_HEADER = frozenset({"CPU", "NUMA", "GPU", "Affinity", "ID"})

_ANSI = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
_GPU = re.compile(r"GPU([0-9]{1,4})")
_COLUMN = re.compile(r"[A-Za-z][A-Za-z_.-]*[0-9][A-Za-z0-9_.-]*")
_HOST_PREFIX = re.compile(
    r"(?:\[[0-9]+,(?P<rank>[0-9]+)\]<std(?:out|err)>:|\[pod/(?P<pod>[\w.-]+)(?:/[^\]]*)?\]"
    r"|\s*(?P<host>[A-Za-z0-9][A-Za-z0-9_.-]*):(?=\s|$)) ?(?P<rest>.*)"
)
"""A colon within a word belongs to a time of day, not to a host."""
_LEGEND = re.compile(r"(?:^|\s)(NIC[0-9]+):\s*(\S+)\s*$")
_MODEL = re.compile(r"\s*GPU ([0-9]{1,4}(?:,[0-9]{1,4})*): ([^()]+?)\s*(?:\(UUID: ([^)\s]+)\))?\s*")
_TABLE_MODEL = re.compile(
    r"\s*([0-9]{1,4})\s+(\S.*?)(?:\.\.\.)?\s+(?:On|Off|N/A|Enabled|Disabled)\s+[0-9A-Fa-f]{8}:[0-9A-Fa-f]{2}:[0-9A-Fa-f]{2}\.[0-9]\b"
)
"""A GPU's first line in the table that plain `nvidia-smi` prints, its bars taken out."""


@dataclass
class _Row:
    line: int
    cells: list[str]
    numa: int | None = None


@dataclass
class _Matrix:
    """One matrix as it stands in the text."""

    line: int
    columns: list[str]
    affinities: list[str] = field(default_factory=list)
    """The words of the header after the last column."""
    rows: dict[str, _Row] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)
    """The NIC legend: NIC0 -> mlx5_0."""

    @property
    def is_p2p(self) -> bool:
        return any(cell in _P2P_WORDS for row in self.rows.values() for cell in row.cells)


def parse(text: str, name: str = "node") -> Cluster:
    """The machines that `text` shows; one without a name in the text is called `name`.

    Raises FormatError where there is no matrix, one of its rows is missing or cut, or two rows contradict each other.
    """
    by_host = _by_host(_lines(text))
    notes: list[str] = []
    nodes: list[Node] = []
    for host, numbered in by_host.items():
        # `srun -l` and `mpirun` number their tasks: that is no host's name.
        called = name if host.isdigit() and len(by_host) == 1 else f"{name}-{host}" if host.isdigit() else host or name
        nodes.extend(_nodes(numbered, called, notes))
    if not nodes:
        raise FormatError(None, "there is no matrix of `nvidia-smi topo` in it")
    return Cluster(tuple(nodes), notes=tuple(notes))


def found_in(text: str) -> bool:
    """Whether `text` holds such a matrix."""
    lines = [line for numbered in _by_host(_lines(text)).values() for _, line in numbered]
    columns = {column for line in lines for column in _header(line.split())[0]}
    return any(label in columns for line in lines if (label := _label(line.split())[0]))


def _lines(text: str) -> list[str]:
    """The lines without what terminals, Markdown tables (`| GPU0 | X |`) and `docker compose` (`worker-1  | GPU0`) add."""
    plain = _ANSI.sub("", text).replace("\r\n", "\n").replace("\r", "\n")
    return [line.replace("|", " ") for line in plain.split("\n")]


def _by_host(lines: list[str]) -> dict[str, list[tuple[int, str]]]:
    """Numbered lines by host, where a prefix before the header names one; all under "" otherwise."""
    numbered = list(enumerate(lines, start=1))
    prefixed = [
        (number, match["rank"] or match["pod"] or match["host"], match["rest"])
        for number, line in numbered
        if (match := _HOST_PREFIX.match(line))
    ]
    headed = dict.fromkeys(host for _, host, rest in prefixed if _header(rest.split())[0])
    # A prefix before the header alone is a title (`Topology: GPU0 GPU1`), not a host.
    hosts = {host for _, host, rest in prefixed if host in headed and _label(rest.split())[0]}
    by_host: dict[str, list[tuple[int, str]]] = {host: [] for host in headed if host in hosts}
    if not by_host:
        return {"": numbered}
    for number, host, rest in prefixed:
        if host in by_host:
            by_host[host].append((number, rest))
    return by_host


def _nodes(lines: list[tuple[int, str]], name: str, notes: list[str]) -> list[Node]:
    nodes: list[Node] = []
    models = _models(lines)
    for matrix in _matrices(lines):
        shape = _p2p_shape(matrix) if matrix.is_p2p else _topo_shape(matrix, notes)
        together = _of_one_machine(nodes[-1].shape, shape) if nodes else None
        if together is not None:
            nodes[-1] = replace(nodes[-1], shape=together)
        else:
            nodes.append(Node(name if not nodes else f"{name}-{len(nodes) + 1}", shape))
    return [_with_models(node, models) for node in nodes]


def _of_one_machine(first: Shape, second: Shape) -> Shape | None:
    """Both matrices as one machine's, or None where the second begins another machine: links (-m, -mp) and peer access
    (-p2p r, w, n, ...) are printed one by one."""
    if first.indices != second.indices:
        return None
    if not second.links or not first.links:
        # Of several kinds of peer access the first counts.
        links, access = first if first.links else second, first.peer_access or second.peer_access
        return replace(links, peer_access=access)
    if [nic.name for nic in first.nics] == [nic.name for nic in second.nics]:
        # -mp leaves NVLink out; two machines of one make have it both or neither.
        joined = [any(map(nvlinks, shape.links)) for shape in (first, second)]
        if joined[0] != joined[1]:
            return replace(first if joined[0] else second, peer_access=first.peer_access or second.peer_access)
    return None


def _matrices(lines: list[tuple[int, str]]) -> list[_Matrix]:
    matrices: list[_Matrix] = []
    open_row: str | None = None
    for number, line in lines:
        tokens = line.split()
        columns, affinities = _header(tokens)
        label, position = _label(tokens)
        current = matrices[-1] if matrices else None
        if label and current is not None:
            if label in current.rows:
                raise FormatError(number, f"{label} has a second row (the first is line {current.rows[label].line})")
            if label not in current.columns:
                raise FormatError(number, f"the row {label} has no column in the header of line {current.line}")
            current.rows[label] = _row(number, line, tokens[position + 1 :], current)
            open_row = label
        elif columns:
            matrices.append(_Matrix(number, columns, affinities))
            open_row = None
        elif current is not None and tokens:
            if legend := _LEGEND.search(line):
                current.names[legend[1]] = legend[2]
            elif not current.rows and (more := _header_rest(tokens)):
                # A terminal wrapped the header.
                current.columns += more[0]
                current.affinities += more[1]
            elif open_row and len(current.rows[open_row].cells) < len(current.columns) and _is_cell(tokens[0]):
                wrapped = _row(number, line, tokens, current, len(current.rows[open_row].cells))
                current.rows[open_row].cells += wrapped.cells
                current.rows[open_row].numa = wrapped.numa
    for matrix in matrices:
        _check_whole(matrix)
    return [matrix for matrix in matrices if matrix.rows]


def _check_whole(matrix: _Matrix) -> None:
    """Every GPU has a whole row. A header without any row is prose, or a wrapped line of something else."""
    if not matrix.rows:
        return
    columns = len(matrix.columns)
    for label, row in matrix.rows.items():
        if len(row.cells) < columns and _GPU.fullmatch(label):
            raise FormatError(row.line, f"the row {label} has {len(row.cells)} of {columns} cells: the text is cut off")
    missing = [label for label in matrix.columns if _GPU.fullmatch(label) and label not in matrix.rows]
    if missing:
        last = max(row.line for row in matrix.rows.values())
        raise FormatError(last, f"no row follows for {', '.join(missing[:8])}: the text is cut off")
    if len(set(matrix.columns)) < columns:
        raise FormatError(matrix.line, "a column's name comes twice in the header")


def _header(tokens: list[str]) -> tuple[list[str], list[str]]:
    """The columns and the words after them, if these are the words of a header; else nothing."""
    first = next((i for i, token in enumerate(tokens) if _GPU.fullmatch(token)), None)
    if first is None or _label(tokens)[0]:
        return [], []
    rest = _header_rest(tokens[first:])
    return rest if rest else ([], [])


def _header_rest(tokens: list[str]) -> tuple[list[str], list[str]] | None:
    end = next((i for i, token in enumerate(tokens) if token in _AFFINITY_HEADER), len(tokens))
    columns, affinities = tokens[:end], tokens[end:]
    named = all(_COLUMN.fullmatch(column) and not _is_cell(column) for column in columns)
    return (columns, affinities) if named and all(word in _AFFINITY_HEADER for word in affinities) else None


def _label(tokens: list[str]) -> tuple[str, int]:
    """The name that a row begins with and its position, if these are the words of a row; else an empty name."""
    for position, token in enumerate(tokens[:-1]):
        if _COLUMN.fullmatch(token) and not _is_cell(token) and _is_cell(tokens[position + 1]):
            return token, position
    return "", 0


def _is_cell(word: str) -> bool:
    return word == "X" or word in _OLD_WORDS or word in _P2P_WORDS or is_link(word)


def _row(number: int, line: str, tokens: list[str], matrix: _Matrix, filled: int = 0) -> _Row:
    """The cells of a row from `tokens`, those after its name; `filled` cells stood on the lines before."""
    wanted = len(matrix.columns) - filled
    cells, rest = _split_by_tabs(line, wanted) if not filled else ([], [])
    if not cells:
        count = next((i for i, token in enumerate(tokens) if not _is_cell(token)), len(tokens))
        if count > wanted:
            raise FormatError(number, f"the row has {count + filled} cells, the header {len(matrix.columns)} columns")
        cells, rest = tokens[:count], tokens[count:]
    return _Row(number, [_OLD_WORDS.get(cell, cell) for cell in cells], _numa(rest, matrix.affinities))


def _split_by_tabs(line: str, wanted: int) -> tuple[list[str], list[str]]:
    """Cells and what follows, where tabs part them: only so can a blank cell be seen. Nothing where they do not."""
    fields = [piece.strip() for piece in line.rstrip().split("\t")]
    label = next((i for i, piece in enumerate(fields) if piece and _COLUMN.fullmatch(piece.split()[-1])), None)
    if label is None:
        return [], []
    cells, rest = fields[label + 1 : label + 1 + wanted], fields[label + 1 + wanted :]
    if len(cells) < wanted or not all(cell in _UNKNOWN or _is_cell(cell) for cell in cells):
        return [], []
    return ["" if cell in _UNKNOWN else cell for cell in cells], [piece for piece in rest if piece]


def _numa(rest: list[str], affinities: list[str]) -> int | None:
    """The NUMA node from the words after the cells: the second of them, where the header has such a column."""
    if "NUMA" not in affinities or len(rest) < 2:
        return None
    return int(rest[1]) if rest[1].isascii() and rest[1].isdigit() and len(rest[1]) < 6 else None


def _topo_shape(matrix: _Matrix, notes: list[str]) -> Shape:
    _check_diagonal(matrix)
    gpus = _gpus(matrix)
    links = tuple(_cell(matrix, f"GPU{a.index}", f"GPU{b.index}") for i, a in enumerate(gpus) for b in gpus[i + 1 :])
    nics = tuple(_nic(matrix, column, gpus) for column in matrix.columns if not _GPU.fullmatch(column))
    lost = [nic for nic in matrix.columns if not _GPU.fullmatch(nic) and nic not in matrix.rows]
    if lost and len(lost) < len(nics):
        notes.append(f"The rows of {', '.join(lost[:8])} are missing; the columns tell as much.")
    return Shape(gpus, links if any(links) else (), nics)


def _p2p_shape(matrix: _Matrix) -> Shape:
    _check_diagonal(matrix)
    gpus = _gpus(matrix)
    access = []
    for position, a in enumerate(gpus):
        for b in gpus[position + 1 :]:
            there = _one_way(matrix, f"GPU{a.index}", f"GPU{b.index}")
            back = _one_way(matrix, f"GPU{b.index}", f"GPU{a.index}")
            # Access may be refused one way only; a pair is as good as its worse way.
            access.append(there if there != "OK" else back)
    return Shape(gpus, peer_access=tuple(access))


def _gpus(matrix: _Matrix) -> tuple[Gpu, ...]:
    found = [
        Gpu(int(match[1]), numa=matrix.rows[column].numa)
        for column in matrix.columns
        if (match := _GPU.fullmatch(column))
    ]
    return tuple(sorted(found, key=lambda gpu: gpu.index))


def _nic(matrix: _Matrix, column: str, gpus: tuple[Gpu, ...]) -> Nic:
    words = {gpu: _cell(matrix, f"GPU{gpu.index}", column) for gpu in gpus}
    # SYS is between NUMA nodes, so a GPU at any other distance is on the NIC's own.
    numas = {gpu.numa for gpu, word in words.items() if word not in (None, "SYS")}
    return Nic(
        matrix.names.get(column, column),
        near=tuple(gpu.index for gpu, word in words.items() if word in NEAR_WORDS),
        numa=numas.pop() if len(numas) == 1 else None,
    )


def _check_diagonal(matrix: _Matrix) -> None:
    for label, row in matrix.rows.items():
        for column, cell in zip(matrix.columns, row.cells, strict=False):
            if (cell == "X") != (column == label):
                what = f"{label} to {column} is {cell or 'blank'}"
                raise FormatError(row.line, f"{what}: X stands where a row meets itself, and nowhere else")


def _cell(matrix: _Matrix, a: str, b: str) -> str | None:
    """The word between two things, the same from both sides."""
    there, back = _one_way(matrix, a, b), _one_way(matrix, b, a)
    if there and back and there != back:
        raise FormatError(matrix.rows[b].line, f"{a} to {b} is {there}, but {b} to {a} is {back}")
    word = there or back
    if word in _P2P_WORDS:
        raise FormatError(matrix.rows[a].line, f"{a} to {b} is {word}: links and peer access in one matrix")
    return word


def _one_way(matrix: _Matrix, a: str, b: str) -> str | None:
    row = matrix.rows.get(a)
    position = matrix.columns.index(b)
    return (row.cells[position] or None) if row is not None and position < len(row.cells) else None


def _models(lines: list[tuple[int, str]]) -> dict[int, tuple[str, str | None]]:
    """Model and UUID by index from what stands beside the matrix: `nvidia-smi -L`, its table, a collect_env report."""
    models: dict[int, tuple[str, str | None]] = {}
    for _, line in lines:
        if match := _TABLE_MODEL.match(line):
            models.setdefault(int(match[1]), (match[2], None))
        elif match := _MODEL.fullmatch(line):
            for index in match[1].split(","):
                models[int(index)] = (match[2], match[3])
    return models


def _with_models(node: Node, models: dict[int, tuple[str, str | None]]) -> Node:
    if not models:
        return node
    gpus = tuple(replace(gpu, model=models.get(gpu.index, (None, None))[0]) for gpu in node.gpus)
    uuids = [models.get(gpu.index, (None, None))[1] for gpu in node.gpus]
    known = tuple(uuid for uuid in uuids if uuid is not None)
    return replace(node, shape=replace(node.shape, gpus=gpus), uuids=known if len(known) == len(uuids) else ())
