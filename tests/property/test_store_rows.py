"""Rows that somebody changed behind the store's back: its readers name what is wrong, or refuse, and never break."""

from __future__ import annotations

import io
import sqlite3
from collections.abc import Callable
from contextlib import suppress
from dataclasses import fields, replace
from functools import cache
from typing import Any, NamedTuple

from hypothesis import example, given
from hypothesis import strategies as st
from rich.console import Console

from configctl.commands import Status, diff, show, verify_audit
from configctl.history import GENESIS, entry_hash, verify_chain
from configctl.records import AuditEntry, Version
from configctl.refusals import Refusal
from configctl.render import print_audit, print_changes, print_history, print_shown, print_status
from configctl.store import Store, StoreError
from tests.support.fuzzing import fuzz
from tests.unit.configctl.claims import publish


class Discard(io.StringIO):
    """Takes text and keeps none of it, so that what a replay leaves behind is the store's."""

    def write(self, text: str) -> int:
        """Say that all of it was written."""
        return len(text)


NOWHERE = Console(file=Discard())
NOW = 1_800_000_000.0
REPORTERS: tuple[Callable[[Store], object], ...] = (Store.verify, Store.tally, verify_audit)
"""What must answer whatever the rows hold."""
READERS: tuple[Callable[[Store], object], ...] = (
    Store.versions,
    Store.audit_entries,
    Store.active,
    Store.active_number,
    Store.active_identity,
    lambda store: store.version(2),
    lambda store: store.instances(NOW),
    lambda store: print_history(NOWHERE, store.versions(), store.active_number()),
    lambda store: print_audit(NOWHERE, store.audit_entries()),
    lambda store: print_status(NOWHERE, Status(store.active(), store.instances(NOW)), NOW),
    lambda store: print_shown(NOWHERE, show(store, 2)),
    lambda store: print_changes(NOWHERE, diff(store, "1", "2")),
    lambda store: store.refuse("publish", "eve", "no", {}, NOW),
    lambda store: store.rollback(None, author="eve", message="back", expect=None, now=NOW),
)
"""What may refuse with a StoreError or a Refusal, and with nothing else."""


class Whole(NamedTuple):
    """What a store held before it was changed."""

    entries: tuple[AuditEntry, ...]
    versions: tuple[Version, ...]
    active: int | None
    last_hash: str


def filled(store: Store) -> Whole:
    """Let a store see every kind of act, and return what it holds."""
    for index, text in enumerate(("a", "b", "c")):
        publish(store, f'{{"models":"{text}ü"}}', now=NOW + index)
    store.rollback(1, author="bob", message="back", expect=3, now=NOW)
    store.mark_outcome(4, "failed", "Envoy said nö", actor="gw", now=NOW)
    store.return_to_parent(4, "refused by gw", actor="bob", now=NOW)
    store.refuse("publish", "eve", "the compiler refused it", {"errors": ["x"]}, NOW)
    keys = ["openai (env OPENAI_API_KEY is not set)"]
    store.report("gw-1", hostname="h", pid=1, wanted=3, applied=3, error=None, missing_keys=keys, now=NOW)
    entries = store.audit_entries()[::-1]
    return Whole(entries, store.versions()[::-1], store.active_number(), entries[-1].hash)


with Store.open("sqlite://") as _memory:
    WHOLE = filled(_memory)

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=12) | st.sampled_from(
    [
        "",
        "null",
        "[]",
        "{}",
        '{"to":"x"}',
        '{"to":[1]}',
        '{"digest":1}',
        "[" * 2000,
        '{"models":{"a":{"targets":[1]}}}',
        "\x1b[2J",
        "publish",
        "rollback",
    ]
)
VALUES = st.none() | st.booleans() | st.integers() | st.floats() | TEXTS | st.binary(max_size=12)


def changed(draw: st.DrawFn, row: Any) -> Any:
    """Draw a row with one to three of its fields replaced."""
    names = draw(st.lists(st.sampled_from([field.name for field in fields(row)]), min_size=1, max_size=3))
    return replace(row, **{name: draw(VALUES) for name in names})


def rehashed(entries: list[AuditEntry]) -> list[AuditEntry]:
    """Chain entries anew, as somebody does who knows how; a row that cannot be hashed ends that."""
    previous, made = GENESIS, list(entries)
    with suppress(TypeError, ValueError):
        for place, entry in enumerate(entries):
            linked = replace(entry, seq=place + 1, prev_hash=previous)
            made[place] = replace(linked, hash=entry_hash(linked))
            previous = made[place].hash
    return made


@st.composite
def histories(draw: st.DrawFn) -> Whole:
    """Draw a history with rows changed, cut out, doubled or swapped, and now and then chained anew."""
    entries, versions = list(WHOLE.entries), list(WHOLE.versions)
    for _ in range(draw(st.integers(1, 4))):
        rows: list[Any] = draw(st.sampled_from([entries, versions]))
        if not rows:
            continue
        at = draw(st.integers(0, len(rows) - 1))
        other = draw(st.integers(0, len(rows) - 1))
        act = draw(st.sampled_from(["change", "change", "cut", "double", "swap"]))
        if act == "change":
            rows[at] = changed(draw, rows[at])
        elif act == "cut":
            del rows[at]
        elif act == "double":
            rows.insert(at, rows[other])
        else:
            rows[at], rows[other] = rows[other], rows[at]
    # What the store's reader makes of a content, whatever the column held.
    versions = [replace(one, content=str(one.content).encode("utf-8", "replace")) for one in versions]
    if draw(st.booleans()):
        entries = rehashed(entries)
    active: Any = draw(st.just(WHOLE.active) | VALUES)
    last_hash: Any = draw(st.just(entries[-1].hash if entries else GENESIS) | st.just(WHOLE.last_hash) | VALUES)
    return Whole(tuple(entries), tuple(versions), active, last_hash)


@fuzz
@given(histories())
def test_a_changed_history_is_reported(history: Whole) -> None:
    """Whole or with its faults named in words: no answer is an exception."""
    found = verify_chain(*history)
    assert all(one.what and one.reason for one in found)


def test_missing_versions_are_named_whatever_they_are_called() -> None:
    """Chained anew by somebody who gave one of them another name."""
    published, *others = WHOLE.entries
    name: Any = "x"
    odd = replace(published, version=name)
    entries = rehashed([odd, *others])
    found = [broken.what for broken in verify_chain(entries, (), WHOLE.active, entries[-1].hash)]
    assert ["version 2", "version 3", "version 4", "version x"] == found


class Shared(NamedTuple):
    """One store for all examples, the way to its rows behind its back, and a copy to go back to."""

    store: Store
    behind: sqlite3.Connection
    copy: sqlite3.Connection


@cache
def shared() -> Shared:
    """Make the store, in memory: a fuzz run is not to wait for a disk."""
    store = Store.open("sqlite://")
    filled(store)
    behind = store._engine.raw_connection().driver_connection
    assert isinstance(behind, sqlite3.Connection)
    copy = sqlite3.connect(":memory:")
    behind.backup(copy)
    return Shared(store, behind, copy)


COLUMNS = [
    *(("audit", field.name) for field in fields(AuditEntry)),
    *(("versions", field.name) for field in fields(Version)),
    *(("wanted", column) for column in ("id", "number", "audit_hash")),
    *(("instances", column) for column in ("id", "hostname", "pid", "wanted", "applied", "since", "heartbeat_at")),
    *(("instances", column) for column in ("last_error", "missing_keys")),
]
STORED = (VALUES | st.integers(-(2**63), 2**63 - 1)).filter(lambda value: not isinstance(value, int) or fits(value))
PLACES = st.integers(1, 8)


def fits(number: int) -> bool:
    """Tell whether SQLite can hold a number."""
    return -(2**63) <= number < 2**63


@fuzz
# A version that is its own parent: who follows parents must not follow it for ever.
@example([(("versions", "parent"), 3, 3, False)], "", Store.verify, READERS[-1])
# Numbers that no next one can follow.
@example([(("audit", "seq"), 1, 2**63 - 1, False)], "", Store.verify, READERS[-2])
@example([(("versions", "number"), 1, 2**63 - 1, False)], "", Store.verify, READERS[-1])
@given(
    st.lists(st.tuples(st.sampled_from(COLUMNS), PLACES, STORED, st.booleans()), min_size=1, max_size=4),
    st.sampled_from(["", "", "", "audit", "versions", "wanted", "instances"]),
    st.sampled_from(REPORTERS),
    st.sampled_from(READERS),
)
def test_a_changed_row_is_read_or_refused(
    changes: list[tuple[tuple[str, str], int, Any, bool]],
    emptied: str,
    report: Callable[[Store], object],
    read: Callable[[Store], object],
) -> None:
    """Any column, any type of value that SQLite lets in, text that is no UTF-8 included."""
    store, behind, copy = shared()
    try:
        for (table, column), row, value, as_text in changes:
            shown = "CAST(? AS TEXT)" if as_text else "?"
            with suppress(sqlite3.IntegrityError, sqlite3.OperationalError):
                behind.execute(f"UPDATE {table} SET {column} = {shown} WHERE rowid = {row}", (value,))  # noqa: S608 - our own tables
        if emptied:
            behind.execute(f"DELETE FROM {emptied}")  # noqa: S608 - our own tables
        report(store)
        with suppress(StoreError, Refusal):
            read(store)
    finally:
        copy.backup(behind)


def test_the_store_that_is_changed_is_whole_before_and_after() -> None:
    """So what the examples find comes from their changes."""
    assert () == shared().store.verify()
    shared().behind.execute("DELETE FROM versions")
    assert () != shared().store.verify()
    shared().copy.backup(shared().behind)
    assert () == shared().store.verify()
