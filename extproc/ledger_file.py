"""The ledger's file: its schema, its rows, and how a story becomes one and is read back.

One row a request. What is asked for in queries has a column; plan, candidates and attempts are JSON. SQLite keeps any
value in any column, and everything above trusts a story's types: a row that nobody of ours wrote is said to be
unreadable, whatever it holds.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Mapping
from dataclasses import is_dataclass
from functools import cache
from operator import attrgetter
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

import orjson

from extproc.config.snapshot import TargetKey
from extproc.core.story import (
    GOOD_OUTCOMES,
    Chosen,
    Story,
    attempts_from_json,
    attempts_to_json,
    candidates_from_json,
    candidates_to_json,
)

UNREADABLE = "unreadable"
"""Outcome of a row that somebody changed; nothing but its id is told."""

BUSY_TIMEOUT_S = 5.0
_SCHEMA_VERSION = 1
_LAST_MOMENT = 253_402_300_799.0
"""The end of the year 9999, the last that can be written down, and longer than anything takes."""
_NUMBERS_END = 2**53
_SHORT_NUMBERS_END = 2**31
"""For what the admin API tells in 32 bits."""

COLUMNS = (
    "id",
    "arrived",
    "version",
    "digest",
    "client",
    "endpoint",
    "kind",
    "policy",
    "model",
    "outcome",
    "failed",
    "status",
    "error",
    "route_mode",
    "served_by",
    "served_model",
    "flags",
    "duration_s",
    "first_byte_s",
    "request_bytes",
    "response_bytes",
    "ticket",
    "prefer",
    "pinned",
    "attempt_count",
    "classes",
    "input_tokens",
    "output_tokens",
    "tokens",
    "plan",
    "candidates",
    "attempts",
)
_CREATE = f"""
create table if not exists requests (seq integer primary key autoincrement, {", ".join(COLUMNS)});
create unique index if not exists requests_by_id on requests (id);
create index if not exists requests_by_time on requests (arrived);
create index if not exists requests_failed on requests (seq) where failed;
"""
INSERT = f"insert or replace into requests ({', '.join(COLUMNS)}) values ({', '.join('?' * len(COLUMNS))})"  # noqa: S608 - names of our own


def open_ledger(path: Path) -> sqlite3.Connection:
    """Open the file for writing and make its tables; raises sqlite3.Error or OSError."""
    os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
    database = sqlite3.connect(path, timeout=BUSY_TIMEOUT_S)
    try:
        database.execute("pragma journal_mode=wal")
        database.execute("pragma synchronous=normal")
        (found,) = database.execute("pragma user_version").fetchone()
        if found not in (0, _SCHEMA_VERSION):
            raise sqlite3.DatabaseError(f"its schema is version {found}, not {_SCHEMA_VERSION}")
        database.executescript(_CREATE)
        database.execute(f"pragma user_version={_SCHEMA_VERSION}")
    except BaseException:
        database.close()
        raise
    return database


def row_of(story: Story) -> tuple[Any, ...]:
    """Return a story as the values of `INSERT`."""
    return (
        # What Envoy refused before it was a request has no id: NULL is no other row's.
        story.id or None,
        story.arrived,
        story.version,
        story.digest,
        story.client,
        story.endpoint,
        story.kind,
        story.policy,
        story.model,
        story.outcome,
        story.outcome not in GOOD_OUTCOMES,
        story.status,
        story.error,
        story.route_mode,
        story.served_by,
        story.served_model,
        _json(story.flags),
        story.duration_s,
        story.first_byte_s,
        story.request_bytes,
        story.response_bytes,
        story.ticket,
        _json(story.prefer),
        story.pinned,
        story.attempt_count,
        _json(story.classes),
        story.tokens.get("input"),
        story.tokens.get("output"),
        _json(story.tokens),
        _json([[*chosen.target, chosen.public_model, chosen.mode] for chosen in story.plan]),
        _json(candidates_to_json(story.candidates)),
        _json(attempts_to_json(story.attempts)),
    )


def story_of(row: sqlite3.Row) -> Story:
    """Read a row back, whoever wrote it."""
    try:
        story = _read(row)
    except (ValueError, TypeError, KeyError, AttributeError):
        story = None
    return story if story is not None and _is_sound(story) else _unreadable(row["id"])


def _is_sound(story: Story) -> bool:
    return (
        _check_of(Story)(story) and story.arrived >= 0 and max(story.status, story.attempt_count) < _SHORT_NUMBERS_END
    )


@cache
def _check_of(kind: Any) -> Callable[[Any], bool]:
    """Return what tells whether a value is what a type says, all the way down, and no number is beyond use."""
    if kind is float:
        return lambda value: type(value) in (int, float) and -_LAST_MOMENT <= value <= _LAST_MOMENT
    if kind is int:
        return lambda value: type(value) is int and 0 <= value < _NUMBERS_END
    origin, inner = get_origin(kind), [_check_of(one) for one in get_args(kind) if one is not ...]
    if origin is UnionType:
        return lambda value: any(check(value) for check in inner)
    if origin is tuple:
        return lambda value: isinstance(value, tuple) and all(map(inner[0], value))
    if origin is Mapping:
        return lambda value: isinstance(value, Mapping) and all(map(inner[1], value.values()))
    if not (is_dataclass(kind) or hasattr(kind, "_fields")):
        return lambda value: isinstance(value, kind)
    fields = [(attrgetter(name), _check_of(hint)) for name, hint in get_type_hints(kind).items()]
    return lambda value: isinstance(value, kind) and all(check(get(value)) for get, check in fields)


def _unreadable(request_id: object) -> Story:
    return Story(
        id=request_id if isinstance(request_id, str) else "",
        arrived=0.0,
        version=0,
        digest="",
        client="",
        endpoint="",
        kind="",
        policy="",
        model="",
        outcome=UNREADABLE,
        status=0,
        error=None,
        route_mode="",
        served_by="",
        served_model="",
        flags=(),
        duration_s=None,
        first_byte_s=None,
        request_bytes=0,
        response_bytes=0,
    )


def _read(row: sqlite3.Row) -> Story:
    prefer = orjson.loads(row["prefer"])
    return Story(
        id=row["id"] or "",
        arrived=row["arrived"],
        version=row["version"],
        digest=row["digest"],
        client=row["client"],
        endpoint=row["endpoint"],
        kind=row["kind"],
        policy=row["policy"],
        model=row["model"],
        outcome=row["outcome"],
        status=row["status"],
        error=row["error"],
        route_mode=row["route_mode"],
        served_by=row["served_by"],
        served_model=row["served_model"],
        flags=tuple(orjson.loads(row["flags"])),
        duration_s=row["duration_s"],
        first_byte_s=row["first_byte_s"],
        request_bytes=row["request_bytes"],
        response_bytes=row["response_bytes"],
        ticket=row["ticket"],
        prefer=None if prefer is None else TargetKey(*prefer),
        pinned=bool(row["pinned"]),
        candidates=candidates_from_json(orjson.loads(row["candidates"])),
        plan=tuple(Chosen(TargetKey(p, m), public, mode) for p, m, public, mode in orjson.loads(row["plan"])),
        attempts=attempts_from_json(orjson.loads(row["attempts"])),
        attempt_count=row["attempt_count"],
        classes=tuple(orjson.loads(row["classes"])),
        tokens=orjson.loads(row["tokens"]),
    )


def _json(value: object) -> str:
    return orjson.dumps(value, option=orjson.OPT_PASSTHROUGH_SUBCLASS, default=list).decode()
