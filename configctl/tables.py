"""The store's tables, the same on SQLite and PostgreSQL, and how a store gets and keeps its schema.

Owns names, columns and migrations. Invariants: a migration runs in one transaction with the number that says it ran;
a store written by a newer gateway is refused, never guessed at.
"""

from __future__ import annotations

from collections.abc import Callable

from sqlalchemy import Column, Connection, Double, Integer, MetaData, Table, Text, insert, inspect, select, text, update

METADATA = MetaData()

SCHEMA_VERSION = Table("schema_version", METADATA, Column("number", Integer, nullable=False))

VERSIONS = Table(
    "versions",
    METADATA,
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("parent", Integer),
    Column("digest", Text, nullable=False),
    Column("content", Text, nullable=False),
    Column("author", Text, nullable=False),
    Column("message", Text, nullable=False),
    Column("created_at", Double, nullable=False),
    Column("kind", Text, nullable=False),
    Column("rollback_of", Integer),
    Column("outcome", Text, nullable=False),
    Column("outcome_reason", Text),
)

AUDIT = Table(
    "audit",
    METADATA,
    Column("seq", Integer, primary_key=True, autoincrement=False),
    Column("at", Double, nullable=False),
    Column("actor", Text, nullable=False),
    Column("act", Text, nullable=False),
    Column("version", Integer),
    Column("detail", Text, nullable=False),
    Column("refused", Integer, nullable=False),
    Column("prev_hash", Text, nullable=False),
    Column("hash", Text, nullable=False),
)

WANTED = Table(
    "wanted",
    METADATA,
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("number", Integer),
    Column("audit_hash", Text, nullable=False),
)
"""One row, there from the start: the active version and the end of the audit chain; its lock orders all writers."""

INSTANCES = Table(
    "instances",
    METADATA,
    Column("id", Text, primary_key=True),
    Column("hostname", Text, nullable=False),
    Column("pid", Integer, nullable=False),
    Column("wanted", Integer),
    Column("applied", Integer),
    Column("since", Double, nullable=False),
    Column("heartbeat_at", Double, nullable=False),
    Column("last_error", Text),
    Column("missing_keys", Text, nullable=False),
)

WANTED_ID = 1
_MIGRATION_LOCK = 0x676174657761
"""Any number that only this program uses: PostgreSQL's advisory locks are per database."""


class UnknownSchemaError(Exception):
    """The store was written by a newer gateway; upgrade this one."""


def migrate(connection: Connection, genesis: str) -> None:
    """Bring a store to the newest schema inside the caller's transaction; `genesis` starts the audit chain."""
    if connection.dialect.name == "postgresql":
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _MIGRATION_LOCK})
    number = schema_number(connection)
    for step in _MIGRATIONS[number:]:
        step(connection, genesis)
    if number < len(_MIGRATIONS):
        connection.execute(update(SCHEMA_VERSION).values(number=len(_MIGRATIONS)))


def is_current(connection: Connection) -> bool:
    """Tell whether the store has the newest schema."""
    return schema_number(connection) == len(_MIGRATIONS)


def schema_number(connection: Connection) -> int:
    """Return how many migrations a store has seen; raises UnknownSchemaError."""
    if not inspect(connection).has_table(SCHEMA_VERSION.name):
        return 0
    number = connection.execute(select(SCHEMA_VERSION.c.number)).scalar_one()
    if number > len(_MIGRATIONS):
        raise UnknownSchemaError
    return int(number)


def _create(connection: Connection, genesis: str) -> None:
    METADATA.create_all(connection)
    connection.execute(insert(SCHEMA_VERSION).values(number=1))
    connection.execute(insert(WANTED).values(id=WANTED_ID, number=None, audit_hash=genesis))


_MIGRATIONS: tuple[Callable[[Connection, str], None], ...] = (_create,)
