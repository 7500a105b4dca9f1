"""What an operator declares: Config, and where each value of it comes from.

A flag wins over an `ORCH_*` variable, that over `./cluster.yaml` (under `metadata: orch:`), that over
`~/.config/orch/config.yaml`, that over the default.
What is wrong in any of them is refused, even where it is overruled.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.config_keys import KEYS, HeadStorage, Place, Preflight, field_of
from orchestrator.config_sources import find_files, from_file, from_flags, from_variables
from orchestrator.document import Complaint, DocumentError, Mark
from orchestrator.policy import Policy
from orchestrator.policy_text import SETTINGS


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
    policy: Policy
    """What the scheduler is told, teams among it."""
    prices: Mapping[str, float]
    """Of a GPU-hour, by model; of a slot-hour under cpu."""
    origins: Mapping[str, str]
    """By key: `default`, `ORCH_LEASE`, `--address`, or file and line."""

    def rows(self) -> list[tuple[str, str, str]]:
        """Key, value and origin as `orch config` shows them; no password is in them."""
        return [(name, key.show(self._value(name)), self.origins[name]) for name, key in KEYS.items()]

    def _value(self, name: str) -> Any:
        if name == "teams":
            return self.policy.teams
        group, _, setting = name.partition(".")
        return getattr(self.policy, setting) if group == "policy" else getattr(self, field_of(name))


def load_config(environ: Mapping[str, str], cwd: Path, flags: Mapping[str, str | None]) -> Config:
    """The configuration that holds in `cwd`; `flags` by key (`{"address": "10.0.0.1:6379"}`), None where not given.

    Empty variables count as unset. ORCH_CONFIG names another file than ./cluster.yaml.
    Raises ConfigError with all mistakes at once.
    """
    user_home = Path(environ.get("HOME") or Path.home())
    here = Place(cwd, user_home)
    complaints: list[Complaint] = []
    layers = [from_flags(flags, here), from_variables(environ, here)]
    try:
        files = find_files(environ, here)
    except ValueError as error:
        raise ConfigError([Complaint(Mark("ORCH_CONFIG"), "", str(error))]) from None
    for file, inside in files:
        settings, wrong = from_file(file, inside, here)
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
    for name, key in KEYS.items():
        if name not in values:
            values[name], origins[name] = key.default(home), "default"
    policy = Policy(teams=values.pop("teams"), **{name: values.pop(f"policy.{name}") for name in SETTINGS})
    return Config(**{field_of(name): value for name, value in values.items()}, policy=policy, origins=origins)
