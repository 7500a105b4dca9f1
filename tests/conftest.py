"""Real services for the tests: a SQLite file, a PostgreSQL server of our own on a Unix socket, a Ray cluster.

The Ray cluster is a head without GPUs and two nodes with pretended ones, all on this machine: for what needs Ray but not
separate hosts. Where that matters, use the lab.
"""

import os
import pickle
import secrets
import shutil
import signal
import subprocess
import tempfile
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import settings
from sqlalchemy import create_engine, make_url, text

from orchestrator.history.store import Store

pytest_plugins = ["measuring"]

SHOWN = ("passed", "failed", "error", "skipped", "xfailed", "xpassed")

# A shell that runs its command in the background has it ignore SIGINT; commands that tests interrupt would inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# How long one example takes says something of the machine, not of the code.
settings.register_profile("orch", deadline=None)
settings.load_profile("orch")


def pytest_addoption(parser):
    group = parser.getgroup("orch", "two calls with one summary, as `make test` has it")
    group.addoption("--write-reports", metavar="FILE", type=Path, help="keeps what became of each test in FILE")
    group.addoption("--add-reports", metavar="FILE", type=Path, help="counts what FILE has in the summary")


def pytest_terminal_summary(terminalreporter, config):
    hook, stats = config.hook, terminalreporter.stats
    if (file := config.getoption("--write-reports")) is not None:
        kept = [
            (word, hook.pytest_report_to_serializable(config=config, report=report))
            for word in SHOWN
            for report in stats.get(word, [])
        ]
        for _, report in kept:
            report.pop("node", None)  # xdist's worker
        file.write_bytes(pickle.dumps(kept))
    if (file := config.getoption("--add-reports")) is not None and file.stat().st_size:
        for word, report in pickle.loads(file.read_bytes()):
            stats.setdefault(word, []).append(hook.pytest_report_from_serializable(config=config, data=report))


def _postgres_programs() -> Path | None:
    found = [Path(which).parent for which in [shutil.which("initdb")] if which]
    found += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    return next((folder for folder in found if (folder / "pg_ctl").exists()), None)


@pytest.fixture(scope="session")
def postgres():
    """The form of the URLs of the databases of a server made for this session: `postgres.format(name="postgres")`."""
    programs = _postgres_programs()
    if programs is None:
        pytest.skip("PostgreSQL's server programs (initdb, pg_ctl) are not on this machine")
    # A socket's path may have 107 characters, which pytest's own folders exceed.
    folder = Path(tempfile.mkdtemp(prefix="orch-pg-"))
    # The server refuses to run as root.
    run_as = {"user": "postgres", "group": "postgres"} if os.geteuid() == 0 else {}
    if run_as:
        shutil.chown(folder, "postgres", "postgres")

    def run(program, *arguments):
        subprocess.run(
            [programs / program, *arguments],
            check=True,
            cwd=folder,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.STDOUT,
            **run_as,
        )

    data = folder / "data"
    try:
        run("initdb", "-D", data, "-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync")
        options = f"-k {folder} -c listen_addresses= -c fsync=off -c max_connections=50"
        run("pg_ctl", "-D", data, "-w", "-l", folder / "log", "-o", options, "start")
        try:
            yield f"postgresql://postgres@/{{name}}?host={folder}"
        finally:
            run("pg_ctl", "-D", data, "-m", "immediate", "stop")
    finally:
        shutil.rmtree(folder)


@contextmanager
def raw_connection(url):
    """A connection that knows nothing of orch, as sqlite3 or psql have; each statement is committed by itself."""
    parsed = make_url(url)
    if parsed.get_backend_name() == "postgresql":
        parsed = parsed.set(drivername="postgresql+psycopg")
    engine = create_engine(parsed, isolation_level="AUTOCOMMIT")
    try:
        with engine.connect() as connection:
            yield connection
    finally:
        engine.dispose()


@pytest.fixture
def raw():
    return raw_connection


@pytest.fixture(scope="session")
def new_sqlite(tmp_path_factory):
    """A function that gives the URL of a new SQLite database, up to date or empty."""
    folder = tmp_path_factory.mktemp("sqlite")
    numbers = count(1)
    template = folder / "template.db"
    Store.open(f"sqlite:///{template}").close()

    def new(empty=False):
        path = folder / f"{next(numbers)}" / "orch.db"
        if not empty:
            path.parent.mkdir(mode=0o700)
            shutil.copy(template, path)
        return f"sqlite:///{path}"

    return new


@pytest.fixture(scope="session")
def new_postgres(postgres):
    """A function that gives the URL of a new PostgreSQL database, up to date or empty."""
    numbers = count(1)
    server = postgres.format(name="postgres")

    def new(empty=False):
        # A schema each, in one database: a database would cost 8 MB of writing.
        schema = f"orch_{next(numbers)}"
        with raw_connection(server) as connection:
            connection.execute(text(f"CREATE SCHEMA {schema}"))
        url = f"{server}&options=-csearch_path%3D{schema}"
        if not empty:
            Store.open(url).close()
        return url

    return new


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def new_database(request):
    """A function that gives the URL of a new database; the test runs once for each kind of database."""
    return request.getfixturevalue(f"new_{request.param}")


@pytest.fixture
def url(new_database):
    return new_database()


@pytest.fixture
def open_store():
    """A function that opens a store and closes it after the test."""
    opened = []

    def open_one(url, **options):
        opened.append(Store.open(url, **options))
        return opened[-1]

    yield open_one
    for one in opened:
        one.close()


class RayOnOneMachine(NamedTuple):
    address: str
    gpus: dict[str, int]
    """GPUs by node name; the node names are the addresses."""


@pytest.fixture(scope="session")
def ray_cluster():
    """A running Ray cluster; its address, and the token's place in this process's environment."""
    # Ray reads the way of authentication once per process, at its first import, so it is imported after that is set.
    folder = Path(tempfile.mkdtemp(prefix="orch-ray-", dir="/tmp"))
    token = folder / "token"
    token.touch(mode=0o600)
    token.write_text(secrets.token_hex(32))
    gpus = {"127.0.0.10": 8, "127.0.0.11": 4}
    with pytest.MonkeyPatch.context() as env:
        env.setenv("RAY_AUTH_MODE", "token")
        env.setenv("RAY_AUTH_TOKEN_PATH", str(token))
        # cluster_utils writes the address to where every ray.init() of the machine would look for it.
        env.setenv("RAY_TMPDIR", str(folder))
        env.setenv("RAY_USAGE_STATS_ENABLED", "0")
        env.setenv("RAY_prestart_worker_first_driver", "0")
        env.setenv("RAY_enable_worker_prestart", "0")
        env.delenv("RAY_AUTH_TOKEN", raising=False)
        env.delenv("RAY_ADDRESS", raising=False)
        import ray
        from ray.cluster_utils import Cluster

        # The head keeps the machine's own address: a head on loopback is not found by ray.init.
        light = {"include_log_monitor": False, "dashboard_agent_listen_port": 0}
        head = {"num_cpus": 2, "num_gpus": 0, "include_dashboard": False, "no_monitor": True, **light}
        cluster = Cluster(initialize_head=True, head_node_args=head)
        try:
            for address, count in gpus.items():
                cluster.add_node(
                    wait=False, node_ip_address=address, node_name=address, num_cpus=8, num_gpus=count, **light
                )
            cluster.wait_for_nodes(timeout=60)
            yield RayOnOneMachine(cluster.address, gpus)
        finally:
            ray.shutdown()
            cluster.shutdown()
            shutil.rmtree(folder, ignore_errors=True)
