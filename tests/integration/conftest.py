"""Real databases for the tests: a SQLite file, and a PostgreSQL server of our own on a Unix socket."""

import os
import shutil
import subprocess
import tempfile
from contextlib import contextmanager
from itertools import count
from pathlib import Path

import pytest
from sqlalchemy import create_engine, make_url, text

from orchestrator.history.store import Store


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
