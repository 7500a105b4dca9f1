"""Opening: what is whole is opened, upgraded and kept private; what is not is refused, and left as it is."""

import os
import shutil
import sqlite3
import subprocess
import sys
import traceback
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import CheckConstraint, inspect, make_url, text

from orchestrator.history.database import BUSY_TIMEOUT_S, VERSION_TABLE, open_database
from orchestrator.history.errors import (
    BadDatabaseUrl,
    DatabaseDamaged,
    DatabaseNewer,
    DatabaseOlder,
    DatabaseUnreachable,
)
from orchestrator.history.migrations import config, upgrade
from orchestrator.history.schema import METADATA, SCHEMA
from orchestrator.history.store import Store
from orchestrator.testing import START, a_new_run

REVISIONS = [one.revision for one in reversed(list(ScriptDirectory.from_config(config()).walk_revisions()))]


def path_of(url):
    return Path(make_url(url).database)


def at_revision(raw, url, revision):
    """An empty database brought to an old schema, as an orch of then left it."""
    if url.startswith("sqlite"):
        path_of(url).parent.mkdir(exist_ok=True)
    with raw(url) as connection:
        upgrade(connection, revision)


# --- what a refusal advises ---


@pytest.mark.skipif(not shutil.which("sqlite3"), reason="needs the sqlite3 program")
def test_what_can_be_read_of_a_damaged_file_is_saved_by_the_command_that_its_refusal_says(
    new_sqlite, open_store, tmp_path
):
    path = tmp_path / "an ORCH_HOME" / "orch.db"
    path.parent.mkdir()
    shutil.copy(path_of(new_sqlite()), path)
    url = f"sqlite:///{path}"
    store = open_store(url)
    store.claim_epoch("test", START)
    ids = [store.submit(a_new_run(name=f"run-{number}"), START)[0].id for number in range(300)]
    store.close()  # the last connection to close folds the -wal into the file
    whole = path.read_bytes()
    page = whole.index(b'"name": "run-150"') // 4096
    path.write_bytes(whole[: page * 4096] + b"\xa5" * 4096 + whole[(page + 1) * 4096 :])
    with pytest.raises(DatabaseDamaged) as refused:
        Store.open(url)
    command = str(refused.value).partition("Save what can be read: ")[2].partition("; then move")[0]
    subprocess.run(command, shell=True, check=True, stdout=subprocess.DEVNULL)
    path.rename(tmp_path / "damaged.db")
    (path.parent / "saved-orch.db").rename(path)
    saved = open_store(url)
    assert 250 < len(saved.runs()) < 300
    assert saved.verify(ids[-1])


# --- the schema ---


def test_what_had_happened_to_nodes_is_counted_by_the_upgrade(new_database, raw, open_store):
    url = new_database(empty=True)
    at_revision(raw, url, "0009")
    told = ("drained", "fatal", "fatal", "recovered", "fatal", "quarantined", "proposed", "quarantined")
    with raw(url) as connection:
        for number, what in enumerate(told):
            at = f"2026-01-0{1 + number // 4} 12:00:00.000000" + ("" if url.startswith("sqlite") else "+00")
            connection.execute(text(f"INSERT INTO node_events (at, node, what) VALUES ('{at}', 'n0', '{what}')"))
        connection.execute(text("CREATE VIEW somebodys AS SELECT node, gpu_hours FROM v_node_reliability"))
    open_store(url)
    with raw(url) as connection:
        there = connection.execute(
            text("SELECT day, drains, quarantines, degraded, fatal, attempts FROM node_days ORDER BY day")
        ).all()
        assert connection.execute(text("SELECT * FROM somebodys")).all() == []
    assert [(str(day), *counts) for day, *counts in there] == [
        ("2026-01-01", 1, 0, 0, 1, 0), ("2026-01-02", 0, 2, 0, 1, 0),
    ]  # fmt: skip


def test_the_code_knows_its_newest_migration_and_they_are_numbered_in_order():
    assert REVISIONS[-1] == SCHEMA
    assert sorted(REVISIONS) == REVISIONS


@pytest.mark.parametrize("start", [None, *REVISIONS])
def test_an_empty_or_older_database_is_brought_to_the_schema_of_the_models(new_database, raw, open_store, start):
    url = new_database(empty=True)
    if start is not None:
        at_revision(raw, url, start)
    store = open_store(url)
    store.claim_epoch("test", START)
    run, _ = store.submit(a_new_run(), START)
    assert store.verify(run.id)
    with raw(url) as connection:
        context = MigrationContext.configure(connection, opts={"version_table": VERSION_TABLE})
        assert compare_metadata(context, METADATA) == []
        for table in METADATA.sorted_tables:
            there = {one["name"] for one in inspect(connection).get_check_constraints(table.name)}
            assert there == {one.name for one in table.constraints if isinstance(one, CheckConstraint)}


def test_what_was_recorded_is_still_there_when_the_database_is_opened_again(new_database, open_store):
    url = new_database(empty=True)
    first = open_store(url)
    first.claim_epoch("test", START)
    run, _ = first.submit(a_new_run(), START)
    first.close()
    assert open_store(url).get(run.id).spec == run.spec


def test_several_that_open_a_new_database_at_once_all_get_it(new_database, open_store):
    url = new_database(empty=True)
    with ThreadPoolExecutor(3) as pool:
        stores = list(pool.map(open_store, [url] * 3))
    assert sorted(store.claim_epoch("test", START) for store in stores) == [1, 2, 3]


def test_an_upgrade_that_breaks_off_leaves_the_database_as_it_was(new_database, raw):
    database = open_database(new_database())
    try:
        with suppress(ZeroDivisionError), database.write() as connection:
            connection.execute(text("CREATE TABLE half_made (id INTEGER)"))
            raise ZeroDivisionError
        with database.read() as connection:
            assert "half_made" not in inspect(connection).get_table_names()
    finally:
        database.close()


@pytest.mark.parametrize("readonly", [False, True])
def test_a_newer_database_is_refused(url, raw, readonly):
    with raw(url) as connection:
        connection.execute(text(f"UPDATE {VERSION_TABLE} SET version_num = '0999'"))
    with pytest.raises(DatabaseNewer, match=rf"newer orch \(schema 0999; this one knows {SCHEMA}\)") as refused:
        Store.open(url, readonly=readonly)
    assert refused.value.exit_code == 8


def test_an_older_database_is_not_upgraded_by_who_only_reads(url, raw):
    with raw(url) as connection:
        connection.execute(text(f"UPDATE {VERSION_TABLE} SET version_num = '0000'"))
    with pytest.raises(DatabaseOlder, match="`orch up` upgrades it") as refused:
        Store.open(url, readonly=True)
    assert refused.value.exit_code == 8


def test_a_database_without_one_of_its_tables_is_damaged(url, raw):
    with raw(url) as connection:
        connection.execute(text("DROP TABLE tags"))
    with pytest.raises(DatabaseDamaged, match="lacks 1 of its tables: tags"):
        Store.open(url)


def test_somebody_else_s_database_is_refused_and_left_alone(new_database, raw):
    url = new_database(empty=True)
    if url.startswith("sqlite"):
        path_of(url).parent.mkdir()
    with raw(url) as connection:
        connection.execute(text("CREATE TABLE runs (uuid INTEGER)"))
    with pytest.raises(DatabaseDamaged, match=r"not orch's: it has tables that orch did not make \(runs\)"):
        Store.open(url)
    with raw(url) as connection:
        assert inspect(connection).get_table_names() == ["runs"]
        if url.startswith("sqlite"):
            assert connection.execute(text("PRAGMA journal_mode")).scalar() == "delete"


def test_opening_an_up_to_date_database_does_not_import_alembic(url):
    opens = "import sys; from orchestrator.history.store import Store; Store.open(sys.argv[1]).close()"
    opens += "; assert 'alembic' not in sys.modules"
    subprocess.run([sys.executable, "-c", opens, url], check=True)


def test_reading_a_database_that_is_not_there_says_so_and_makes_none(new_database):
    url = new_database(empty=True)
    with pytest.raises(DatabaseUnreachable, match="first `orch submit` makes it") as refused:
        Store.open(url, readonly=True)
    assert refused.value.exit_code == 6
    if url.startswith("sqlite"):
        assert not path_of(url).exists()


# --- a file ---


@pytest.fixture
def file(new_sqlite):
    return path_of(new_sqlite())


@pytest.fixture
def no_umask():
    before = os.umask(0)
    yield
    os.umask(before)


def test_the_file_its_companions_and_its_folder_are_the_owner_s_alone(new_sqlite, open_store, no_umask):
    path = path_of(new_sqlite(empty=True))
    open_store(f"sqlite:///{path}").claim_epoch("test", START)
    modes = {one.name: oct(one.stat().st_mode & 0o777) for one in path.parent.iterdir()}
    assert modes == dict.fromkeys(("orch.db", "orch.db-wal", "orch.db-shm"), "0o600")
    assert path.parent.stat().st_mode & 0o777 == 0o700


def test_a_file_that_others_could_read_is_made_private(file, open_store, no_umask):
    file.chmod(0o644)
    open_store(f"sqlite:///{file}").claim_epoch("test", START)
    assert {one.stat().st_mode & 0o777 for one in file.parent.iterdir()} == {0o600}


def test_every_connection_is_durable_and_checks_references(file):
    database = open_database(f"sqlite:///{file}")
    try:
        with database.read() as connection:
            asked = ("journal_mode", "synchronous", "foreign_keys", "busy_timeout")
            said = [connection.exec_driver_sql(f"PRAGMA {one}").scalar() for one in asked]
        assert said == ["wal", 2, 1, int(BUSY_TIMEOUT_S * 1000)]
    finally:
        database.close()


def half(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def nothing(path):
    path.write_bytes(b"")


def garbage(path):
    path.write_bytes(b"not a database at all" * 500)


def a_page_overwritten(path):
    page = 4096
    with path.open("r+b") as file:
        file.seek(5 * page)
        file.write(b"\xa5" * page)


@pytest.mark.parametrize("harm", [half, nothing, garbage, a_page_overwritten])
def test_a_damaged_file_is_refused_and_left_as_it_is(file, harm):
    harm(file)
    before = file.read_bytes()
    with pytest.raises(DatabaseDamaged) as refused:
        Store.open(f"sqlite:///{file}")
    assert str(file) in str(refused.value)
    assert refused.value.exit_code == 8
    assert file.read_bytes() == before


@pytest.mark.parametrize("harm", [half, nothing, garbage])
def test_a_damaged_file_is_refused_to_readers_too(file, harm):
    harm(file)
    with pytest.raises(DatabaseDamaged):
        Store.open(f"sqlite:///{file}", readonly=True)


def test_damage_found_while_reading_is_told_as_damage(file, open_store):
    store = open_store(f"sqlite:///{file}", readonly=True)
    with sqlite3.connect(file) as connection:
        root = connection.execute("SELECT rootpage FROM sqlite_master WHERE name = 'runs'").fetchone()[0]
    connection.close()
    with file.open("r+b") as pages:
        pages.seek((root - 1) * 4096)
        pages.write(b"\xa5" * 4096)
    with pytest.raises(DatabaseDamaged, match="is damaged"):
        store.get(1)


def test_a_log_without_its_database_is_not_taken_for_a_new_start(file):
    log = Path(f"{file}-wal")
    file.rename(log)
    with pytest.raises(DatabaseDamaged, match="is gone, but"):
        Store.open(f"sqlite:///{file}")
    assert not file.exists()
    assert log.stat().st_size


def test_a_path_that_cannot_be_made_is_out_of_reach(file):
    with pytest.raises(DatabaseUnreachable, match="cannot be opened: Not a directory"):
        Store.open(f"sqlite:///{file}/deeper/orch.db")
    with pytest.raises(DatabaseUnreachable, match="unable to open"):
        Store.open(f"sqlite:///{file.parent}")


# --- a server ---


@pytest.mark.postgres
def test_a_lost_connection_is_replaced(new_postgres, raw, open_store):
    url = new_postgres()
    store = open_store(url)
    store.claim_epoch("test", START)
    end = text(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND pid != :me"
    )
    with raw(url) as connection:
        connection.execute(end, {"me": connection.execute(text("SELECT pg_backend_pid()")).scalar()})
    assert store.submit(a_new_run(), START)[1]


@pytest.mark.postgres
def test_a_database_that_does_not_exist_is_out_of_reach(postgres):
    with pytest.raises(DatabaseUnreachable, match='"nowhere" does not exist'):
        Store.open(postgres.format(name="nowhere"))


@pytest.mark.parametrize(
    ("url", "error"),
    [
        ("postgresql://ana:hunter2@127.0.0.1:1/orch", DatabaseUnreachable),
        ("postgresql://ana@127.0.0.1:1/orch?password=hunter2", DatabaseUnreachable),
        ("postgresql://ana:hunter2@host:port/orch", BadDatabaseUrl),
        ("mysql://ana:hunter2@host/orch", BadDatabaseUrl),
        ("hunter2", BadDatabaseUrl),
    ],
)
def test_a_password_is_in_no_message(url, error):
    with pytest.raises(error) as refused:
        Store.open(url)
    told = "".join(traceback.format_exception(refused.value))
    said = "\n".join(line for line in told.splitlines() if "Store.open" not in line)
    assert "hunter2" not in said


@pytest.mark.parametrize("url", ["sqlite://", "sqlite:///:memory:"])
def test_a_history_that_would_not_last_is_refused(url):
    with pytest.raises(BadDatabaseUrl, match="must be in a file"):
        Store.open(url)
