"""What each key of the configuration may hold: from its text to its value, back to what is shown of it, and its default."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from orchestrator import document, policy_text
from orchestrator.document import shown
from orchestrator.policy import Policy
from orchestrator.policy_text import SETTINGS, teams_as_text, teams_of
from orchestrator.units import duration_between, format_duration, format_size, size_between

Preflight = Literal["on", "quick", "off"]
HeadStorage = Literal["memory", "rocksdb"]


def field_of(name: str) -> str:
    return name.replace(".", "_")


def mask_password(url: str) -> str:
    """A database URL fit to be shown."""
    url = re.sub(r"(://[^:/@]*):.*@", r"\1:***@", url)
    return re.sub(r"([?&][^=&]*(?:password|passfile|sslkey)[^=&]*=)[^&]*", r"\1***", url, flags=re.IGNORECASE)


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


def _address(text: str) -> str | None:
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


_KEPT = duration_between(86_400, 100 * 365 * 86_400)


def _keep(text: str) -> float | None:
    return None if text == "forever" else _KEPT(text)


def _kept(seconds: float | None) -> str:
    return "forever" if seconds is None else format_duration(seconds)


def _one_of(kind: Any) -> Callable[[str], str]:
    *words, last = get_args(kind)

    def parse(text: str) -> str:
        if text not in (*words, last):
            raise ValueError(f"must be {', '.join(words)} or {last}, not {shown(text)}")
        return text

    return parse


def _slots(text: str) -> int:
    if not re.fullmatch("[0-9]{1,4}", text) or not 1 <= int(text) <= 1024:
        raise ValueError(f"must be a whole number from 1 to 1024, not {shown(text)}")
    return int(text)


def _port(text: str) -> int:
    if not re.fullmatch("[0-9]{1,5}", text) or not 1 <= int(text) <= 65535:
        raise ValueError(f"must be a port, 1 to 65535, not {shown(text)}")
    return int(text)


_PRICE = re.compile(r"([A-Za-z0-9][A-Za-z0-9._ -]{0,62})=([0-9]{1,9}(?:\.[0-9]{1,6})?)")


def _prices(text: str) -> dict[str, float]:
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


Parse = Callable[[str, Place], Any]


def _plain(parse: Callable[[str], Any]) -> Parse:
    """For what means the same wherever it stands."""
    return lambda text, place: parse(text)


def _path(text: str, place: Place) -> Path:
    return place.path(text)


def _always(value: Any) -> Callable[[Path], Any]:
    return lambda home: value


@dataclass(frozen=True)
class Key:
    """One key of the configuration. Its variable is ORCH_ and its name in capitals; a dot becomes `_`."""

    description: str
    parse: Parse
    show: Callable[[Any], str] = str
    default: Callable[[Path], Any] = lambda home: None
    """From the `home` that holds."""


def _policy_key(name: str, setting: policy_text.Setting) -> Key:
    return Key(setting.description, _plain(setting.parse), setting.show, _always(getattr(Policy(), name)))


KEYS: dict[str, Key] = {
    "home": Key("Folder of the database, logs, code snapshots and the token", _path, default=lambda home: home),
    "address": Key("HOST:PORT of the Ray head, or local", _plain(_address), lambda address: address or "local"),
    "database": Key("URL of the database", _database, mask_password, lambda home: f"sqlite:///{home / 'orch.db'}"),
    "storage": Key("Folder of checkpoints; every node must see it", _storage, default=lambda home: home / "storage"),
    "lease": Key(
        "How long an attempt lives without word from the controller",
        _plain(duration_between(5, 3600)),
        format_duration,
        _always(30.0),
    ),
    "code_limit": Key(
        "The largest code snapshot", _plain(size_between(2**20, 100 * 2**30)), format_size, _always(256 * 2**20)
    ),
    "log_limit": Key(
        "How much log is kept of a rank",
        _plain(size_between(64 * 2**10, 100 * 2**30)),
        format_size,
        _always(64 * 2**20),
    ),
    "preflight": Key(
        "Whether a gang's nodes, and links never measured, are tried before it is started: on, quick (nodes alone) or off",
        _plain(_one_of(Preflight)),
        default=_always("on"),
    ),
    # Ranks of a small job on a laptop may share cores.
    "local.slots": Key(
        "CPU slots of a private cluster; ranks may share cores",
        _plain(_slots),
        default=lambda home: max(8, os.cpu_count() or 1),
    ),
    "head_storage": Key(
        "What the private cluster's head keeps Ray's own state in: memory, or rocksdb (on disk; alpha)",
        _plain(_one_of(HeadStorage)),
        default=_always("memory"),
    ),
    "dashboard.proxy": Key(
        "Port at which a Ray head that orch did not start asks for orch's runs (`--proxy-server-url`)",
        _plain(_port),
        lambda port: str(port or ""),
    ),
    "history.keep_runs": Key("How long a run is kept after its end, or forever; sums stay", _plain(_keep), _kept),
    "history.keep_series": Key("How long its series of throughput and GPU use are kept", _plain(_keep), _kept),
    "history.keep_logs": Key("How long its logs are kept", _plain(_keep), _kept),
    "fabric": Key(
        "Files that say how the nodes hang together, a list (in ORCH_FABRIC with : between them)",
        _paths,
        lambda paths: os.pathsep.join(map(str, paths)),
        _always(()),
    ),
    "hardware": Key(
        "The nodes' hardware, by name or hostlist; shown is the file that declares it",
        _path,
        lambda path: str(path or ""),
    ),
    "teams": Key(
        "Teams and their users: share, guaranteed GPUs, limit (in ORCH_TEAMS in one line)",
        _plain(teams_of),
        teams_as_text,
        _always({}),
    ),
    **{f"policy.{name}": _policy_key(name, setting) for name, setting in SETTINGS.items()},
    "prices": Key(
        "Price of a GPU-hour by model (in ORCH_PRICES H100=2.5,A100=1.2)", _plain(_prices), _show_prices, _always({})
    ),
}
GROUPS = {name.split(".")[0] for name in KEYS if "." in name}
"""`local: {slots: 4}` in a file is `local.slots`."""


def variable(name: str) -> str:
    """The environment variable that sets a key."""
    return "ORCH_" + field_of(name).upper()
