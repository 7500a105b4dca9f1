"""Which database, and is it one to trust: opens SQLite or PostgreSQL, upgrades it, and says in words why it cannot.

An up-to-date database is opened without importing Alembic (370 ms): its version row is compared by hand.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from shlex import quote as quote_word
from typing import Any
from urllib.parse import quote

from sqlalchemy import URL, Connection, Engine, create_engine, event, inspect, make_url, text
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError, PendingRollbackError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.pool import QueuePool

from orchestrator.history.errors import (
    BadDatabaseUrl,
    DatabaseBusy,
    DatabaseDamaged,
    DatabaseNewer,
    DatabaseOlder,
    DatabaseUnreachable,
    StoreError,
)
from orchestrator.history.holder import holder
from orchestrator.history.schema import SCHEMA, TABLES

VERSION_TABLE = "orch_version"
BUSY_TIMEOUT_S = 7
"""A command gives up after 10 s, and is to hear who holds the database."""
CONNECT_TIMEOUT_S = 3
_MIGRATION_LOCK = 0x6F726368  # any number that only orch uses ("orch"), for pg_advisory_xact_lock


@dataclass(frozen=True)
class Database:
    """An open database whose schema is this code's. `where` names it for messages, without its password."""

    where: str
    reader: Engine
    writer: Engine
    """The same pool."""
    begin_read: str | None = None
    """How a transaction begins, where the driver does not see to it itself. Not by SQLAlchemy's event: where it has one to tell,
    it looks at each statement who else wants to hear of that."""
    begin_write: str | None = None
    """The same for one that takes the write lock at once."""
    secret: str | None = None
    path: Path | None = None
    """Of a file."""

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """One consistent view of the whole database."""
        with self._in_words(), self.reader.begin() as connection:
            if self.begin_read is not None:
                connection.exec_driver_sql(self.begin_read)
            yield connection

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """A transaction that is committed at the end of the block, or leaves nothing behind."""
        with self._in_words(), self.writer.begin() as connection:
            if self.begin_write is not None:
                connection.exec_driver_sql(self.begin_write)
            yield connection

    @contextmanager
    def plain(self) -> Iterator[Any]:
        """The driver's own connection, in no transaction."""
        with self._in_words(), closing(self.reader.raw_connection()) as connection:
            yield connection.driver_connection

    def close(self) -> None:
        self.reader.dispose()

    @contextmanager
    def _in_words(self) -> Iterator[None]:
        try:
            yield
        except PoolTimeout as error:
            raise DatabaseBusy(f"{self.where} is busy: no connection came free.") from error
        except PendingRollbackError as error:
            # A statement found the connection broken, its write was told so, and the others of the transaction are to be.
            raise DatabaseUnreachable(f"{self.where} went away in the middle of a write.") from error
        except DBAPIError as error:
            if (said := _explain(error, self)) is None:
                raise
            raise said from error


def open_database(url: str, readonly: bool = False, busy_timeout_s: float = BUSY_TIMEOUT_S) -> Database:
    """The database at `url`, created (SQLite) and upgraded where needed.

    `readonly` creates and changes nothing; `busy_timeout_s` is how long a write waits for others. Raises a StoreError
    that says what is wrong; what is there is left as it is.
    """
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):
        # Without the cause: SQLAlchemy's own message may repeat the address, password included.
        raise BadDatabaseUrl(
            "The database's address cannot be read; it should look like sqlite:////home/ana/.orch/orch.db"
            " or postgresql://user@host/name."
        ) from None
    if parsed.get_backend_name() == "sqlite":
        return _open_sqlite(parsed, readonly, busy_timeout_s)
    if parsed.get_backend_name() == "postgresql":
        return _open_postgres(parsed, readonly, busy_timeout_s)
    raise BadDatabaseUrl(f"orch keeps its history in sqlite:// or postgresql://, not {parsed.get_backend_name()}://.")


def _open_sqlite(url: URL, readonly: bool, busy_timeout_s: float) -> Database:
    if not url.database or url.database == ":memory:":
        raise BadDatabaseUrl("The history must be in a file: sqlite:////home/ana/.orch/orch.db has four slashes.")
    path = Path(url.database).absolute()
    where = f"The database {path}"
    try:
        if not path.exists():
            if readonly:
                raise DatabaseUnreachable(f"{where} does not exist yet; the first `orch submit` makes it.")
            _create_sqlite(path)
        if path.is_file() and path.stat().st_size == 0:
            # SQLite would take it for a new one and the history would seem never to have been.
            raise DatabaseDamaged(f"{where} is empty: a database of orch's never is. Restore it, or move it away.")
        if not readonly:
            _keep_private(path)
    except OSError as error:
        raise DatabaseUnreachable(f"{where} cannot be opened: {error.strerror}.") from error
    database = _trusted(_sqlite(path, where, readonly, busy_timeout_s), readonly)
    if not readonly:
        _use_wal(database)  # only now: a file that is not ours stays as it is
    return database


def _sqlite(path: Path, where: str, readonly: bool, busy_timeout_s: float) -> Database:
    mode = "ro" if readonly else "rw"  # never "rwc": a file that vanished must not be made anew

    def connect() -> sqlite3.Connection:
        connection = sqlite3.connect(
            f"file:{quote(str(path))}?mode={mode}",
            uri=True,
            timeout=busy_timeout_s,
            isolation_level=None,  # we say BEGIN ourselves, below
            check_same_thread=False,  # the pool gives a connection to one thread at a time
        )
        connection.execute("PRAGMA synchronous=FULL")
        # A submission writes about 12 pages and a checkpoint syncs the file: every 300 submissions, not every 80.
        connection.execute("PRAGMA wal_autocheckpoint=4000")
        connection.execute("PRAGMA foreign_keys=ON")
        # A savepoint keeps the old pages aside: in memory, else from 64 KiB on in a file made for each transaction.
        connection.execute("PRAGMA temp_store=MEMORY")
        return connection

    engine = create_engine("sqlite://", creator=connect, poolclass=QueuePool, hide_parameters=True)

    # A transaction that reads first and writes later fails at once, whatever the timeout, when somebody wrote in between; so
    # whoever means to write says so at the start.
    return Database(where, engine, engine, "BEGIN", "BEGIN IMMEDIATE", path=path)


def _use_wal(database: Database) -> None:
    """Readers and the writer do not wait for each other. The file remembers it; it cannot be set in a transaction."""
    with database.plain() as connection:
        connection.execute("PRAGMA journal_mode=WAL")


def _create_sqlite(path: Path) -> None:
    """Makes the file whole or not at all, under another name first: an empty or half-made one is always damage."""
    leftover = Path(f"{path}-wal")
    if leftover.exists() and leftover.stat().st_size:
        raise DatabaseDamaged(
            f"The database {path} is gone, but {leftover} is still there: restore it or move that away."
        )
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    making = path.with_name(f".{path.name}.making-{os.getpid()}-{os.urandom(4).hex()}")
    os.close(os.open(making, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    try:
        database = _sqlite(making, f"The database {path}", readonly=False, busy_timeout_s=BUSY_TIMEOUT_S)
        try:
            _use_wal(database)
            _upgrade(database)
        finally:
            database.close()  # the last connection to close folds the WAL into the file
        with suppress(FileExistsError):  # somebody else was faster: theirs it is
            os.link(making, path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    finally:
        for name in (making, f"{making}-wal", f"{making}-shm"):
            Path(name).unlink(missing_ok=True)


def _keep_private(path: Path) -> None:
    """0600 for the file and its companions. SQLite gives later companions the mode of the file."""
    for name in (path, Path(f"{path}-wal"), Path(f"{path}-shm")):
        with suppress(FileNotFoundError):
            if name.stat().st_mode & 0o077:
                name.chmod(0o600)


def _open_postgres(url: URL, readonly: bool, busy_timeout_s: float) -> Database:
    host = url.host or url.query.get("host", "its local socket")
    where = f"The database {url.database or 'postgres'} on {host}{f':{url.port}' if url.port else ''}"
    try:
        engine = create_engine(
            url.set(drivername="postgresql+psycopg"),
            pool_pre_ping=True,
            hide_parameters=True,
            connect_args={"connect_timeout": CONNECT_TIMEOUT_S, "tcp_user_timeout": 15_000},
        )
    except (ImportError, NoSuchModuleError):
        raise DatabaseUnreachable(f"{where} needs psycopg: pip install 'orch-train[postgres]'.") from None

    @event.listens_for(engine, "connect")
    def _set(connection: Any, record: object) -> None:
        connection.execute(f"SET lock_timeout = {int(busy_timeout_s * 1000)}")
        connection.commit()

    # Two reads of one transaction must agree, as they do in SQLite; a write sees the latest once it has the lock.
    reader = engine.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
    return _trusted(Database(where, reader, engine, secret=url.password), readonly)


def _trusted(database: Database, readonly: bool) -> Database:
    try:
        with database.read() as connection:
            revision = schema_of(connection, database.where)
            if not readonly and database.path is not None:
                _check_pages(connection, database)
        if revision != SCHEMA:
            if readonly:
                raise _cannot_read(revision, database.where)
            if database.path is not None and revision is not None:
                _back_up(database.path, revision, database.where)
            _upgrade(database)
    except BaseException:
        database.close()
        raise
    return database


def schema_of(connection: Connection, where: str) -> str | None:
    """The revision of the schema that is there, no newer than this code's; None where there is nothing yet."""
    there = set(inspect(connection).get_table_names())
    ours = set(TABLES)
    if VERSION_TABLE not in there:
        foreign = there if connection.dialect.name == "sqlite" else there & ours
        if foreign:
            raise DatabaseDamaged(
                f"{where} is not orch's: it has tables that orch did not make ({', '.join(sorted(foreign)[:4])})."
                " Give orch a database of its own."
            )
        return None
    revision = connection.execute(text(f"SELECT version_num FROM {VERSION_TABLE}")).scalar()  # noqa: S608 - a constant
    if revision is None or not str(revision).isdecimal():
        raise DatabaseDamaged(f"{where} does not say which version it is.")
    if int(revision) > int(SCHEMA):
        raise DatabaseNewer(
            f"{where} was written by a newer orch (schema {revision}; this one knows {SCHEMA})."
            " Install that version here."
        )
    if revision == SCHEMA and (missing := ours - there):
        raise DatabaseDamaged(f"{where} lacks {len(missing)} of its tables: {', '.join(sorted(missing))}.")
    return str(revision)


def _cannot_read(revision: str | None, where: str) -> StoreError:
    if revision is None:
        return DatabaseUnreachable(f"{where} has no history yet; the first `orch submit` makes it.")
    return DatabaseOlder(f"{where} is of an older orch (schema {revision}, not {SCHEMA}); `orch up` upgrades it.")


def _check_pages(connection: Connection, database: Database) -> None:
    """Reads every page once. Only for a writer: a controller starts seldom, and would build on what it finds."""
    found = connection.exec_driver_sql("PRAGMA quick_check(1)").scalar()
    if found != "ok":
        raise DatabaseDamaged(_damage(database.where, str(found), database.path))


def _back_up(path: Path, revision: str, where: str) -> None:
    """A copy beside the file as it is before an upgrade: `orch.db.schema-0008.bak`. Raises DatabaseUnreachable."""
    copy = path.with_name(f"{path.name}.schema-{revision}.bak")
    making = path.with_name(f".{copy.name}.making-{os.getpid()}-{os.urandom(4).hex()}")
    try:
        os.close(os.open(making, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        from_it = f"file:{quote(str(path))}?mode=ro"
        with closing(sqlite3.connect(from_it, uri=True)) as old, closing(sqlite3.connect(making)) as new:
            old.backup(new)
        with making.open("rb") as written:
            os.fsync(written.fileno())
        making.replace(copy)
    except (OSError, sqlite3.Error) as error:
        raise DatabaseUnreachable(f"{where} cannot be copied, as it is before an upgrade: {error}.") from error
    finally:
        making.unlink(missing_ok=True)


def _upgrade(database: Database) -> None:
    """Brings the schema up to this code's, in one transaction: a process killed in between leaves it as it was."""
    with database.write() as connection:
        if connection.dialect.name == "postgresql":
            connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _MIGRATION_LOCK})
        if schema_of(connection, database.where) == SCHEMA:
            return  # another process was faster
        from orchestrator.history.migrations import upgrade

        upgrade(connection)


def _damage(where: str, detail: str, path: Path | None) -> str:
    said = f"{where} is damaged ({' '.join(detail.split())[:200]}). It was left as it is"
    if path is None:
        return f"{said}; restore it from a copy."
    kept = sorted(path.parent.glob(f"{path.name}.schema-*.bak"), key=lambda copy: copy.stat().st_mtime)
    if kept:
        return f"{said}: move it and its -wal and -shm away, and put a copy in its place; the newest that orch made is {kept[-1]}."
    # Not .recover: many sqlite3 are built without what it needs. A .dump goes on behind what it cannot read.
    saved = path.with_name(f"saved-{path.name}")
    return (
        f"{said}. Save what can be read: sqlite3 {quote_word(str(path))} .dump"
        f" | sed 's/^ROLLBACK.*/COMMIT;/' | sqlite3 {quote_word(str(saved))}; "
        "then move it and its -wal and -shm away, and put that, or a copy that you have, in its place."
    )


_SQLITE = {
    sqlite3.SQLITE_BUSY: DatabaseBusy,
    sqlite3.SQLITE_LOCKED: DatabaseBusy,
    sqlite3.SQLITE_CORRUPT: DatabaseDamaged,
    sqlite3.SQLITE_NOTADB: DatabaseDamaged,
    sqlite3.SQLITE_READONLY: DatabaseUnreachable,
    sqlite3.SQLITE_PERM: DatabaseUnreachable,
    sqlite3.SQLITE_IOERR: DatabaseUnreachable,
    sqlite3.SQLITE_FULL: DatabaseUnreachable,
    sqlite3.SQLITE_CANTOPEN: DatabaseUnreachable,
}

# PostgreSQL's SQLSTATE, or the beginning of it; the first that fits.
_POSTGRES = {
    "55P03": DatabaseBusy,  # lock_timeout
    "57014": DatabaseBusy,  # statement_timeout
    "40": DatabaseBusy,  # serialisation, deadlock
    "42P01": DatabaseDamaged,  # a table is missing
    "42703": DatabaseDamaged,  # a column is missing
    "XX": DatabaseDamaged,
    "08": DatabaseUnreachable,
    "25006": DatabaseUnreachable,  # a standby, or made read-only
    "28": DatabaseUnreachable,
    "3D": DatabaseUnreachable,
    "42501": DatabaseUnreachable,
    "53": DatabaseUnreachable,  # disk full, too many connections
    "57P": DatabaseUnreachable,
    "58": DatabaseUnreachable,
}


def _explain(error: DBAPIError, database: Database) -> StoreError | None:
    """The StoreError that `error` means; None where it is none of the database's own troubles."""
    cause, where, secret = error.orig, database.where, database.secret
    detail = str(cause).strip().splitlines()[0] if str(cause).strip() else type(cause).__name__
    if secret:
        detail = detail.replace(secret, "***")
    if isinstance(cause, sqlite3.Error):
        # No code where Python's own wrapper complains (a closed connection, say): our bug, not the database's trouble.
        kind = _SQLITE.get(getattr(cause, "sqlite_errorcode", 0) & 0xFF)
        if kind is None and detail.startswith(("no such table", "no such column")):
            kind = DatabaseDamaged
    else:
        state = getattr(cause, "sqlstate", None)
        if state is None:
            # Connecting failed, or the connection broke: the server had no part in the error.
            kind = DatabaseUnreachable if type(cause).__name__ in ("OperationalError", "ConnectionTimeout") else None
        else:
            kind = next((kind for prefix, kind in _POSTGRES.items() if state.startswith(prefix)), None)
    if kind is None:
        return None
    if kind is DatabaseDamaged:
        return DatabaseDamaged(_damage(where, detail, database.path))
    if kind is DatabaseBusy:
        who = None if database.path is None else holder(database.path)
        return DatabaseBusy(f"{where} is busy: {who or 'another process'} held it for too long ({detail}).")
    return kind(f"{where} cannot be used now: {detail}.")
