"""Whatever somebody changes in a store behind its back, `verify` names it."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from configctl.store import Store
from tests.unit.configctl.claims import publish

AUDIT_COLUMNS = ("at", "actor", "act", "version", "detail", "refused", "prev_hash", "hash")
VERSION_COLUMNS = (
    "parent",
    "digest",
    "content",
    "author",
    "message",
    "created_at",
    "kind",
    "rollback_of",
    "outcome",
    "outcome_reason",
)


ENTRIES, VERSIONS = 8, 4


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "store.db"
    with Store.open(f"sqlite:///{path}") as store:
        for index, text in enumerate(("a", "b", "c")):
            publish(store, f'{{"models":"{text}ü"}}', now=1_800_000_000.25 + index)
        store.rollback(1, author="bob", message="back", expect=4 - 1, now=5.0)
        store.mark_outcome(4, "failed", "Envoy said nö", actor="gw", now=6.0)
        store.return_to_parent(4, "refused by gw", actor="bob", now=7.0)
        store.refuse("publish", "eve", "the compiler refused it", {"errors": ["x"]}, 8.0)
        store.record("health_down", "ann", {"subject": "openai"}, 9.0, refused=False, own_id="f00")
        assert () == store.verify()
    return path


def change(path: Path, statement: str, *values: object) -> None:
    connection = sqlite3.connect(path)
    with connection:
        connection.execute(statement, values)
    connection.close()


def verify(path: Path) -> list[str]:
    with Store.open(f"sqlite:///{path}") as store:
        return [broken.what for broken in store.verify()]


def flips(value: object) -> Iterator[object]:
    """Yield values that differ from one by another byte (another character, case, no UTF-8), number or sign."""
    if isinstance(value, str):
        raw = value.encode()
        for position in range(len(raw)):
            changed = bytearray(raw)
            changed[position] ^= (0x01, 0x20, 0x80)[position % 3]
            yield bytes(changed)
    elif isinstance(value, int):
        yield from (value + 1, value + 2, -value - 1)
    elif isinstance(value, float):
        yield from (value + 2**-20, -value)
    else:
        yield from (1, "x")


@pytest.mark.parametrize("seq", range(1, ENTRIES + 1))
def test_every_changed_byte_of_an_audit_entry_names_it(path: Path, seq: int) -> None:
    for column in AUDIT_COLUMNS:
        for found in _every_flip(path, "audit", "seq", seq, column):
            assert f"audit entry {seq}" == found[0]


@pytest.mark.parametrize("number", range(1, VERSIONS + 1))
def test_every_changed_byte_of_a_version_names_it(path: Path, number: int) -> None:
    for column in VERSION_COLUMNS:
        for found in _every_flip(path, "versions", "number", number, column):
            assert [f"version {number}"] == found


def test_every_changed_byte_of_the_chains_end_is_named(path: Path) -> None:
    for found in _every_flip(path, "wanted", "id", 1, "audit_hash"):
        assert [f"audit entry {ENTRIES + 1}"] == found


def test_every_column_of_the_store_is_changed_here(path: Path) -> None:
    """But for the keys, whose change is told apart below: there it is the place that is empty."""
    with closing(sqlite3.connect(path)) as store:
        columns = {
            table: {row[1] for row in store.execute(f"PRAGMA table_info({table})")} for table in ("audit", "versions")
        }
    assert {"audit": {*AUDIT_COLUMNS, "seq"}, "versions": {*VERSION_COLUMNS, "number"}} == columns


def _every_flip(path: Path, table: str, key: str, number: int, column: str) -> Iterator[list[str]]:
    """Change one byte of a column, see what `verify` names, put it back, and go on to the next."""
    with closing(sqlite3.connect(path, isolation_level=None)) as connection, Store.open(f"sqlite:///{path}") as store:
        # Nothing here needs to survive the machine, and a few thousand changes would wait for the disk.
        connection.execute("PRAGMA synchronous=OFF")
        (value,) = connection.execute(f"SELECT {column} FROM {table} WHERE {key} = ?", (number,)).fetchone()  # noqa: S608 - our own tables
        for other in flips(value):
            shown = f"CAST(? AS {'TEXT' if isinstance(other, bytes) else 'NUMERIC'})"
            shown = "?" if isinstance(other, str) else shown
            connection.execute(f"UPDATE {table} SET {column} = {shown} WHERE {key} = ?", (other, number))  # noqa: S608 - our own tables
            found = [broken.what for broken in store.verify()]
            assert found, (column, value, other)
            yield found
            connection.execute(f"UPDATE {table} SET {column} = ? WHERE {key} = ?", (value, number))  # noqa: S608 - our own tables
        assert () == store.verify()


@pytest.mark.parametrize("seq", range(1, ENTRIES + 1))
def test_a_changed_number_of_an_audit_entry_is_named(path: Path, seq: int) -> None:
    change(path, "UPDATE audit SET seq = 99 WHERE seq = ?", seq)

    assert [f"audit entry {seq}"] == verify(path)


@pytest.mark.parametrize("number", range(1, VERSIONS + 1))
def test_a_changed_number_of_a_version_is_named(path: Path, number: int) -> None:
    change(path, "UPDATE versions SET number = 99 WHERE number = ?", number)

    assert {f"version {number}", "version 99"} == set(verify(path))


@pytest.mark.parametrize("seq", range(1, ENTRIES + 1))
def test_a_removed_audit_entry_is_named(path: Path, seq: int) -> None:
    change(path, "DELETE FROM audit WHERE seq = ?", seq)

    assert [f"audit entry {seq}"] == verify(path)


@pytest.mark.parametrize("number", range(1, VERSIONS + 1))
def test_a_removed_version_is_named(path: Path, number: int) -> None:
    change(path, "DELETE FROM versions WHERE number = ?", number)

    assert [f"version {number}"] == verify(path)


def test_a_version_that_nobody_published_is_named(path: Path) -> None:
    change(
        path,
        "INSERT INTO versions SELECT 9, parent, digest, content, author, message, created_at, kind, "
        "rollback_of, outcome, outcome_reason FROM versions WHERE number = 1",
    )

    assert ["version 9"] == verify(path)


def test_an_active_version_that_nobody_published_is_named(path: Path) -> None:
    change(path, "UPDATE wanted SET number = 1")

    assert ["active version"] == verify(path)


def test_a_cut_off_head_is_named(path: Path) -> None:
    change(path, "UPDATE wanted SET audit_hash = ?", "0" * 64)

    assert [f"audit entry {ENTRIES + 1}"] == verify(path)


def test_a_changed_content_with_its_digest_made_to_fit_is_named(path: Path) -> None:
    other = "2c26b46b68ffc68ff99b453c1d30413413422d706483bfa0f98a5e886266e7ae"
    change(path, "UPDATE versions SET content = 'foo', digest = ? WHERE number = 2", other)

    assert ["version 2"] == verify(path)


def test_an_act_after_a_break_does_not_hide_it(path: Path) -> None:
    change(path, "UPDATE audit SET actor = 'nobody' WHERE seq = 2")
    with Store.open(f"sqlite:///{path}") as store:
        publish(store, "later")

    assert "audit entry 2" in verify(path)
