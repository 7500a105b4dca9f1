"""What an operator declares: Config, and where each value of it comes from.

A flag wins over an `ORCH_*` variable, that over `./cluster.yaml` (under `metadata: orch:`), that over
`~/.config/orch/config.yaml`, that over the default.
What is wrong in any of them is refused, even where it is overruled.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from orchestrator import document, policy_text
from orchestrator.document import Complaint, Contents, DocumentError, KeyPath, Mark, dotted, nearest, shown
from orchestrator.policy import Policy, Preempt, Team
from orchestrator.policy_text import SETTINGS, read_teams, teams_as_text, teams_of
from orchestrator.units import format_duration, format_size, parse_duration, parse_size

Preflight = Literal["on", "quick", "off"]
HeadStorage = Literal["memory", "rocksdb"]

MAX_BYTES = 1024 * 1024
"""A cluster.yaml may list many nodes."""


class ConfigError(DocumentError):
    """A configuration that cannot be used; `complaints` says why, str() prints them a line each."""


@dataclass(frozen=True)
class Config:
    """The configuration, defaults filled in, and where each value comes from. Paths are absolute."""

    home: Path
    address: str | None
    """HOST:PORT of the Ray cluster's head; None for a private cluster on this machine."""
    database: str
    """A URL, its password in it: `shown_database` is for people."""
    storage: Path
    """The root of checkpoints; every node must see it."""
    lease: float
    """Seconds that an attempt lives without word from the controller."""
    code_limit: int
    """Bytes of a code snapshot."""
    log_limit: int
    """Bytes of log that are kept of a rank."""
    preflight: Preflight
    """Whether a gang's nodes are looked at before it is started; `quick`: without a collective between them."""
    local_slots: int
    """CPU slots of the private cluster's head."""
    head_storage: HeadStorage
    """Where the private cluster's head keeps what Ray knows: gone with it, or on disk (alpha in Ray 2.60)."""
    dashboard_proxy: int | None
    """The port that a Ray head, started by others, was told by `--proxy-server-url` to ask for orch's runs."""
    fabric: tuple[Path, ...]
    """Files that say how the nodes hang together: topology.conf, ibnetdiscover's output, a CSV of levels, ..."""
    hardware: Path | None
    """The file that declares the nodes' hardware, under `hardware:`."""
    history_keep_runs: float | None
    """Seconds for which an ended run is kept whole; None: for ever. The sums over days stay in any case."""
    history_keep_series: float | None
    """Seconds for which an ended run's series of throughput and GPU use are kept."""
    history_keep_logs: float | None
    """Seconds for which an ended run's logs are kept."""
    teams: Mapping[str, Team]
    """Who gets how much."""
    policy_half_life: float
    policy_preemption: Preempt
    policy_min_runtime: float
    policy_overdue: float
    policy_reservations: int
    policy_margin: float
    policy_communication: float
    policy_split: float
    policy_service: float
    policy_hang: float | None
    policy_first_step: float
    policy_quarantine: float
    policy_assumed_duration: float
    prices: Mapping[str, float]
    """Of a GPU-hour, by model; of a slot-hour under cpu."""
    origins: Mapping[str, str]
    """By key: `default`, `ORCH_LEASE`, `--address`, or file and line."""

    @property
    def policy(self) -> Policy:
        """What the scheduler is told."""
        return Policy(teams=self.teams, **{name: getattr(self, f"policy_{name}") for name in SETTINGS})

    def rows(self) -> list[tuple[str, str, str]]:
        """Key, value and origin as `orch config` shows them; no password is in them."""
        return [(name, key.show(getattr(self, _field(name))), self.origins[name]) for name, key in KEYS.items()]


def _field(name: str) -> str:
    return name.replace(".", "_")


def mask_password(url: str) -> str:
    """A database URL fit to be shown."""
    url = re.sub(r"(://[^:/@]*):.*@", r"\1:***@", url)
    return re.sub(r"([?&][^=&]*(?:password|passfile|sslkey)[^=&]*=)[^&]*", r"\1***", url, flags=re.IGNORECASE)


# What each key may hold: from its text and place to its value, or ValueError ------------------------------------------


@dataclass(frozen=True)
class Place:
    """Where a value stands, for values that are paths."""

    folder: Path
    user_home: Path

    def path(self, text: str) -> Path:
        if not text or document.CONTROL_IN_LINE.search(text):
            raise ValueError("must be a path")
        if text == "~" or text.startswith("~/"):
            return self.user_home / text[2:]
        if text.startswith("~"):
            raise ValueError(f"{shown(text)}: only ~ and ~/... stand for a home")
        return Path(os.path.normpath(self.folder / text))


def _storage(text: str, place: Place) -> Path:
    if "://" in text:
        raise ValueError(f"{shown(text)} must be a folder that every node sees (NFS or the like), not a URL")
    return place.path(text)


_ADDRESS = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9][A-Za-z0-9.-]*):([0-9]{1,5})")


def _address(text: str, place: Place) -> str | None:
    if text == "local":
        return None
    found = _ADDRESS.fullmatch(text)
    if found is None or not 1 <= int(found[2]) <= 65535:
        raise ValueError(
            "must be HOST:PORT of the Ray head, such as 10.0.0.1:6379, "
            f"or 'local' for a private cluster, not {shown(text)}"
        )
    return text


_DATABASE = re.compile(r"(sqlite|postgresql(\+psycopg)?)://(.*)")


def _database(text: str, place: Place) -> str:
    found = _DATABASE.fullmatch(text)
    # The text may hold a password: no message repeats it.
    if found is None:
        raise ValueError("must be a URL that begins with sqlite:/// or postgresql://")
    if found[1] != "sqlite":
        return text
    path, question, options = found[3].partition("?")
    if not path.startswith("/") or path in ("/", "/:memory:"):
        raise ValueError("must name a file, such as sqlite:////var/lib/orch/orch.db: history must outlive a process")
    return f"sqlite:///{place.path(path[1:])}{question}{options}"


def _duration(least: float, most: float) -> Callable[[str, Place], float]:
    def parse(text: str, place: Place) -> float:
        seconds = parse_duration(text)
        if not least <= seconds <= most:
            raise ValueError(f"must be between {format_duration(least)} and {format_duration(most)}, not {text}")
        return seconds

    return parse


def _keep(text: str, place: Place) -> float | None:
    return None if text == "forever" else _duration(86_400, 100 * 365 * 86_400)(text, place)


def _kept(seconds: float | None) -> str:
    return "forever" if seconds is None else format_duration(seconds)


def _size(least: int, most: int) -> Callable[[str, Place], int]:
    def parse(text: str, place: Place) -> int:
        size = parse_size(text)
        if not least <= size <= most:
            raise ValueError(f"must be between {format_size(least)} and {format_size(most)}, not {text}")
        return size

    return parse


def _one_of(kind: Any) -> Callable[[str, Place], str]:
    *words, last = get_args(kind)

    def parse(text: str, place: Place) -> str:
        if text not in (*words, last):
            raise ValueError(f"must be {', '.join(words)} or {last}, not {shown(text)}")
        return text

    return parse


def _slots(text: str, place: Place) -> int:
    if not re.fullmatch("[0-9]{1,4}", text) or not 1 <= int(text) <= 1024:
        raise ValueError(f"must be a whole number from 1 to 1024, not {shown(text)}")
    return int(text)


def _port(text: str, place: Place) -> int:
    if not re.fullmatch("[0-9]{1,5}", text) or not 1 <= int(text) <= 65535:
        raise ValueError(f"must be a port, 1 to 65535, not {shown(text)}")
    return int(text)


_PRICE = re.compile(r"([A-Za-z0-9][A-Za-z0-9._ -]{0,62})=([0-9]{1,9}(?:\.[0-9]{1,6})?)")


def _prices(text: str, place: Place) -> dict[str, float]:
    prices = {}
    for part in text.split(",") if text else ():
        found = _PRICE.fullmatch(part.strip())
        if found is None:
            raise ValueError(f"must be prices of a GPU-hour by model, such as {{H100: 2.5}}, not {shown(part)}")
        prices[found[1]] = float(found[2])
    return prices


def _show_prices(prices: Mapping[str, float]) -> str:
    return ",".join(f"{model}={price:g}" for model, price in prices.items())


def _paths(text: str, place: Place) -> tuple[Path, ...]:
    return tuple(place.path(part) for part in text.split(os.pathsep) if part)


@dataclass(frozen=True)
class Key:
    """One key of the configuration. Its variable is ORCH_ and its name in capitals; a dot becomes `_`."""

    description: str
    parse: Callable[[str, Place], Any]
    show: Callable[[Any], str] = str


def _policy_key(setting: policy_text.Setting) -> Key:
    return Key(setting.description, lambda text, place: setting.parse(text), setting.show)


KEYS: dict[str, Key] = {
    "home": Key("Folder of the database, logs, code snapshots and the token", lambda text, place: place.path(text)),
    "address": Key("HOST:PORT of the Ray head, or local", _address, lambda address: address or "local"),
    "database": Key("URL of the database", _database, mask_password),
    "storage": Key("Folder of checkpoints; every node must see it", _storage),
    "lease": Key("How long an attempt lives without word from the controller", _duration(5, 3600), format_duration),
    "code_limit": Key("The largest code snapshot", _size(2**20, 100 * 2**30), format_size),
    "log_limit": Key("How much log is kept of a rank", _size(64 * 2**10, 100 * 2**30), format_size),
    "preflight": Key(
        "Whether a gang's nodes, and links never measured, are tried before it is started: on, quick (nodes alone) or off",
        _one_of(Preflight),
    ),
    "local.slots": Key("CPU slots of a private cluster; ranks may share cores", _slots),
    "head_storage": Key(
        "What the private cluster's head keeps Ray's own state in: memory, or rocksdb (on disk; alpha)",
        _one_of(HeadStorage),
    ),
    "dashboard.proxy": Key(
        "Port at which a Ray head that orch did not start asks for orch's runs (`--proxy-server-url`)",
        _port,
        lambda port: str(port or ""),
    ),
    "history.keep_runs": Key("How long a run is kept after its end, or forever; sums stay", _keep, _kept),
    "history.keep_series": Key("How long its series of throughput and GPU use are kept", _keep, _kept),
    "history.keep_logs": Key("How long its logs are kept", _keep, _kept),
    "fabric": Key(
        "Files that say how the nodes hang together, a list (in ORCH_FABRIC with : between them)",
        _paths,
        lambda paths: os.pathsep.join(map(str, paths)),
    ),
    "hardware": Key(
        "The nodes' hardware, by name or hostlist; shown is the file that declares it",
        lambda text, place: place.path(text),
        lambda path: str(path or ""),
    ),
    "teams": Key(
        "Teams and their users: share, guaranteed GPUs, limit (in ORCH_TEAMS in one line)",
        lambda text, place: teams_of(text),
        teams_as_text,
    ),
    **{f"policy.{name}": _policy_key(setting) for name, setting in SETTINGS.items()},
    "prices": Key("Price of a GPU-hour by model (in ORCH_PRICES H100=2.5,A100=1.2)", _prices, _show_prices),
}
_GROUPS = {name.split(".")[0] for name in KEYS if "." in name}


def variable(name: str) -> str:
    """The environment variable that sets a key."""
    return "ORCH_" + _field(name).upper()


# Putting it together --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Setting:
    """One key's text, in one of the places where it can be set."""

    text: str
    key: str
    """What the key is called there: `metadata.orch.lease`."""
    origin: str
    mark: Mark
    place: Place


def load_config(environ: Mapping[str, str], cwd: Path, flags: Mapping[str, str | None]) -> Config:
    """The configuration that holds in `cwd`; `flags` by key (`{"address": "10.0.0.1:6379"}`), None where not given.

    Empty variables count as unset. ORCH_CONFIG names another file than ./cluster.yaml.
    Raises ConfigError with all mistakes at once.
    """
    user_home = Path(environ.get("HOME") or Path.home())
    here = Place(cwd, user_home)
    complaints: list[Complaint] = []
    layers = [_from_flags(flags, here), _from_variables(environ, here)]
    try:
        files = _files(environ, here)
    except ValueError as error:
        raise ConfigError([Complaint(Mark("ORCH_CONFIG"), "", str(error))]) from None
    for file, inside in files:
        settings, wrong = _from_file(file, inside, here)
        layers.append(settings)
        complaints += wrong
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}
    for settings in layers:
        for name, setting in settings.items():
            try:
                value = KEYS[name].parse(setting.text, setting.place)
            except ValueError as error:
                complaints.append(Complaint(setting.mark, setting.key, str(error)))
                continue
            if name not in values:
                values[name], origins[name] = value, setting.origin
    if complaints:
        raise ConfigError(complaints)
    home = values.get("home", user_home / ".orch")
    for name, default in _defaults(home).items():
        values.setdefault(name, default)
        origins.setdefault(name, "default")
    return Config(**{_field(name): value for name, value in values.items()}, origins=origins)


def _defaults(home: Path) -> dict[str, Any]:
    return {
        "home": home,
        "address": None,
        "database": f"sqlite:///{home / 'orch.db'}",
        "storage": home / "storage",
        "lease": 30.0,
        "code_limit": 256 * 2**20,
        "log_limit": 64 * 2**20,
        "preflight": "on",
        # Ranks of a small job on a laptop may share cores.
        "local.slots": max(8, os.cpu_count() or 1),
        "head_storage": "memory",
        "dashboard.proxy": None,
        "history.keep_runs": None,
        "history.keep_series": None,
        "history.keep_logs": None,
        "fabric": (),
        "hardware": None,
        "teams": {},
        **{f"policy.{name}": getattr(Policy(), name) for name in SETTINGS},
        "prices": {},
    }


def _from_flags(flags: Mapping[str, str | None], here: Place) -> dict[str, Setting]:
    given = {name: text for name, text in flags.items() if text is not None}
    option = {name: "--" + name.replace("_", "-").replace(".", "-") for name in given}
    return {name: Setting(text, name, option[name], Mark(option[name]), here) for name, text in given.items()}


def _from_variables(environ: Mapping[str, str], here: Place) -> dict[str, Setting]:
    given = {name: variable(name) for name in KEYS if environ.get(variable(name))}
    return {name: Setting(environ[var], name, var, Mark(var), here) for name, var in given.items()}


def _files(environ: Mapping[str, str], here: Place) -> list[tuple[Path, KeyPath]]:
    """The files that hold, the strongest first, and where orch's part in them is."""
    named = environ.get("ORCH_CONFIG")
    cluster = here.path(named) if named else here.folder / "cluster.yaml"
    user = Path(environ.get("XDG_CONFIG_HOME") or here.user_home / ".config") / "orch" / "config.yaml"
    found: list[tuple[Path, KeyPath]] = [(cluster, ("metadata", "orch"))] if named or _exists(cluster) else []
    return [*found, (user, ())] if _exists(user) else found


def _exists(file: Path) -> bool:
    try:
        return file.exists()
    except OSError:
        return True  # reading it will say what is the matter


def _from_file(file: Path, inside: KeyPath, here: Place) -> tuple[dict[str, Setting], list[Complaint]]:
    source = file.name if file.parent == here.folder else str(file)
    try:
        node = document.parse(document.read_text(file, MAX_BYTES), source, MAX_BYTES)
        found = _orch_part(node, inside)
    except DocumentError as error:
        return {}, list(error.complaints)
    place = Place(file.parent, here.user_home)
    settings: dict[str, Setting] = {}
    for path, value in _leaves(found, inside):
        name = dotted(path[len(inside) :])
        if name == "teams" and read_teams(found, path, value) is None:
            continue
        if (text := _text_of(name, value, file)) is not None:
            mark = found.mark(path)
            settings[name] = Setting(text, dotted(path), f"{source}:{mark.line}", mark, place)
        else:
            found.complain(path, *_refusal(name, value), at=found.mark(path, key=name not in KEYS))
    return settings, found.complaints


def _text_of(name: str, value: Any, file: Path) -> str | None:
    """The text of a key's value; None where the key or the kind of its value is not known."""
    if name == "fabric" and isinstance(value, list) and all(isinstance(one, str) for one in value):
        return os.pathsep.join(value)
    if name == "teams":
        return json.dumps(value)
    if name == "hardware" and isinstance(value, dict):
        return str(file)  # what is in it is read by the readers of hardware files
    if name == "prices" and isinstance(value, dict) and all(isinstance(one, str) for one in value.values()):
        return ",".join(f"{model}={price}" for model, price in value.items())
    return value if name in KEYS and name != "hardware" and isinstance(value, str) else None


def _orch_part(node: document.Node | None, inside: KeyPath) -> Contents:
    """What a file says under `inside`; nothing, where it has no such part."""
    for depth, key in enumerate(inside):
        if node is None or _null(node):
            return Contents(data={})
        entries = _mapping(node, inside[:depth]).entries
        # The last of equal keys, as Ray reads it.
        named = [value for name, value in entries if isinstance(name, document.Scalar) and name.text == key]
        node = named[-1] if named else None
    if node is None or _null(node):
        return Contents(data={})
    found = document.contents(_mapping(node, inside), inside)
    return found if isinstance(found.data, dict) else Contents(data={}, complaints=found.complaints)


def _null(node: document.Node) -> bool:
    return isinstance(node, document.Scalar) and node.null


def _mapping(node: document.Node, path: KeyPath) -> document.Mapping:
    if isinstance(node, document.Mapping):
        return node
    raise DocumentError([Complaint(node.mark, dotted(path), node.problem or "must hold keys and values")])


def _leaves(found: Contents, inside: KeyPath) -> list[tuple[KeyPath, Any]]:
    """Every key's path and value; `local: {slots: 4}` is `local.slots`."""
    leaves: list[tuple[KeyPath, Any]] = []
    for key, value in found.data.items():
        if key in _GROUPS and isinstance(value, dict):
            leaves += [((*inside, key, inner), below) for inner, below in value.items()]
        else:
            leaves.append(((*inside, key), value))
    return leaves


def _refusal(name: str, value: Any) -> tuple[str, str]:
    if name in KEYS:
        return f"must be one value, not {shown(value)}", ""
    if name in _GROUPS:
        return f"must hold keys and values, not {shown(value)}", ""
    return "unknown key", nearest(name, KEYS)
