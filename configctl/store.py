"""Versions, audit and instances in a database: SQLite or PostgreSQL, one code path.

Owns transactions. What an act writes is `history.py`'s decision, made inside the transaction that holds the lock of the
one `wanted` row, so acts have one order and each is written whole or not at all. Reads no clock of its own machine:
`now` (epoch seconds) is passed, and who is live goes by `Store.now()`, the database's time, which is one for all
gateways and operators. Safe to use from several threads; every call may raise StoreError and then changed nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any, Literal, NamedTuple, Self, TypeVar

from sqlalchemy import URL, Connection, Engine, Select, delete, func, insert, select, update

from configctl.engine import WRITES, database_now, describe, open_engine, parse_store_url, store_faults
from configctl.history import (
    GENESIS,
    Broken,
    Head,
    Planned,
    Request,
    chained,
    plan_outcome,
    plan_publish,
    plan_return,
    plan_rollback,
    verify_chain,
)
from configctl.records import (
    Act,
    AuditEntry,
    Changed,
    Conflict,
    Instance,
    NoSuchVersion,
    NothingToPublish,
    Published,
    Returned,
    Version,
    canonical,
)
from configctl.refusals import StoreError
from configctl.rows import (
    RowError,
    loose_entry,
    loose_version,
    read_entry,
    read_hash,
    read_instance,
    read_last,
    read_number,
    read_version,
)
from configctl.tables import (
    AUDIT,
    INSTANCES,
    VERSIONS,
    WANTED,
    WANTED_ID,
    UnknownSchemaError,
    is_current,
    migrate,
)

FORGET_AFTER_S = 86_400.0
"""An instance that was silent for so long is gone."""

_ResultT = TypeVar("_ResultT")

__all__ = ["FORGET_AFTER_S", "Store", "StoreError", "Tally"]


class Tally(NamedTuple):
    """How much a store holds; `head` is the last audit entry's hash."""

    versions: int
    entries: int
    head: str | None


class Store:
    """An open store; use as a context manager, or `close()` it."""

    def __init__(self, engine: Engine, url: URL) -> None:
        self._engine = engine
        self._url = url
        self._reading: Engine
        self._writing: Engine
        if engine.dialect.name == "postgresql":
            self._reading = engine.execution_options(isolation_level="REPEATABLE READ")
            self._writing = engine.execution_options(isolation_level="READ COMMITTED")
        else:
            self._reading = engine
            self._writing = engine.execution_options(**{WRITES: True})

    @classmethod
    def open(cls, url: str) -> Self:
        """Open a store and bring its schema up to date; `sqlite://` is an empty store in memory."""
        parsed = parse_store_url(url)
        with store_faults(parsed):
            store = cls(open_engine(parsed), parsed)
            store._migrate()
        return store

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Store({describe(self._url)})"

    def close(self) -> None:
        """Close the connections; the store stays usable and would open new ones."""
        self._engine.dispose()

    def now(self) -> float:
        """Return the database's time, to tell by one clock who is live, whatever the machines' clocks say."""
        with self._read() as connection:
            return float(connection.execute(select(database_now())).scalar_one())

    def active_number(self) -> int | None:
        """Return the wanted version's number."""
        with self._read() as connection:
            return read_number(connection.execute(select(WANTED.c.number)).scalar_one())

    def active_identity(self) -> tuple[int, str] | None:
        """Return the wanted version's number and digest: the cheapest question by which a gateway learns of news."""
        with self._read() as connection:
            number, own = connection.execute(_IDENTITY).one()
            return None if read_number(number) is None else (number, str(own))

    def active(self) -> Version | None:
        """Return the wanted version, None while nothing is published."""
        with self._read() as connection:
            return _one_version(connection, _ACTIVE)

    def version(self, number: int) -> Version | None:
        """Return one version."""
        with self._read() as connection:
            return _find(connection, number)

    def versions(self, limit: int | None = None) -> tuple[Version, ...]:
        """Return versions, newest first."""
        query = select(VERSIONS).order_by(VERSIONS.c.number.desc()).limit(limit)
        with self._read() as connection:
            return tuple(map(read_version, connection.execute(query)))

    def audit_entries(self, limit: int | None = None) -> tuple[AuditEntry, ...]:
        """Return audit entries, newest first."""
        query = select(AUDIT).order_by(AUDIT.c.seq.desc()).limit(limit)
        with self._read() as connection:
            return tuple(map(read_entry, connection.execute(query)))

    def tally(self) -> Tally:
        """Count versions and audit entries, and return the hash of the last one, whether they can be read or not."""
        last = select(AUDIT.c.hash).order_by(AUDIT.c.seq.desc()).limit(1)
        with self._read() as connection:
            versions = connection.execute(select(func.count()).select_from(VERSIONS)).scalar_one()
            entries = connection.execute(select(func.count()).select_from(AUDIT)).scalar_one()
            head = connection.execute(last).scalar_one_or_none()
        return Tally(versions, entries, None if head is None else str(head))

    def verify(self) -> tuple[Broken, ...]:
        """Return everything that is not as it was written; empty for a whole history."""
        with self._read() as connection:
            entries = map(loose_entry, connection.execute(select(AUDIT).order_by(AUDIT.c.seq)))
            versions = tuple(map(loose_version, connection.execute(select(VERSIONS).order_by(VERSIONS.c.number))))
            wanted = connection.execute(select(WANTED)).one_or_none()
            if wanted is None:
                return (Broken("active version", "is missing"),)
            return verify_chain(entries, versions, wanted.number, wanted.audit_hash)

    def publish(
        self, content: bytes, digest: str, *, author: str, message: str, expect: int | None, now: float
    ) -> Published | NothingToPublish | Conflict:
        """Make `content` (canonical JSON) the active version, if version `expect` is active (0: none, None: any)."""
        request = Request(author, message, expect, now)
        with self._change() as (connection, head):
            return _write(connection, plan_publish(head, content, digest, request))

    def rollback(
        self, to: int | None, *, author: str, message: str, expect: int | None, now: float
    ) -> Published | NothingToPublish | Conflict | NoSuchVersion | Changed:
        """Publish an old version's content again; None: the version that was active before the active one."""
        request = Request(author, message, expect, now)
        with self._change() as (connection, head):
            return _write(connection, plan_rollback(head, lambda number: _find(connection, number), to, request))

    def refuse(self, act: Act, actor: str, reason: str, detail: dict[str, Any], now: float) -> None:
        """Record an act that was refused before it came to a version."""
        with self._change() as (connection, head):
            told = {**detail, "reason": reason}
            _append(connection, chained(head, act, actor, None, told, now, refused=True))

    def record(self, act: Act, actor: str, detail: dict[str, Any], now: float, *, refused: bool, own_id: str) -> None:
        """Record an act that concerns no version; one that is told again with the same id is not written again."""
        told = AUDIT.c.detail.contains(f'"id":"{own_id}"', autoescape=True)
        with self._change() as (connection, head):
            if connection.execute(select(AUDIT.c.seq).where(AUDIT.c.act == act, told)).first() is None:
                _append(connection, chained(head, act, actor, None, detail | {"id": own_id}, now, refused=refused))

    def mark_outcome(
        self, number: int, outcome: Literal["applied", "failed"], reason: str | None, *, actor: str, now: float
    ) -> bool:
        """Record a gateway's verdict on a version; False when it changes nothing.

        `applied` counts for a pending version only; the first `failed` stays whatever others say.
        """
        with self._change() as (connection, head):
            version = _find(connection, number)
            entry = plan_outcome(head, version, outcome, reason, actor, now) if version else None
            if entry is None:
                return False
            changed = update(VERSIONS).where(VERSIONS.c.number == number)
            connection.execute(changed.values(outcome=outcome, outcome_reason=reason))
            _append(connection, entry)
            return True

    def return_to_parent(self, number: int, reason: str, *, actor: str, now: float) -> Returned | Conflict:
        """Make the nearest ancestor of `number` that did not fail the wanted version again.

        Conflict, and no change, when `number` is no longer the wanted one.
        """
        with self._change() as (connection, head):
            find = lambda wanted: _find(connection, wanted)  # noqa: E731
            return _write(connection, plan_return(head, find, number, reason, actor, now))

    def report(
        self,
        instance_id: str,
        *,
        hostname: str,
        pid: int,
        wanted: int | None,
        applied: int | None,
        error: str | None,
        missing_keys: Iterable[str],
        now: float,
    ) -> None:
        """Record a heartbeat. `error` says why `wanted` was refused and is None otherwise."""
        keys = canonical(sorted(missing_keys)).decode()
        row = {"hostname": hostname, "pid": pid, "wanted": wanted, "applied": applied, "last_error": error}
        row |= {"missing_keys": keys, "heartbeat_at": now}
        own = INSTANCES.c.id == instance_id
        with self._write_transaction() as connection:
            connection.execute(delete(INSTANCES).where(INSTANCES.c.heartbeat_at < now - FORGET_AFTER_S, ~own))
            before = connection.execute(select(INSTANCES).where(own)).one_or_none()
            if before is None:
                connection.execute(insert(INSTANCES).values(id=instance_id, since=now, **row))
            else:
                since = before.since if before.applied == applied else now
                connection.execute(update(INSTANCES).where(own).values(since=since, **row))

    def leave(self, instance_id: str) -> None:
        """Forget an instance that stops in good order."""
        with self._write_transaction() as connection:
            connection.execute(delete(INSTANCES).where(INSTANCES.c.id == instance_id))

    def instances(self, now: float) -> tuple[Instance, ...]:
        """Return the instances heard of within a day, by id."""
        recent = select(INSTANCES).where(INSTANCES.c.heartbeat_at >= now - FORGET_AFTER_S).order_by(INSTANCES.c.id)
        with self._read() as connection:
            return tuple(map(read_instance, connection.execute(recent)))

    def _migrate(self) -> None:
        try:
            with self._reading.connect() as connection:
                if is_current(connection):
                    return
            with self._writing.begin() as connection:
                migrate(connection, GENESIS)
        except UnknownSchemaError:
            raise StoreError(
                f"The store {describe(self._url)} was written by a newer gateway: upgrade this one."
            ) from None

    @contextmanager
    def _faults(self) -> Iterator[None]:
        try:
            with store_faults(self._url):
                yield
        except RowError as error:
            raise StoreError(f"The store {describe(self._url)} cannot be used: {error}.") from None

    @contextmanager
    def _read(self) -> Iterator[Connection]:
        with self._faults(), self._reading.connect() as connection:
            yield connection

    @contextmanager
    def _write_transaction(self) -> Iterator[Connection]:
        with self._faults(), self._writing.begin() as connection:
            yield connection

    @contextmanager
    def _change(self) -> Iterator[tuple[Connection, Head]]:
        """Hold the one lock of all acts, and know the history it protects."""
        with self._write_transaction() as connection:
            connection.execute(select(WANTED.c.id).where(WANTED.c.id == WANTED_ID).with_for_update()).one()
            yield connection, _head(connection)


_ACTIVE = select(VERSIONS).join(WANTED, WANTED.c.number == VERSIONS.c.number)
_IDENTITY = select(WANTED.c.number, VERSIONS.c.digest).outerjoin(VERSIONS, VERSIONS.c.number == WANTED.c.number)


def _head(connection: Connection) -> Head:
    last = connection.execute(select(AUDIT.c.seq, AUDIT.c.hash).order_by(AUDIT.c.seq.desc()).limit(1)).one_or_none()
    newest = connection.execute(select(func.max(VERSIONS.c.number))).scalar_one()
    number = 0 if newest is None else read_last(newest, "the newest version", "number")
    seq = read_last(last.seq, "the last audit entry", "seq") if last else 0
    return Head(_one_version(connection, _ACTIVE), number, seq, read_hash(last.hash) if last else GENESIS)


def _write(connection: Connection, planned: Planned[_ResultT]) -> _ResultT:
    """Write what was planned and return its answer."""
    if planned.version is not None:
        row = asdict(planned.version) | {"content": planned.version.content.decode()}
        connection.execute(insert(VERSIONS).values(**row))
    if planned.entry is not None:
        _append(connection, planned.entry)
        connection.execute(update(WANTED).values(number=planned.active))
    return planned.result


def _append(connection: Connection, entry: AuditEntry) -> None:
    connection.execute(insert(AUDIT).values(**asdict(entry)))
    connection.execute(update(WANTED).values(audit_hash=entry.hash))


def _find(connection: Connection, number: int) -> Version | None:
    return _one_version(connection, select(VERSIONS).where(VERSIONS.c.number == number))


def _one_version(connection: Connection, query: Select[Any]) -> Version | None:
    row = connection.execute(query).one_or_none()
    return read_version(row) if row is not None else None
