"""The configuration: which place wins, what is refused, and that each value says where it comes from."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from orchestrator.config import Config, ConfigError, load_config
from orchestrator.config_keys import KEYS, mask_password, variable
from orchestrator.policy import Policy, Quota, Team
from orchestrator.policy_text import policy_as_texts, policy_of


@pytest.fixture
def cwd(tmp_path: Path) -> Path:
    (tmp_path / "work").mkdir()
    return tmp_path / "work"


def load(cwd: Path, *, flags: dict[str, str | None] | None = None, **environ: str) -> Config:
    return load_config({"HOME": str(cwd.parent)} | environ, cwd, flags or {})


def refusal(cwd: Path, *, flags: dict[str, str | None] | None = None, **environ: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load(cwd, flags=flags, **environ)
    return str(caught.value).split("\n")


def user_file(cwd: Path, text: str) -> Path:
    path = cwd.parent / ".config" / "orch" / "config.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def cluster_file(cwd: Path, orch: str) -> None:
    lines = "".join(f"    {line}\n" for line in orch.splitlines())
    (cwd / "cluster.yaml").write_text(f"cluster_name: x\nmetadata:\n  orch:\n{lines}")


def test_without_anything_there_are_defaults(cwd: Path) -> None:
    config = load(cwd)
    home = cwd.parent / ".orch"
    assert (config.home, config.address, config.database) == (home, None, f"sqlite:///{home}/orch.db")
    assert (config.storage, config.lease) == (home / "storage", 30.0)
    assert (config.code_limit, config.log_limit) == (256 * 2**20, 64 * 2**20)
    assert config.local_slots == max(8, os.cpu_count() or 1)
    assert set(config.origins.values()) == {"default"}


def test_a_flag_wins_over_a_variable_over_the_cluster_over_the_user_over_the_default(cwd: Path) -> None:
    place = user_file(cwd, "lease: 10s\ncode_limit: 10MiB\nlog_limit: 10MiB\nlocal: {slots: 10}\n")
    cluster_file(cwd, "lease: 20s\ncode_limit: 20MiB\nlog_limit: 20MiB")
    config = load(cwd, flags={"lease": "40s", "address": None}, ORCH_LEASE="30s", ORCH_CODE_LIMIT="30MiB")
    assert (config.lease, config.code_limit, config.log_limit, config.local_slots) == (40, 30 * 2**20, 20 * 2**20, 10)
    assert {name: config.origins[name] for name in ("lease", "code_limit", "log_limit", "local.slots", "address")} == {
        "lease": "--lease",
        "code_limit": "ORCH_CODE_LIMIT",
        "log_limit": "cluster.yaml:6",
        "local.slots": f"{place}:4",
        "address": "default",
    }


def test_fabric_is_a_list_of_files_beside_the_cluster_file_and_hardware_is_the_file_itself(cwd: Path) -> None:
    cluster_file(cwd, "fabric: [topology.conf, /etc/levels.csv]\nhardware: {nodes: {a: {gpus: 8xH100}}}")
    config = load(cwd)
    assert config.fabric == (cwd / "topology.conf", Path("/etc/levels.csv"))
    assert config.hardware == cwd / "cluster.yaml"
    assert config.origins["hardware"].startswith("cluster.yaml:")


def test_prices_are_by_model(cwd: Path) -> None:
    cluster_file(cwd, "prices: {H100: 2.5, NVIDIA A100-SXM4-80GB: 1}")
    assert load(cwd).prices == {"H100": 2.5, "NVIDIA A100-SXM4-80GB": 1.0}
    for wrong in ("{H100: cheap}", "{H100: -1}", "[2.5]", "H100"):
        cluster_file(cwd, f"prices: {wrong}")
        with pytest.raises(ConfigError, match="prices"):
            load(cwd)


def test_what_hangs_on_home_follows_it(cwd: Path) -> None:
    config = load(cwd, ORCH_HOME="elsewhere")
    assert config.home == cwd / "elsewhere"
    assert config.storage == cwd / "elsewhere" / "storage"
    assert config.database == f"sqlite:///{cwd}/elsewhere/orch.db"


@pytest.mark.parametrize("key", KEYS)
def test_every_key_has_a_variable_and_a_row(cwd: Path, key: str) -> None:
    example = {
        "home": "/h",
        "address": "10.0.0.1:6379",
        "database": "postgresql://db/orch",
        "storage": "/s",
        "fabric": "/f/topology.conf",
        "hardware": "/f/hardware.yaml",
        "lease": "1m",
        "code_limit": "1GiB",
        "log_limit": "1MiB",
        "local.slots": "4",
        "head_storage": "rocksdb",
        "teams": '{"vision": {"share": 2, "guaranteed": 16, "users": {"ana": {"limit": 8}}}}',
        "policy.half_life": "3d",
        "policy.preemption": "off",
        "policy.min_runtime": "10m",
        "policy.overdue": "2h",
        "policy.reservations": "8",
        "policy.margin": "2",
        "policy.communication": "0.25",
        "policy.split": "1.5",
        "policy.service": "16",
        "policy.hang": "off",
        "policy.first_step": "20m",
        "policy.quarantine": "0.25",
        "policy.assumed_duration": "2h",
        "dashboard.proxy": "8300",
        "preflight": "quick",
        "history.keep_runs": "365d",
        "history.keep_series": "30d",
        "history.keep_logs": "forever",
        "prices": "H100=2.5,cpu=0.05",
    }[key]
    rows = {name: (value, origin) for name, value, origin in load(cwd, **{variable(key): example}).rows()}
    assert list(rows) == list(KEYS)
    assert rows[key] == (example, variable(key))


def test_an_empty_variable_counts_as_unset(cwd: Path) -> None:
    assert load(cwd, ORCH_ADDRESS="", ORCH_CONFIG="").origins["address"] == "default"


def test_a_declared_address_can_be_overruled_by_local(cwd: Path) -> None:
    cluster_file(cwd, "address: 10.0.0.1:6379")
    assert load(cwd).address == "10.0.0.1:6379"
    assert load(cwd, ORCH_ADDRESS="local").address is None


def test_paths_in_a_file_are_relative_to_the_file(cwd: Path) -> None:
    user_file(cwd, "storage: ~/s\nhome: h\ndatabase: sqlite:///d.db\n")
    config = load(cwd)
    folder = cwd.parent / ".config" / "orch"
    assert (config.storage, config.home) == (cwd.parent / "s", folder / "h")
    assert config.database == f"sqlite:///{folder}/d.db"


def test_orch_config_names_another_file_which_must_exist(cwd: Path) -> None:
    cluster_file(cwd, "lease: 20s")
    (cwd / "other.yaml").write_text("metadata: {orch: {lease: 50s}}")
    assert load(cwd, ORCH_CONFIG="other.yaml").lease == 50
    assert "cannot be read: No such file" in refusal(cwd, ORCH_CONFIG="gone.yaml")[0]


@pytest.mark.parametrize(
    "text", ["", "cluster_name: x", "metadata:", "metadata: {}", "metadata: {orch: }", "# nothing"]
)
def test_a_cluster_yaml_without_orchs_part_is_fine(cwd: Path, text: str) -> None:
    (cwd / "cluster.yaml").write_text(text)
    assert set(load(cwd).origins.values()) == {"default"}


def test_rays_part_of_cluster_yaml_is_rays_affair(cwd: Path) -> None:
    text = "a: &a {b: 1}\nc: *a\nc: !x 2\nmetadata:\n  other: [~]\n  orch: {lease: 20s}\n"
    (cwd / "cluster.yaml").write_text(text)
    assert load(cwd).lease == 20


def test_all_mistakes_of_all_places_are_told_at_once(cwd: Path) -> None:
    place = user_file(cwd, "log_limit: 10\n")
    cluster_file(
        cwd, "lese: 20s\nlease: 1s\nlease: 20s\npolicy: fair\nstorage: [a]\nlocal: {slots: 0, slot: 1}\naddress:"
    )
    assert refusal(cwd, flags={"address": "ray://x:10001"}, ORCH_CODE_LIMIT="big") == [
        "--address: address: must be HOST:PORT of the Ray head, such as 10.0.0.1:6379, "
        "or 'local' for a private cluster, not 'ray://x:10001'",
        f"{place}:1:12: log_limit: has no unit. Did you mean '10MiB'?",
        "ORCH_CODE_LIMIT: code_limit: must be a whole number and one unit (B, kB, MB, GB, KiB, MiB, GiB, TiB), "
        "such as 64MiB or 2GiB",
        "cluster.yaml:4:5: metadata.orch.lese: unknown key. Did you mean 'lease'?",
        "cluster.yaml:5:12: metadata.orch.lease: must be between 5s and 1h, not 1s",
        "cluster.yaml:6:5: metadata.orch.lease: is given twice, first in line 5",
        "cluster.yaml:7:5: metadata.orch.policy: must hold keys and values, not 'fair'",
        "cluster.yaml:8:14: metadata.orch.storage: must be one value, not a list",
        "cluster.yaml:9:20: metadata.orch.local.slots: must be a whole number from 1 to 1024, not '0'",
        "cluster.yaml:9:23: metadata.orch.local.slot: unknown key. Did you mean 'local.slots'?",
        "cluster.yaml:10:13: metadata.orch.address: has no value. "
        "Give it one, or leave the key out ('' is an empty text)",
    ]


def test_teams_and_policy_are_what_the_scheduler_is_told(cwd: Path) -> None:
    cluster_file(
        cwd,
        "teams:\n  vision: {share: 2, guaranteed: 16, limit: 64, users: {ana: {limit: 8}, '*': {limit: 4}}}\n  '-': {limit: 8}\n"
        "policy: {half_life: 3d, preemption: quota, reservations: 8}",
    )
    policy = load(cwd).policy
    vision = policy.teams["vision"]
    assert vision.quota == Quota(2.0, 16, 64)
    assert (vision.of("ana").limit, vision.of("bob").limit, policy.teams["-"].quota.limit) == (8, 4, 8)
    assert (policy.half_life, policy.preemption, policy.reservations) == (3 * 86400, "quota", 8)
    assert policy_of(policy_as_texts(policy)) == policy
    assert load(cwd, ORCH_TEAMS="{nlp: {limit: 8}}", ORCH_POLICY_OVERDUE="2h").policy.teams == {
        "nlp": Team(Quota(limit=8))
    }


def test_without_teams_the_policy_is_the_default(cwd: Path) -> None:
    assert load(cwd).policy == Policy() == policy_of({})


def test_every_mistake_in_teams_is_told_at_its_place(cwd: Path) -> None:
    cluster_file(
        cwd,
        "teams:\n"
        "  a b: {}\n"
        "  vision: {shar: 2, limit: many, guaranteed: [1], share: 0}\n"
        "  nlp: 3\n"
        "  audio: {guaranteed: 9, limit: 8, users: {ana: 3, bob: {users: {}}}}\n"
        "  text: {guaranteed: 4, users: {ana: {guaranteed: 3}, bob: {guaranteed: 2}}}\n"
        "policy: {margin: 0.5, preemption: maybe, overdue: 1s}",
    )
    told = refusal(cwd, ORCH_TEAMS="{x: {limit: y}}")
    assert told[0] == "ORCH_TEAMS: teams: x.limit: must be a whole number from 0 to 1,000,000, not 'y'"
    assert [
        line.split(": ", 2)[0] + ": " + line.split(": ", 2)[1].removeprefix("metadata.orch.") for line in told[1:]
    ] == [
        "cluster.yaml:5:7: teams.a b",
        "cluster.yaml:6:16: teams.vision.shar",
        "cluster.yaml:6:32: teams.vision.limit",
        "cluster.yaml:6:50: teams.vision.guaranteed",
        "cluster.yaml:6:62: teams.vision.share",
        "cluster.yaml:7:12: teams.nlp",
        "cluster.yaml:8:14: teams.audio",
        "cluster.yaml:8:53: teams.audio.users.ana",
        "cluster.yaml:8:62: teams.audio.users.bob.users",
        "cluster.yaml:9:13: teams.text",
        "cluster.yaml:10:22: policy.margin",
        "cluster.yaml:10:39: policy.preemption",
        "cluster.yaml:10:55: policy.overdue",
    ]


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("a: [", "is not YAML"),
        ("- a", "must hold keys and values"),
        ("metadata: 3", "cluster.yaml:1:11: metadata: must hold keys and values"),
        ("metadata: {orch: [a]}", "cluster.yaml:1:18: metadata.orch: must hold keys and values"),
        ("metadata: {orch: *a}", "an alias"),
        ("a: b\n---\nc: d", "a second document"),
        ("metadata: {orch: {database: 'mysql://u:hunter2@h/db'}}", "must be a URL that begins with sqlite:///"),
        ("metadata: {orch: {database: 'sqlite://'}}", "must name a file"),
        ("metadata: {orch: {database: 'sqlite:///:memory:'}}", "must name a file"),
        ("metadata: {orch: {storage: 's3://bucket'}}", "not a URL"),
        ("metadata: {orch: {home: '~ana/x'}}", "stand for a home"),
        ("metadata: {orch: {address: '10.0.0.1:70000'}}", "must be HOST:PORT"),
        ('metadata: {orch: {home: "\\0"}}', "must be a path"),
    ],
)
def test_a_bad_cluster_yaml_is_refused_with_its_place(cwd: Path, text: str, complaint: str) -> None:
    (cwd / "cluster.yaml").write_text(text)
    (line,) = refusal(cwd)
    assert line.startswith("cluster.yaml:")
    assert complaint in line
    assert "hunter2" not in line


def test_a_cluster_yaml_of_100_mb_is_refused_soon(cwd: Path) -> None:
    with (cwd / "cluster.yaml").open("wb") as file:
        file.truncate(100 * 2**20)
    started = time.monotonic()
    assert "more than 1024 KiB" in refusal(cwd)[0]
    assert time.monotonic() - started < 2


def test_a_cluster_yaml_of_a_thousand_nodes_is_read_soon(cwd: Path) -> None:
    ips = "".join(f"  - 10.0.{i // 250}.{i % 250}\n" for i in range(1000))
    (cwd / "cluster.yaml").write_text(f"provider:\n  worker_ips:\n{ips}metadata: {{orch: {{lease: 20s}}}}\n")
    started = time.monotonic()
    assert load(cwd).lease == 20
    assert time.monotonic() - started < 2


@pytest.mark.parametrize(
    ("url", "masked"),
    [
        ("postgresql://ana:secret@db/orch", "postgresql://ana:***@db/orch"),
        ("postgresql://ana:p@ss:w/rd@db/orch", "postgresql://ana:***@db/orch"),
        ("postgresql://ana@db/orch", "postgresql://ana@db/orch"),
        ("postgresql://db/orch?user=ana&password=secret&x=y", "postgresql://db/orch?user=ana&password=***&x=y"),
        ("sqlite:////home/ana/.orch/orch.db", "sqlite:////home/ana/.orch/orch.db"),
    ],
)
def test_no_password_is_shown(cwd: Path, url: str, masked: str) -> None:
    assert mask_password(url) == masked
    rows = {name: value for name, value, _ in load(cwd, ORCH_DATABASE=url).rows()}
    assert rows["database"] == masked
    assert load(cwd, ORCH_DATABASE=url).database == url
