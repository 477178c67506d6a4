"""A store's URL -> an SQLAlchemy engine that commits safely, or a sentence that says why not.

Owns what differs between SQLite and PostgreSQL: files and their modes, pragmas, locks, time limits, the clock.
Invariants: a writing transaction on SQLite takes the write lock when it begins, so that what it read is still true when
it writes; a store file that somebody replaced is opened anew; no message holds a password.
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

from sqlalchemy import Connection, Double, Engine, create_engine, event
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, DisconnectionError, NoSuchModuleError, SQLAlchemyError
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.pool import QueuePool, StaticPool
from sqlalchemy.sql.functions import FunctionElement

from configctl.refusals import StoreError

BUSY_TIMEOUT_S = 10.0
CONNECT_TIMEOUT_S = 5
_UNREADABLE = (
    "The store's address cannot be read: its port must be a number, and in its user and password each of : / ? # @ % "
    "must be percent-encoded, such as %2F for a slash."
)
_PLACES = ("host", "port")
STATEMENT_TIMEOUT_MS = 10_000
# https://www.postgresql.org/docs/current/libpq-connect.html: a network that swallows everything is noticed in 10 s too.
_NOTICE_A_DEAD_PEER = {
    "tcp_user_timeout": 10_000,
    "keepalives": 1,
    "keepalives_idle": 5,
    "keepalives_interval": 2,
    "keepalives_count": 3,
}
WRITES = "gateway_writes"
"""Execution option of an engine whose transactions write."""


def parse_store_url(text: str) -> URL:
    """Read `sqlite:///PATH`, `sqlite://` (in memory) or `postgresql+psycopg://...`; raises StoreError."""
    try:
        url = make_url(text)
    except ArgumentError:
        raise StoreError(
            "The store's address is not a URL: write sqlite:///PATH or postgresql+psycopg://USER@HOST/DATABASE."
        ) from None
    except ValueError:
        raise StoreError(_UNREADABLE) from None
    backend = url.drivername.partition("+")[0]
    if backend in ("postgresql", "postgres"):
        if text.partition("?")[0].count("@") > 1:
            # Nobody can tell which @ ends the password, and what follows the wrong one would be shown.
            raise StoreError(_UNREADABLE)
        return url.set(drivername="postgresql+psycopg")
    if backend != "sqlite":
        raise StoreError(f"The store cannot be {backend}: use sqlite:///PATH or postgresql+psycopg://...")
    return url


def describe(url: URL) -> str:
    """Return a store's address without its password, and of its parameters only those that say where it is."""
    places = {name: value for name, value in url.query.items() if name in _PLACES}
    return url.set(query=places).render_as_string(hide_password=True)


def open_engine(url: URL) -> Engine:
    """Return an engine; a SQLite file is created (mode 0600) with its directory (0700). Raises StoreError."""
    if url.get_backend_name() == "postgresql":
        return _postgresql(url)
    if sqlite_path(url) is None:
        engine = create_engine("sqlite://", poolclass=StaticPool, creator=lambda: _connect(":memory:"))
    else:
        path = Path(url.database or "").absolute()
        _create_file(path)
        engine = create_engine("sqlite://", poolclass=QueuePool, creator=lambda: _connect(_file_uri(path)))
        _reopen_when_replaced(engine, path)
        _write_ahead(engine)
    event.listen(engine, "begin", _begin)
    return engine


def sqlite_path(url: URL) -> Path | None:
    """Return the file of a SQLite store, None for one in memory and for PostgreSQL."""
    if url.get_backend_name() != "sqlite" or not url.database or url.database == ":memory:":
        return None
    return Path(url.database)


class database_now(FunctionElement[float]):  # noqa: N801 - a function of SQL
    """The database's clock in epoch seconds: as of this moment, not of the transaction's start."""

    inherit_cache = True
    type = Double()


@compiles(database_now, "postgresql")
def _postgresql_now(_element: Any, _compiler: Any, **_: Any) -> str:
    return "extract(epoch FROM clock_timestamp())"


@compiles(database_now, "sqlite")
def _sqlite_now(_element: Any, _compiler: Any, **_: Any) -> str:
    # Days, from https://www.sqlite.org/lang_datefunc.html: `unixepoch('subsec')` is not in every SQLite.
    return "(julianday('now') - 2440587.5) * 86400.0"


@contextmanager
def store_faults(url: URL) -> Iterator[None]:
    """Turn the faults of a database into StoreError."""
    try:
        yield
    except DBAPIError as error:
        raise StoreError(f"The store {describe(url)} cannot be used: {_first_line(error.orig)}.") from None
    except (SQLAlchemyError, sqlite3.Error, UnicodeDecodeError) as error:
        raise StoreError(f"The store {describe(url)} cannot be used: {_first_line(error)}.") from None


def _postgresql(url: URL) -> Engine:
    try:
        return create_engine(
            url,
            pool_pre_ping=True,
            connect_args={
                "connect_timeout": CONNECT_TIMEOUT_S,
                "options": f"-c statement_timeout={STATEMENT_TIMEOUT_MS}",
                **_NOTICE_A_DEAD_PEER,
            },
        )
    except (ImportError, NoSuchModuleError):
        raise StoreError(
            "A PostgreSQL store needs psycopg: install the extra with ai-model-gateway[postgres]."
        ) from None


def _create_file(path: Path) -> None:
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
    except OSError as error:
        raise StoreError(f"The store {path} cannot be opened: {error.strerror}.") from None


def _file_uri(path: Path) -> str:
    # rw: a file that has gone is an error, never a new, empty store.
    return f"file:{quote(str(path))}?mode=rw"


def _connect(uri: str) -> sqlite3.Connection:
    # isolation_level None: transactions begin where `_begin` says, not before the first write.
    connection = sqlite3.connect(uri, uri=True, timeout=BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False)
    connection.text_factory = _decode
    connection.execute("PRAGMA synchronous=FULL")
    return connection


def _decode(raw: bytes) -> str:
    """Read text even where a byte was flipped, so that `audit verify` can name the entry."""
    return raw.decode("utf-8", "backslashreplace")


def _begin(connection: Connection) -> None:
    writes = connection.get_execution_options().get(WRITES, False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def _write_ahead(engine: Engine) -> None:
    """Switch a new file to WAL; two processes that create one store at once may lock each other out for a moment."""
    give_up_at = time.monotonic() + BUSY_TIMEOUT_S
    while True:
        try:
            with engine.connect() as connection:
                raw: Any = connection.connection.dbapi_connection
                raw.execute("PRAGMA journal_mode=WAL")
                return
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > give_up_at:
                raise
            time.sleep(0.02)


def _reopen_when_replaced(engine: Engine, path: Path) -> None:
    def remember(_connection: Any, record: Any) -> None:
        record.info["file"] = _identity(path)

    def compare(_connection: Any, record: Any, _proxy: Any) -> None:
        if record.info.get("file") != _identity(path):
            raise DisconnectionError("the store's file was replaced")

    event.listen(engine, "connect", remember)
    event.listen(engine, "checkout", compare)


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _first_line(error: object) -> str:
    return str(error).strip().partition("\n")[0].rstrip(".")
