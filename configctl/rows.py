"""A row of the store -> a record, or a sentence about a row that nobody of ours wrote.

Owns what each column may hold. SQLite keeps any value in any column, and everything above trusts a record's types.
`verify` alone takes rows as they are (`loose_*`), to name what was changed.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import NoneType
from typing import Any

import orjson
from sqlalchemy import Row

from configctl.records import AuditEntry, Instance, Version

_NUMBER, _TEXT, _TIME = (int,), (str,), (int, float)
_VERSION: Mapping[str, tuple[type, ...]] = {
    "number": _NUMBER,
    "parent": (int, NoneType),
    "digest": _TEXT,
    "content": _TEXT,
    "author": _TEXT,
    "message": _TEXT,
    "created_at": _TIME,
    "kind": _TEXT,
    "rollback_of": (int, NoneType),
    "outcome": _TEXT,
    "outcome_reason": (str, NoneType),
}
_ENTRY: Mapping[str, tuple[type, ...]] = {
    "seq": _NUMBER,
    "at": _TIME,
    "actor": _TEXT,
    "act": _TEXT,
    "version": (int, NoneType),
    "detail": _TEXT,
    "refused": _NUMBER,
    "prev_hash": _TEXT,
    "hash": _TEXT,
}
_INSTANCE: Mapping[str, tuple[type, ...]] = {
    "id": _TEXT,
    "hostname": _TEXT,
    "pid": _NUMBER,
    "wanted": (int, NoneType),
    "applied": (int, NoneType),
    "since": _TIME,
    "heartbeat_at": _TIME,
    "last_error": (str, NoneType),
    "missing_keys": _TEXT,
}
_LAST_MOMENT = 253_402_300_799.0
"""The end of the year 9999, the last that can be written down."""

_NUMBERS_END = 2**53
"""Further than anybody counts, and far enough from where a database or JSON can count no further."""


class RowError(Exception):
    """A row was changed by somebody else: it holds what the gateway never writes."""


def read_version(row: Row[Any]) -> Version:
    """Return a version; raises RowError."""
    what = f"version {row.number}"
    _check(row, what, _VERSION, ("created_at",))
    for column in ("parent", "rollback_of"):
        earlier: int | None = getattr(row, column)
        # Who follows parents comes to an end only because each is older than its child.
        if earlier is not None and earlier >= row.number:
            raise _unreadable(what, column)
    return loose_version(row)


def read_entry(row: Row[Any]) -> AuditEntry:
    """Return an audit entry whose details can be read; raises RowError."""
    what = f"audit entry {row.seq}"
    _check(row, what, _ENTRY, ("at",))
    entry = loose_entry(row)
    try:
        _ = entry.details
    except ValueError:
        raise _unreadable(what, "detail") from None
    return entry


def read_instance(row: Row[Any]) -> Instance:
    """Return an instance; raises RowError."""
    what = "a row of instances"
    _check(row, what, _INSTANCE, ("since", "heartbeat_at"))
    values = row._asdict()
    keys = _texts(values.pop("missing_keys"))
    if keys is None:
        raise _unreadable(what, "missing_keys")
    return Instance(error=values.pop("last_error"), missing_keys=keys, **values)


def read_number(value: Any) -> int | None:
    """Return the number of the wanted version; raises RowError."""
    if value is None or type(value) is int:
        return value
    raise _unreadable("the row of wanted", "number")


def read_last(value: Any, what: str, column: str) -> int:
    """Return the number that the next one of its column follows; raises RowError."""
    if type(value) is int and 0 <= value < _NUMBERS_END:
        return value
    raise _unreadable(what, column)


def read_hash(value: Any) -> str:
    """Return the hash that the next audit entry follows; raises RowError."""
    if isinstance(value, str):
        return value
    raise _unreadable("the last audit entry", "hash")


def loose_version(row: Row[Any]) -> Version:
    """Return a version with whatever its columns hold."""
    values = row._asdict()
    return Version(**values | {"content": str(values["content"]).encode()})


def loose_entry(row: Row[Any]) -> AuditEntry:
    """Return an audit entry with whatever its columns hold."""
    return AuditEntry(**row._asdict())


def _check(row: Row[Any], what: str, columns: Mapping[str, tuple[type, ...]], times: tuple[str, ...]) -> None:
    values = row._asdict()
    for column, types in columns.items():
        if type(values[column]) not in types:
            raise _unreadable(what, column)
    for column in times:
        if not 0 <= values[column] <= _LAST_MOMENT:
            raise _unreadable(what, column)


def _texts(text: str) -> tuple[str, ...] | None:
    """Read a list of texts, None when it is none."""
    try:
        values = orjson.loads(text)
    except orjson.JSONDecodeError:
        return None
    return tuple(values) if isinstance(values, list) and all(isinstance(one, str) for one in values) else None


def _unreadable(what: str, column: str) -> RowError:
    return RowError(f"{what} was changed, its {column} cannot be read: `configctl audit verify` names all that was")
