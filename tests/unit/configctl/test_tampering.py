"""Whatever somebody changes in a store behind its back, `verify` names it."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
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
    """Yield values that differ from one by one byte, bit or sign."""
    if isinstance(value, str):
        raw = value.encode()
        for position in range(len(raw)):
            for mask in (0x01, 0x20, 0x80):
                changed = bytearray(raw)
                changed[position] ^= mask
                yield bytes(changed)
    elif isinstance(value, int):
        yield from (value + 1, value + 2, -value - 1)
    elif isinstance(value, float):
        yield from (value + 2**-20, -value)
    else:
        yield from (1, "x")


@pytest.mark.parametrize("column", AUDIT_COLUMNS)
@pytest.mark.parametrize("seq", [1, 4, 7])
def test_a_changed_audit_entry_is_named(path: Path, seq: int, column: str) -> None:
    _every_flip(
        path,
        table="audit",
        key="seq",
        number=seq,
        column=column,
        is_named=lambda found: found[0] in (f"audit entry {seq}", f"audit entry {seq + 1}"),
    )


@pytest.mark.parametrize("column", VERSION_COLUMNS)
@pytest.mark.parametrize("number", [1, 4])
def test_a_changed_version_is_named(path: Path, number: int, column: str) -> None:
    _every_flip(
        path,
        table="versions",
        key="number",
        number=number,
        column=column,
        is_named=lambda found: found == [f"version {number}"],
    )


def _every_flip(
    path: Path, *, table: str, key: str, number: int, column: str, is_named: Callable[[list[str]], bool]
) -> None:
    connection = sqlite3.connect(path, isolation_level=None)
    (value,) = connection.execute(f"SELECT {column} FROM {table} WHERE {key} = ?", (number,)).fetchone()  # noqa: S608
    changed = list(flips(value))
    with Store.open(f"sqlite:///{path}") as store:
        for other in changed[:: len(changed) // 16 + 1]:
            shown = f"CAST(? AS {'TEXT' if isinstance(other, bytes) else 'NUMERIC'})"
            shown = "?" if isinstance(other, str) else shown
            connection.execute(f"UPDATE {table} SET {column} = {shown} WHERE {key} = ?", (other, number))  # noqa: S608

            found = [broken.what for broken in store.verify()]

            assert found, (column, value, other)
            assert is_named(found), (found, value, other)
            connection.execute(f"UPDATE {table} SET {column} = ? WHERE {key} = ?", (value, number))  # noqa: S608
        assert () == store.verify()
    connection.close()


def test_a_changed_number_of_an_audit_entry_is_named(path: Path) -> None:
    change(path, "UPDATE audit SET seq = 99 WHERE seq = 4")

    assert ["audit entry 4"] == verify(path)


@pytest.mark.parametrize("seq", range(1, 8))
def test_a_removed_audit_entry_is_named(path: Path, seq: int) -> None:
    change(path, "DELETE FROM audit WHERE seq = ?", seq)

    assert [f"audit entry {seq}"] == verify(path)


@pytest.mark.parametrize("number", [1, 2, 4])
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

    assert ["audit entry 8"] == verify(path)


def test_a_changed_content_with_its_digest_made_to_fit_is_named(path: Path) -> None:
    other = "2c26b46b68ffc68ff99b453c1d30413413422d706483bfa0f98a5e886266e7ae"
    change(path, "UPDATE versions SET content = 'foo', digest = ? WHERE number = 2", other)

    assert ["version 2"] == verify(path)


def test_an_act_after_a_break_does_not_hide_it(path: Path) -> None:
    change(path, "UPDATE audit SET actor = 'nobody' WHERE seq = 2")
    with Store.open(f"sqlite:///{path}") as store:
        publish(store, "later")

    assert "audit entry 2" in verify(path)
