from __future__ import annotations

import os
import re
import shutil
import sqlite3
import stat
from pathlib import Path

import pytest

from configctl.engine import describe, parse_store_url
from configctl.store import Store, StoreError
from tests.unit.configctl.claims import StoreClaims, publish


class TestSqlite(StoreClaims):
    @pytest.fixture
    def url(self, tmp_path: Path) -> str:
        return f"sqlite:///{tmp_path}/data/store.db"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "store.db"


def test_a_store_file_is_its_owners_alone(tmp_path: Path) -> None:
    previous = os.umask(0)
    try:
        with Store.open(f"sqlite:///{tmp_path}/new/store.db") as store:
            publish(store, "a")
            modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in (tmp_path / "new").iterdir()}
    finally:
        os.umask(previous)

    assert {"store.db": 0o600, "store.db-wal": 0o600, "store.db-shm": 0o600} == modes
    assert 0o700 == stat.S_IMODE((tmp_path / "new").stat().st_mode)


def test_a_store_file_is_written_ahead_and_in_full(path: Path) -> None:
    with Store.open(f"sqlite:///{path}") as store, store._read() as connection:
        assert ("wal", 2) == (
            connection.exec_driver_sql("PRAGMA journal_mode").scalar_one(),
            connection.exec_driver_sql("PRAGMA synchronous").scalar_one(),
        )


def test_an_open_store_notices_that_its_file_was_replaced(path: Path, tmp_path: Path) -> None:
    backup = tmp_path / "backup.db"
    with Store.open(f"sqlite:///{backup}") as old:
        publish(old, "from the backup")
    with Store.open(f"sqlite:///{path}") as store:
        publish(store, "a")
        publish(store, "b")
        for suffix in ("", "-wal", "-shm"):
            Path(f"{path}{suffix}").unlink(missing_ok=True)
        shutil.copy(backup, path)

        active = store.active()

    assert active is not None
    assert b"from the backup" == active.content


def test_a_store_whose_file_is_gone_is_a_fault_and_not_an_empty_store(path: Path) -> None:
    with Store.open(f"sqlite:///{path}") as store:
        publish(store, "a")
        for suffix in ("", "-wal", "-shm"):
            Path(f"{path}{suffix}").unlink(missing_ok=True)

        with pytest.raises(StoreError, match="unable to open"):
            store.active_number()
    assert not path.exists()


def test_a_file_that_is_no_database_is_a_sentence(path: Path) -> None:
    path.write_text("hello, this is not a database at all" * 100)

    with pytest.raises(StoreError, match="not a database"):
        Store.open(f"sqlite:///{path}")


def test_a_directory_that_cannot_be_made_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")

    with pytest.raises(StoreError, match="cannot be opened"):
        Store.open(f"sqlite:///{tmp_path}/file/store.db")


def test_a_store_of_a_newer_gateway_is_refused(path: Path) -> None:
    Store.open(f"sqlite:///{path}").close()
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE schema_version SET number = 99")
    connection.close()

    with pytest.raises(StoreError, match="newer gateway: upgrade"):
        Store.open(f"sqlite:///{path}")


@pytest.mark.parametrize("url", ["", "store.db", "mysql://host/x", "sqlite+unknown"])
def test_what_is_no_store_address_is_refused_with_the_right_form(url: str) -> None:
    with pytest.raises(StoreError, match="sqlite:///PATH"):
        Store.open(url)


@pytest.mark.parametrize("scheme", ["postgresql", "postgres", "postgresql+psycopg", "postgresql+psycopg2"])
def test_every_spelling_of_postgresql_uses_psycopg(scheme: str) -> None:
    assert "postgresql+psycopg" == parse_store_url(f"{scheme}://u:p@h/db").drivername


def test_no_message_holds_the_stores_password() -> None:
    assert "postgresql+psycopg://u:***@h/db" == describe(parse_store_url("postgresql://u:hunter2@h/db"))
    with pytest.raises(StoreError) as caught:
        Store.open("postgresql://u:hunter2@127.0.0.1:1/db")
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("name", ["password", "sslpassword", "passfile", "user", "options"])
def test_no_message_holds_a_parameter_of_the_stores_address(name: str) -> None:
    with pytest.raises(StoreError) as caught:
        Store.open(f"postgresql://u@127.0.0.1:1/db?{name}=hunter2")

    assert "hunter2" not in str(caught.value)


def test_a_store_behind_a_socket_is_known_by_its_directory() -> None:
    url = parse_store_url("postgresql://u@/db?host=/run/postgresql&password=hunter2")

    assert "postgresql+psycopg://u@/db?host=/run/postgresql" == describe(url).replace("%2F", "/")


@pytest.mark.parametrize(
    "rest",
    ["u:pw@zq:w/zq@127.0.0.1:1/db", "u:pw@zq/zq@127.0.0.1:1/db", "u:pw@zq@127.0.0.1:1/db", "u:pw@127.0.0.1:zq/db"],
)
def test_an_address_that_cannot_be_read_is_refused_unquoted(rest: str) -> None:
    """A part of a password may stand where the port, the host or the database would."""
    with pytest.raises(StoreError, match="percent-encoded, such as %2F for a slash") as caught:
        Store.open(f"postgresql://{rest}")

    assert not {"zq", "pw"} & set(re.findall(r"\w+", str(caught.value)))


def test_a_percent_encoded_password_is_read_as_it_was_meant() -> None:
    assert "p@ss:w/rd" == parse_store_url("postgresql://u:p%40ss%3Aw%2Frd@127.0.0.1:1/db").password


def test_a_store_in_memory_is_empty_and_works() -> None:
    with Store.open("sqlite://") as store:
        publish(store, "a")

        assert 1 == store.active_number()
        assert () == store.verify()


@pytest.mark.parametrize(
    ("statement", "what"),
    [
        ("UPDATE wanted SET number = 'x'", "the row of wanted was changed, its number cannot be read"),
        ("UPDATE versions SET created_at = 1e300", "version 1 was changed, its created_at cannot be read"),
        ("UPDATE versions SET parent = number", "version 1 was changed, its parent cannot be read"),
        ("UPDATE versions SET rollback_of = 2", "version 1 was changed, its rollback_of cannot be read"),
        ("UPDATE instances SET missing_keys = 'x'", "a row of instances was changed, its missing_keys cannot be read"),
        ("UPDATE audit SET detail = '['", "audit entry 1 was changed, its detail cannot be read"),
    ],
)
def test_a_row_that_nobody_of_ours_wrote_is_refused_with_a_sentence(path: Path, statement: str, what: str) -> None:
    """A gateway that reads it keeps its last good version; `verify` still answers and `tally` counts."""
    with Store.open(f"sqlite:///{path}") as store:
        publish(store, "a")
        store.report("g", hostname="h", pid=1, wanted=1, applied=1, error=None, missing_keys=(), now=1.0)
        change = sqlite3.connect(path)
        with change:
            change.execute(statement)
        change.close()

        with pytest.raises(StoreError, match=f"{what}: `configctl audit verify` names all that was"):
            (store.active_number(), store.versions(), store.instances(1.0), store.audit_entries())

        assert isinstance(store.verify(), tuple)
        assert (1, 1) == store.tally()[:2]
